"""The options of LoRA. Other files of this folder compare its outputs with PEFT and with float64."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters import DoRA, LoRA, QLoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.layers import AdaptedLinear, LowRank, adapted_layers
from litpeft.errors import UserError
from litpeft.optim import build_optimizer
from tests.adapters.small_models import LABELS, MODELS, disturb, small


def applied(name: str, adapter: LoRA, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = small(name).to(dtype)
    adapter.apply(model, head=MODELS[name].head)
    return model


def test_initial_values_are_drawn_as_the_paper_says() -> None:
    torch.manual_seed(0)
    lora = AdaptedLinear(nn.Linear(400, 30), LowRank(64, scaling=1.0))
    assert lora.lora_B.abs().max() == 0
    bound = 1 / 20  # uniform with bound 1/sqrt(in)
    assert lora.lora_A.abs().max() <= bound
    assert lora.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    gaussian = AdaptedLinear(nn.Linear(400, 30), LowRank(64, scaling=1.0, init="gaussian"))
    assert gaussian.lora_A.std().item() == pytest.approx(1 / 64, rel=0.02)
    assert gaussian.lora_A.abs().max() > 3 / 64


def test_dropout_affects_only_the_low_rank_branch() -> None:
    torch.manual_seed(0)
    lora = AdaptedLinear(nn.Linear(512, 16), LowRank(4, scaling=1.0, dropout=0.5))
    x = torch.randn(3, 512)
    plain = nn.functional.linear(x, lora.weight, lora.bias)
    torch.testing.assert_close(lora(x), plain)  # B is zero, so dropout has no effect yet
    nn.init.normal_(lora.lora_B)
    mean = torch.stack([lora(x) for _ in range(4000)]).mean(0)
    full = lora.eval()(x)
    assert (mean - full).abs().max() < 0.15 * (full - plain).abs().max()
    assert not torch.equal(lora.train()(x), full)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "model.adapter.rank must be at least 1"),
        ({"rank_pattern": {"key": 0}}, "model.adapter.rank_pattern key must be at least 1"),
        ({"dropout": 1.0}, "model.adapter.dropout must be"),
        ({"alpha": 0}, "model.adapter.alpha must be above 0"),
        ({"alpha_pattern": {"query": 0}}, "model.adapter.alpha must be above 0"),
        ({"rank_pattern": {"(": 4}}, "the pattern '(' is not a regular expression"),
        ({"dropout": -0.1}, "model.adapter.dropout must be"),
        ({"lora_plus_ratio": 0.0}, "model.adapter.lora_plus_ratio must be above 0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        LoRA(**options)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"rank": 1}, {"rank": 1, "alpha": 2}),
        ({"rank": 5, "alpha": 0.5}, {"alpha": 0.5}),
        ({}, {"rank": 8, "alpha": 16, "dropout": 0.0, "lora_plus_ratio": 1.0, "targets": ["query", "value"]}),
        ({"alpha_pattern": {"key": 0.5}, "alpha": 1}, {"alpha": 1}),
        ({"rank_pattern": {"key": 1}}, {"rank_pattern": {"key": 1}, "alpha_pattern": {}}),
        ({"dropout": 0.0}, {"dropout": 0.0}),
        ({"dropout": 0.999}, {"dropout": 0.999}),
        ({"lora_plus_ratio": 0.5}, {"lora_plus_ratio": 0.5}),
        ({"dtype": "fp32"}, {"dtype": None}),
        ({"dtype": "bf16"}, {"dtype": "bf16"}),
        ({}, {"rslora": False, "init": "kaiming", "bias": "none", "layers": None, "modules_to_save": []}),
    ],
)
def test_options_at_the_limits_of_their_range_are_taken(options: dict, kept: dict) -> None:
    adapter = LoRA(**options)
    assert {name: adapter.settings()[name] for name in kept} == kept


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_alpha_by_rank_or_its_root(rslora: bool) -> None:
    adapter = LoRA(rank=4, alpha=8, rslora=rslora, rank_pattern={"key": 16}, alpha_pattern={"self.key": 2})
    assert adapter.options("a.query").scaling == (4.0 if rslora else 2.0)
    assert adapter.options("a.self.key").scaling == (0.5 if rslora else 0.125)
    assert adapter.options("a.monkey").rank == 4  # a pattern matches whole parts of a name


@pytest.mark.parametrize(("kind", "largest"), [("linear", 12), ("conv", 27), ("embedding", 40), ("conv1d", 12)])
def test_a_rank_may_be_as_large_as_the_larger_dimension_of_a_weight(kind: str, largest: int) -> None:
    def model() -> nn.Module:
        layers = {
            "linear": nn.Linear(7, 12), "conv": nn.Conv2d(3, 8, 3), "embedding": nn.Embedding(40, 6),
            "conv1d": Conv1D(12, 7),
        }  # fmt: skip
        return nn.ModuleDict({"layer": layers[kind]})

    LoRA(rank=largest, targets=["layer"]).apply(model())
    with pytest.raises(UserError) as error:
        LoRA(rank=largest + 1, targets=["layer"]).apply(model())
    assert str(error.value) == (
        f"model.adapter.rank {largest + 1} is larger than both dimensions of layer; give a rank of at most {largest}."
    )


def test_rank_alpha_and_scaling_follow_patterns() -> None:
    adapter = LoRA(
        rank=4,
        alpha=8,
        targets=["query", "key", "value"],
        rank_pattern={"key": 16, r"layer\.1\..*value": 2},
        alpha_pattern={"query": 1},
        rslora=True,
    )
    layers = adapted_layers(applied("bert", adapter))
    options_by_name = {
        name[len("bert.encoder.layer.") :]: (layer.rank, layer.scaling) for name, layer in layers.items()
    }
    for block in (0, 1):
        assert options_by_name[f"{block}.attention.self.key"] == (16, 8 / 4)
        assert options_by_name[f"{block}.attention.self.query"] == (4, 1 / 2)
    assert options_by_name["0.attention.self.value"] == (4, 8 / 2)
    assert options_by_name["1.attention.self.value"] == (2, 8 / 2**0.5)


@pytest.mark.parametrize(("layers", "left"), [([1], {1}), ("0-0", {0}), ("0-1", {0, 1}), ("1-", {1})])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_layers_select_blocks(name: str, layers: list[int] | str, left: set[int]) -> None:
    model = applied(name, LoRA(rank=2, targets=["query", "mlp"], layers=layers))
    assert {int(re.search(r"\.(\d+)\.", key)[1]) for key in adapted_layers(model)} == left


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([7], r"layers \[7\]: the targets are in blocks 0 to 1"),
        ("0-5", "blocks 0 to 1"),
        ("1:2", "must be a list of numbers or"),
    ],
)
def test_missing_blocks_are_refused(layers: list[int] | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        applied("bert", LoRA(layers=layers))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_biases_train_in_fp32_for_every_base_dtype(bias: str, dtype: torch.dtype) -> None:
    model = applied("bert", LoRA(rank=2, bias=bias), dtype)
    biases = {name.replace("parametrizations.bias.original", "bias") for name in trainable(model) if "bias" in name}
    of_all = {name for name, _ in small("bert").named_parameters() if name.endswith("bias")}
    adapted = {f"{name}.bias" for name in adapted_layers(model)} | {"classifier.bias"}
    assert biases == (of_all if bias == "all" else adapted)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    model(**MODELS["bert"].inputs, labels=LABELS).loss.backward()
    optimizer.step()
    moved = {name for name, p in trainable(model).items() if not torch.equal(p, before[name])}
    # their gradients are zero: softmax does not change when all keys get the same bias
    still = {
        name
        for name in before
        if "lora_A" in name or "key.bias" in name or name.endswith("key.parametrizations.bias.original")
    }
    assert moved >= before.keys() - still


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modules_to_save_train_in_full(dtype: torch.dtype) -> None:
    adapter = LoRA(rank=2, modules_to_save=["LayerNorm", "bert.encoder.layer.1.intermediate"])
    model = applied("bert", adapter, dtype)
    whole = {name for name in trainable(model) if "LayerNorm" in name or "1.intermediate" in name}
    assert len(whole) == 2 * 5 + 2
    logits = model(**MODELS["bert"].inputs, labels=LABELS)
    logits.loss.backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in whole)
    assert all(p.dtype == torch.float32 for p in trainable(model).values())


def test_a_missing_or_tied_module_to_save_is_refused() -> None:
    with pytest.raises(UserError, match="modules_to_save: 'norm' is no module of this model; it has: .*LayerNorm"):
        applied("bert", LoRA(modules_to_save=["norm"]))
    model = small("t5")
    with pytest.raises(UserError, match="modules_to_save: transformer.shared shares its weight with"):
        LoRA(targets=["q"], modules_to_save=["shared"]).apply(model)


@pytest.mark.parametrize("ratio", [1.0, float("1.0"), 2.0])
def test_groups_have_a_scale_only_with_lora_plus(ratio: float) -> None:
    adapter = LoRA(rank=2, lora_plus_ratio=ratio)
    groups = adapter.param_groups(applied("bert", adapter))
    assert [group.get("lr_scale") for group in groups] == ([None, None] if ratio == 1 else [None, 2.0, None])
    assert [group.get("weight_decay") for group in groups] == ([None, 0.0] if ratio == 1 else [None, None, 0.0])


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_lora_plus_in_an_optimizer_of_the_users_own(kind: type[torch.optim.Optimizer]) -> None:
    adapter = LoRA(rank=2, lora_plus_ratio=16.0)
    model = applied("bert", adapter)
    with pytest.raises(UserError, match=r"lora_plus_ratio: .* does not use lr_scale; give .* param_groups\(model, lr="):
        kind(adapter.param_groups(model), lr=1e-3).step()
    optimizer = kind(adapter.param_groups(model, lr=1e-3), lr=5.0)
    optimizer.step()
    B_ids = {id(layer.lora_B) for layer in adapted_layers(model).values()}
    for group in optimizer.param_groups:
        assert group["lr"] == (16e-3 if id(group["params"][0]) in B_ids else 1e-3)
    plain = LoRA(rank=2)
    groups = plain.param_groups(applied("bert", plain), lr=0.25)
    assert [(group["lr"], group.get("weight_decay")) for group in groups] == [(0.25, None), (0.25, 0.0)]


def test_lora_plus_scales_the_learning_rate_of_b() -> None:
    adapter = DoRA(rank=2, lora_plus_ratio=16.0)
    model = applied("bert", adapter)
    optimizer = build_optimizer(None, adapter.param_groups(model), default_lr=1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in trainable(model).items():
        assert rates[id(parameter)] == pytest.approx(16e-3 if name.endswith("lora_B") else 1e-3), name
    assert len(rates) == len(trainable(model))


def test_modules_trained_in_full_get_no_adapter() -> None:
    model = small("bert").to(torch.bfloat16)
    adapter = LoRA(rank=2, targets="all-linear")
    adapter.apply(model, head=["classifier"], new=["bert.pooler.dense.weight"])
    adapted = set(adapted_layers(model))
    assert len(adapted) == 12
    assert not adapted & {"classifier", "bert.pooler.dense"}
    disturb(model)
    before = model.eval()(**MODELS["bert"].inputs).logits
    adapter.merge(model)
    torch.testing.assert_close(model(**MODELS["bert"].inputs).logits, before, rtol=2e-2, atol=2e-2)


def test_a_diverged_adapter_is_not_merged_and_the_model_is_unchanged() -> None:
    adapter = LoRA(rank=2)
    model = applied("bert", adapter)
    layers = adapted_layers(model)
    with torch.no_grad():
        next(reversed(layers.values())).lora_B[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite values: the run diverged and cannot be merged"):
        adapter.merge(model)
    assert adapted_layers(model).keys() == layers.keys()


def test_a_sub_class_of_a_layer_is_refused() -> None:
    class Other(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) ** 2

    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "other": Other(4, 4)})
    LoRA(rank=2, targets="all-linear").apply(model)
    assert type(model["plain"]) is AdaptedLinear
    assert type(model["other"]) is Other
    with pytest.raises(UserError, match="matches other, a Other, but this adapter acts on: Linear"):
        LoRA(rank=2, targets=["other"]).apply(nn.ModuleDict({"other": Other(4, 4)}))


def test_the_description_has_the_adapted_layers() -> None:
    adapter = QLoRA(rank=2, targets=["query", "mlp"])
    model = applied("bert", adapter)
    description = adapter.describe(model)
    assert description["adapted_layers"] == {"query": 2, "dense": 4}
    assert description["quantised"]["layers"] == 13  # six per block, and the pooler
    assert description["total_params"] == sum(p.numel() for p in small("bert").parameters()) + sum(
        layer.lora_A.numel() + layer.lora_B.numel() for layer in adapted_layers(model).values()
    )


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match="the pattern 'querry' matches none of the adapted layers, such as bert.encoder"
    ):
        applied("bert", LoRA(rank_pattern={"querry": 16}))


def test_a_head_in_modules_to_save_computes_in_fp32() -> None:
    model = applied("bert", LoRA(modules_to_save=["classifier", "intermediate", "layer.1"]), torch.bfloat16)
    assert model(**MODELS["bert"].inputs).logits.dtype == torch.float32


@pytest.mark.parametrize("kind", [LoRA, DoRA, QLoRA])
def test_biases_in_a_bf16_base_are_merged(kind: type[LoRA]) -> None:
    adapter = kind(rank=2, bias="all")
    model = applied("bert", adapter, torch.bfloat16)
    disturb(model)
    before = model.eval()(**MODELS["bert"].inputs).logits
    adapter.merge(model)
    torch.testing.assert_close(model(**MODELS["bert"].inputs).logits, before, rtol=5e-2, atol=5e-2)
    assert model.state_dict().keys() == small("bert").state_dict().keys()


def test_a_quantised_conv1d_is_merged_into_a_conv1d() -> None:
    adapter = QLoRA(rank=2, targets=["c_attn"])
    model = applied("gpt2", adapter)
    disturb(model)
    before = model.eval()(**MODELS["gpt2"].inputs).logits
    adapter.merge(model)
    assert {n: type(m) for n, m in model.named_modules()} == {n: type(m) for n, m in small("gpt2").named_modules()}
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in small("gpt2").named_parameters()
    }
    torch.testing.assert_close(model(**MODELS["gpt2"].inputs).logits, before, rtol=1e-4, atol=1e-5)


def test_a_scheduler_that_sets_equal_learning_rates_is_refused() -> None:
    from litpeft.optim import build_scheduler

    adapter = LoRA(rank=2, lora_plus_ratio=16.0)
    model = applied("bert", adapter)
    optimizer = build_optimizer(None, adapter.param_groups(model), default_lr=1e-3)
    with pytest.raises(UserError, match="would undo model.adapter.lora_plus_ratio"):
        build_scheduler(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=9), optimizer, 9)

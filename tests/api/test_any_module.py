"""Adapters on any `nn.Module`, without Lightning: apply, train, save, load, disable and merge, against PEFT."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from litpeft.adapters import Adapter, DoRA, Frozen, Full, LoRA, NormalisedUpdate, Peft, QDoRA, QLoRA
from litpeft.adapters.base import trainable
from litpeft.errors import UserError
from tests.adapters.small_models import IDS, disturb, small

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
MODELS = {
    "sequential": lambda: _sequential(),
    "llama": lambda: small("llama"),
    "gpt2": lambda: small("gpt2"),
    "conv": lambda: _conv(),
}
ADAPTERS = {
    "lora": lambda: LoRA(rank=3, targets="all-linear"),
    "lora bf16": lambda: LoRA(rank=3, targets="all-linear", dtype="bf16"),
    "dora": lambda: DoRA(rank=3, alpha=4.5, rslora=True, targets="all-linear"),
    "qlora": lambda: QLoRA(rank=3, targets="all-linear", quant_type="fp4"),
    "qdora": lambda: QDoRA(rank=3, targets="all-linear"),
    "normalised": lambda: NormalisedUpdate(rank=3, targets=r"\d+|.*(gate|up|down)_proj|.*c_fc"),
    "loha": lambda: Peft("LOHA", {"r": 3}, targets="all-linear"),
}


def _sequential() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 3)).eval()


def _conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 3, padding=2, dilation=2), nn.Flatten(), nn.Linear(12, 3)
    ).eval()


def outputs(model: nn.Module) -> Tensor:
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return model(X) if isinstance(inner, nn.Sequential) else model(IDS).logits


def train(model: nn.Module, adapter: Adapter, steps: int = 3) -> None:
    """Train in a plain loop of torch, with the model in training mode, and return to evaluation."""
    model.train()
    optimizer = torch.optim.AdamW(adapter.param_groups(model), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs(model).float().square().mean().backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("on", ["sequential", "llama", "gpt2"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_apply_train_save_load_disable_and_merge(name: str, on: str, tmp_path: Path) -> None:
    if (name, on) == ("loha", "gpt2"):
        pytest.skip("PEFT has no LoHa for Conv1D")
    base = MODELS[on]()
    adapter = ADAPTERS[name]()
    model = adapter.apply(base)
    assert model is base
    frozen = {key: tensor.clone() for key, tensor in model.state_dict().items() if key not in trainable(model)}
    before = outputs(model)
    if not name.startswith("q"):  # whose base is the dequantised one
        assert torch.equal(before, outputs(MODELS[on]()))
    kinds = {p.dtype for key, p in trainable(model).items()}
    assert kinds == {torch.bfloat16 if "bf16" in name else torch.float32}
    train(model, adapter)
    after = outputs(model)
    assert (after - before).abs().max() > 1e-3
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in frozen.items())

    with adapter.disable() as same:
        assert same is model
        assert torch.equal(outputs(model), before)
    assert torch.equal(outputs(model), after)

    assert adapter.save(tmp_path / "adapter") == tmp_path / "adapter"
    again = MODELS[on]()
    loaded = Adapter.load(str(tmp_path / "adapter"), again)
    assert type(loaded) is type(adapter)
    assert loaded.settings() == adapter.settings()
    assert torch.equal(outputs(again.eval()), after)
    with loaded.disable():
        assert torch.equal(outputs(again), before)

    adapter.merge(model)
    assert not trainable(model)
    torch.testing.assert_close(outputs(model), after, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="was merged already"):
        adapter.save(tmp_path / "merged")


@pytest.mark.parametrize("on", ["sequential", "llama", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_gradients_and_the_saved_folder_are_those_of_peft(name: str, on: str, tmp_path: Path) -> None:
    adapter = {"lora": LoRA, "dora": DoRA}[name](rank=4, alpha=6, targets="all-linear")
    model = adapter.apply(MODELS[on]())
    disturb(model)
    adapter.save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(MODELS[on](), str(tmp_path / "adapter"), is_trainable=True).eval()
    for each in (model, theirs):
        outputs(each).square().sum().backward()
    torch.testing.assert_close(outputs(model), outputs(theirs), rtol=1e-5, atol=1e-6)
    found = {key.replace(".default", ""): p.grad for key, p in theirs.named_parameters() if p.requires_grad}
    ours = trainable(model)
    assert len(found) == len(ours)
    for key, parameter in ours.items():
        leaf = "lora_magnitude_vector.weight" if key.endswith("magnitude") else f"{key.rpartition('.')[2]}.weight"
        expected = found[f"base_model.model.{key.rpartition('.')[0]}.{leaf}"]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_that_peft_saved_is_loaded(use_dora: bool, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_dora=use_dora, exclude_modules=["layers.1.mlp.down_proj"],
        rank_pattern={"layers.0.self_attn.q_proj": 2}, modules_to_save=["score"],
    )  # fmt: skip
    theirs = peft.get_peft_model(small("llama"), config).eval()
    disturb(theirs)
    theirs.save_pretrained(tmp_path)
    model = small("llama")
    adapter = (DoRA if use_dora else LoRA).load(tmp_path, model)
    assert adapter.rank == 4
    torch.testing.assert_close(outputs(model), outputs(theirs), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="a DoRA adapter"):
        (LoRA if use_dora else DoRA).load(tmp_path, small("llama"))


def _lm() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(LlamaConfig(vocab_size=60, tie_word_embeddings=True, **sizes)).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
    ],
)
def test_an_adapter_of_peft_on_embeddings_or_in_one_block_is_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = peft.get_peft_model(_lm(), peft.LoraConfig(r=2, **options)).eval()
    disturb(theirs)
    theirs.save_pretrained(tmp_path)  # with the embeddings of the base, if they are adapted
    kind = DoRA if options.get("use_dora") else LoRA
    kind.load(tmp_path, model := _lm())
    torch.testing.assert_close(outputs(model), outputs(theirs), rtol=1e-5, atol=1e-6)
    if "layers_to_transform" not in options:
        other = _lm()
        other.model.embed_tokens.weight.data += 1
        with pytest.raises(UserError, match="unexpected tensors"):
            kind.load(tmp_path, other)


def test_a_folder_that_peft_cannot_describe_is_saved_in_litpefts_format(tmp_path: Path) -> None:
    adapter = LoRA(rank=2, targets=r"\d")
    model = adapter.apply(_conv())  # PEFT ignores the dilation
    disturb(model)
    adapter.save(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "litpeft_adapter.json",
        "litpeft_adapter.safetensors",
    ]
    again = _conv()
    LoRA.load(tmp_path / "adapter", again)
    assert torch.equal(outputs(again), outputs(model))


@pytest.mark.parametrize("name", ["lora", "qdora", "normalised", "loha"])
def test_an_adapter_that_is_frozen_or_disabled_is_not_saved_without_its_tensors(name: str, tmp_path: Path) -> None:
    adapter = ADAPTERS[name]()
    model = adapter.apply(_sequential())
    with adapter.disable(), pytest.raises(UserError, match="is frozen, so it would not be saved; .* disable"):
        adapter.save(tmp_path / "adapter")
    model.requires_grad_(False)
    with pytest.raises(UserError, match="is frozen, so it would not be saved; set requires_grad"):
        adapter.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_patterns_of_layers_whose_names_end_alike_are_saved(kind: type[LoRA], tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), nn.Linear(6, 3)).eval()

    own = {"rank_pattern": {r"1\.0": 4, "0": 2}, "alpha_pattern": {r"1\.0": 8, "0": 5}}  # 1.0 is as most layers are
    adapter = kind(rank=4, alpha=8, targets="all-linear", **own)
    model = adapter.apply(network())
    disturb(model)
    assert (model[0].rank, model[1][0].rank) == (2, 4)
    adapter.save(tmp_path / "adapter")
    kind.load(tmp_path / "adapter", again := network())
    assert torch.equal(outputs(again), outputs(model))
    theirs = peft.PeftModel.from_pretrained(network(), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(X), outputs(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_passes_the_disabled_adapter_and_not_into_it(dtype: torch.dtype) -> None:
    """As in losses that compare with the base: both graphs live at the same time."""
    adapter = DoRA(rank=3, targets="all-linear")
    model = adapter.apply(_sequential().to(dtype)).train()
    disturb(model)
    x = X.to(dtype).requires_grad_()

    def gradients(both: bool) -> list[Tensor]:
        model.zero_grad(), setattr(x, "grad", None)
        trained = model(x).square().sum()
        if both:
            with adapter.disable():
                reference = model(x).sum()
            reference.backward()
            assert all(p.grad is None for p in trainable(model).values())
            y = X.to(dtype).requires_grad_()
            _sequential().to(dtype)(y).sum().backward()
            tolerance = 1e-6 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(x.grad, y.grad, rtol=tolerance, atol=tolerance)
        trained.backward()
        return [p.grad.clone() for p in trainable(model).values()]

    alone, together = gradients(both=False), gradients(both=True)
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("first", [LoRA, Full, Frozen, lambda: Peft("IA3")])
@pytest.mark.parametrize("second", [LoRA, Frozen, lambda: Peft("IA3")])
def test_a_second_apply_is_refused_and_changes_nothing(first: Any, second: Any) -> None:
    model = first().apply(small("bert"), head=["classifier"])
    trained = list(trainable(model))
    with pytest.raises(UserError, match="already has .*; (merge that adapter first, or )?load the model again"):
        second().apply(model)
    assert list(trainable(model)) == trained


@pytest.mark.parametrize("adapter", [LoRA(dropout=0.5), DoRA(dropout=0.5), Peft("LORA", {"lora_dropout": 0.5})])
def test_a_model_in_evaluation_stays_so(adapter: Adapter) -> None:
    """New layers have the mode of those that they replace, so that dropout is off in a model in evaluation mode."""
    model = small("bert")
    model.bert.embeddings.train()
    modes = {name: module.training for name, module in model.named_modules()}
    adapter.apply(model)
    disturb(model)
    assert {name: model.get_submodule(name).training for name in modes} == modes
    assert torch.equal(outputs(model), outputs(model))
    model.train()
    assert not torch.equal(outputs(model), outputs(model))


def test_after_merging_another_adapter_can_be_applied() -> None:
    model = small("bert")
    first = LoRA()
    first.apply(model)
    first.merge(model)
    assert Frozen().apply(model, head=["classifier"]) is model


def test_the_head_and_modules_trained_in_full_are_saved(tmp_path: Path) -> None:
    adapter = LoRA(rank=2, modules_to_save=["pooler"])
    model = adapter.apply(small("bert"), head=["classifier"])
    disturb(model)
    adapter.save(tmp_path / "adapter")
    again = small("bert", seed=0)
    LoRA.load(tmp_path / "adapter", again)
    assert torch.equal(outputs(again), outputs(model))
    with (
        pytest.raises(UserError, match=r"LoRA trains bert.pooler.dense.weight, whose earlier values are not kept"),
        adapter.disable(),
    ):
        pass
    full, everything = Full(), small("bert")
    full.apply(everything)
    with pytest.raises(UserError, match="earlier values are not kept"), full.disable():
        pass


def test_methods_with_virtual_tokens_are_disabled(tmp_path: Path) -> None:
    adapter = Peft("PREFIX_TUNING", {"num_virtual_tokens": 4})
    model = adapter.apply(small("llama"), head=["score"])
    disturb(model)
    expected = small("llama")
    expected.score.load_state_dict(model.score.state_dict())
    with adapter.disable():
        assert torch.equal(outputs(model), outputs(expected))
    assert not torch.equal(outputs(model), outputs(expected))
    adapter.save(tmp_path / "adapter")
    Adapter.load(tmp_path / "adapter", again := small("llama"))
    assert torch.equal(outputs(again), outputs(model))


class BitFit(Adapter):
    """The example of adapters/base.py."""

    name, trains_base = "bitfit", True

    def adapt(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.endswith("bias")


def test_an_adapter_of_the_users_own_is_saved_and_loaded(tmp_path: Path) -> None:
    adapter = BitFit()
    model = adapter.apply(_sequential())
    train(model, adapter)
    adapter.save(tmp_path / "adapter")
    Adapter.load(tmp_path / "adapter", again := _sequential())
    assert torch.equal(outputs(again), outputs(model))
    with pytest.raises(UserError, match=r"holds the adapter tests.api.test_any_module.BitFit; call load of that class"):
        LoRA.load(tmp_path / "adapter", _sequential())


def test_copies_of_models_and_adapters(tmp_path: Path) -> None:
    adapter = LoRA(rank=2, targets="all-linear")
    model = adapter.apply(_sequential())
    disturb(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        adapter.save(tmp_path / "adapter", copied)
        LoRA.load(tmp_path / "adapter", again := _sequential())
        assert torch.equal(outputs(again), outputs(model))
    with pytest.raises(UserError, match="not applied to a model"):
        copy.deepcopy(adapter).save(tmp_path / "other")


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    adapter = QLoRA(rank=2, targets="all-linear")
    model = adapter.apply(_sequential())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files; give a new folder"):
        adapter.save(tmp_path)
    adapter.save(tmp_path / "adapter")
    adapter.save(tmp_path / "adapter")  # an adapter may be replaced
    with pytest.raises(UserError, match="holds no adapter"):
        LoRA.load(tmp_path, _sequential())
    other = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "adapter"))):
        Adapter.load(tmp_path / "adapter", other)
    with pytest.raises(UserError, match="Sequential has no adapter QLoRA"):
        adapter.save(tmp_path / "third", _sequential())
    assert outputs(model).shape == (5, 3)

"""The interface of adapters, on plain modules without Lightning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from litpeft.adapters import Adapter, DoRA, Frozen, Full, LoRA, base
from litpeft.adapters.base import trainable
from litpeft.errors import UserError

ADAPTERS = {"none": Full, "frozen": Frozen, "lora": lambda: LoRA(rank=3, dropout=0.1)}


def bert(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    return BertForSequenceClassification(config).to(dtype).eval()


IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]])


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applying_an_adapter_does_not_change_the_outputs(name: str, dtype: torch.dtype) -> None:
    model = bert(dtype)
    before = model(IDS).logits.float()
    adapter = ADAPTERS[name]()
    adapter.apply(model, head=["classifier"])
    with torch.autocast("cpu", torch.bfloat16, enabled=adapter.trains_base and dtype == torch.bfloat16):
        after = model(IDS).logits.float()
    exact = dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=0 if exact else 2e-2, atol=0 if exact else 5e-3)


@pytest.mark.parametrize("name", ADAPTERS)
def test_training_changes_only_trainable_parameters(name: str) -> None:
    model = bert(torch.bfloat16)
    adapter = ADAPTERS[name]()
    adapter.apply(model, head=["classifier"])
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(adapter.param_groups(model), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=adapter.trains_base):
            model(IDS, labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
    names = set(trainable(model))
    for key, tensor in model.state_dict().items():
        if key not in names:
            assert torch.equal(tensor, before[key]), key
    still = {key for key in names if trainable(model)[key].grad.abs().max() == 0}
    assert not still
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_each_adapter_has_the_expected_trainable_parameters() -> None:
    counts = {}
    for name, make in ADAPTERS.items():
        model = bert()
        adapter = make()
        adapter.apply(model, head=["classifier"])
        counts[name] = adapter.describe(model)["trainable_params"]
    everything = sum(p.numel() for p in bert().parameters())
    head = 3 * 16 + 3
    assert counts == {"none": everything, "frozen": head, "lora": head + 2 * 2 * 3 * (16 + 16)}


@pytest.mark.parametrize("name", ADAPTERS)
def test_trainable_tensors_are_fp32_and_counted(name: str) -> None:
    model = bert(torch.bfloat16)
    adapter = ADAPTERS[name]()
    adapter.apply(model, head=["classifier"])
    kept = trainable(model).values()
    assert {p.dtype for p in kept} == {torch.float32}
    description = adapter.describe(model)
    assert description["adapter_bytes"] == 4 * description["trainable_params"]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert description["model_bytes"] == 4 * description["trainable_params"] + 2 * frozen + buffers
    assert description["total_params"] == description["trainable_params"] + frozen


def test_newly_initialised_parameters_train_in_a_bf16_base() -> None:
    model = bert(torch.bfloat16)
    adapter = Frozen()
    adapter.apply(model, head=["classifier"], new=["bert.encoder.layer.0.output.dense.weight", "classifier.bias"])
    assert {name.rpartition(".")[0] for name in trainable(model)} == {"classifier", "bert.encoder.layer.0.output.dense"}
    logits = model(IDS).logits
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert model.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_state_loads_into_another_model(name: str) -> None:
    first, second = bert(), bert()
    one, two = ADAPTERS[name](), ADAPTERS[name]()
    one.apply(first, head=["classifier"])
    two.apply(second, head=["classifier"])
    with torch.no_grad():
        for tensor in trainable(first).values():
            tensor.add_(torch.randn_like(tensor))
    two.load_state_dict(second, one.state_dict(first))
    assert torch.equal(first.eval()(IDS).logits, second.eval()(IDS).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("classifier.weight"), "missing classifier.weight"),
        (lambda s: s.update(foreign=torch.zeros(1)), "unexpected foreign"),
        (
            lambda s: s.update({"classifier.bias": torch.zeros(7)}),
            "classifier.bias of shape (7,) where this model has (3,)",
        ),
    ],
)
def test_a_mismatched_state_is_refused_and_nothing_is_copied(change, message: str) -> None:
    model = bert()
    adapter = LoRA(rank=2)
    adapter.apply(model, head=["classifier"])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = {key: torch.ones_like(tensor) for key, tensor in adapter.state_dict(model).items()}
    change(state)
    with pytest.raises(UserError, match=re.escape(message)):
        adapter.load_state_dict(model, state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_biases_and_norms_get_no_weight_decay() -> None:
    model = bert()
    adapter = Full()
    adapter.apply(model, head=["classifier"])
    decayed, spared = adapter.param_groups(model)
    assert "weight_decay" not in decayed
    assert spared["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_model_that_already_has_an_adapter_is_refused_unchanged(name: str) -> None:
    model = bert()
    LoRA(rank=2).apply(model, head=["classifier"])
    before = set(trainable(model))
    with pytest.raises(UserError, match=r"self\.query already has an adapter; merge that adapter first"):
        ADAPTERS[name]().apply(model, head=["classifier"])
    assert set(trainable(model)) == before
    LoRA(rank=2).merge(model)
    ADAPTERS[name]().apply(model, head=["classifier"])


def test_leaving_nothing_to_train_is_an_error() -> None:
    with pytest.raises(UserError, match="leaves nothing to train"):
        Frozen().apply(bert())


def test_the_example_of_a_new_adapter_runs() -> None:
    code = re.search(r"\n    from litpeft.*?\n\n(?=Everything)", base.__doc__, re.DOTALL)[0]
    scope: dict = {}
    exec("\n".join(line[4:] for line in code.splitlines()), scope)
    model = bert()
    scope["BitFit"]().apply(model, head=["classifier"])
    with pytest.raises(UserError, match="BitFit trains parameters of the base: set `trains_base = True` in the class"):
        type("BitFit", (scope["BitFit"],), {"trains_base": False})().apply(bert(torch.bfloat16))
    assert {name for name in trainable(model) if not name.endswith("bias")} == {"classifier.weight"}


def test_a_state_that_does_not_fit_names_three_tensors_and_says_that_there_are_more() -> None:
    model, adapter = bert(), LoRA(rank=2)
    adapter.apply(model, head=["classifier"])
    names = list(trainable(model))
    for number, end in ((3, ""), (4, "; ...")):
        state = {name: tensor for name, tensor in adapter.state_dict(model).items() if name not in names[:number]}
        with pytest.raises(UserError) as error:
            adapter.load_state_dict(model, state)
        listed = "; ".join(sorted(f"missing {name}" for name in names[:number])[:3]) + end
        assert str(error.value) == (
            f"the checkpoint does not fit this model and adapter ({number} tensors: {listed}); use the model, adapter "
            "and rank that it was trained with."
        )


def test_new_layers_have_the_mode_of_the_layers_that_they_replace() -> None:
    for training in (True, False):
        model = bert().train(training)
        model.bert.encoder.layer[1].attention.train(not training)
        model.classifier.train(not training)
        LoRA(rank=2, dropout=0.5, targets=["query", "classifier"]).apply(model)
        for name, module in model.named_modules():
            inside = name.startswith(("bert.encoder.layer.1.attention", "classifier"))
            assert module.training == (training != inside), name


def test_what_was_applied_and_merged_is_said() -> None:
    model = bert()
    Full().apply(model, head=["classifier"])
    with pytest.raises(UserError) as error:
        LoRA().apply(model, head=["classifier"])
    assert str(error.value) == (
        "model.adapter LoRA: BertForSequenceClassification already has the adapter Full; merge that adapter first, or "
        "load the model again."
    )
    Full().merge(model)
    model.peft_config = {}
    with pytest.raises(
        UserError, match=r"^model\.adapter LoRA: BertForSequenceClassification already has an adapter of PE"
    ):
        LoRA().apply(model, head=["classifier"])
    del model.peft_config
    LoRA().apply(model, head=["classifier"])
    with pytest.raises(
        UserError, match=r"^model\.adapter Full: bert\.encoder\.layer\.0\.attention\.self\.query already has"
    ):
        Full().apply(model, head=["classifier"])


@pytest.mark.parametrize("dtype", [None, "bf16", "fp32"])
def test_the_tensors_of_an_adapter_have_the_dtype_that_was_asked_for_but_magnitudes_and_heads_are_fp32(
    dtype: str | None,
) -> None:
    model = DoRA(rank=2, dtype=dtype).apply(bert(), head=["classifier"])
    found = {name.rpartition(".")[2]: p.dtype for name, p in trainable(model).items()}
    low = torch.bfloat16 if dtype == "bf16" else torch.float32
    assert found == {
        "lora_A": low, "lora_B": low, "magnitude": torch.float32, "weight": torch.float32, "bias": torch.float32,
    }  # fmt: skip


def test_an_adapter_of_a_user_trains_adds_nothing_and_has_the_usual_learning_rate_unless_it_says_otherwise() -> None:
    class Mine(Adapter):
        name = "mine"

        def adapt(self, model: nn.Module) -> None:
            model.classifier.requires_grad_(True)

    adapter, model = Mine(), bert()
    adapter.apply(model)
    assert (adapter.trains, adapter.trains_base, adapter.default_lr, adapter.dtype) == (True, False, 3e-4, None)
    assert (adapter.settings(), adapter.added(model), adapter.resume_state(model)) == ({}, {}, None)
    assert trainable(model).keys() == {"classifier.weight", "classifier.bias"}
    assert Mine.strategy_name({}) == "mine"
    assert adapter.describe(model) == {
        "trainable_params": 51, "adapter_bytes": 204, "total_params": sum(p.numel() for p in model.parameters()),
        "model_bytes": sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
    }  # fmt: skip
    roles = adapter.roles(model)
    assert roles.keys() == {"base_weights", "adapter_weights"}
    assert [id(p) for p in roles["adapter_weights"]] == [id(p) for p in model.classifier.parameters()]
    assert {id(t) for t in roles["base_weights"]} == {id(t) for t in (*model.parameters(), *model.buffers())}
    assert Full().roles(bert())["adapter_weights"] == []
    with pytest.raises(UserError, match=r"^PEFT has no adapter of type mine; give --format merged\.$"):
        adapter.export(Path(), model, "base")


def test_a_new_parameter_inside_of_the_head_is_trained_as_part_of_the_head() -> None:
    model = bert(torch.bfloat16)
    Frozen().apply(model, head=["classifier"], new=["classifier.weight", "bert.pooler.dense.weight"])
    out = model.classifier(torch.ones(1, 16, dtype=torch.bfloat16))
    assert out.dtype == torch.float32  # the output of a head is not cast back
    assert model.bert.pooler.dense(torch.ones(1, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert set(trainable(model)) == {
        "classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias",
    }  # fmt: skip

"""What adapted layers compute once per optimizer step: always from the present values, and in few operations."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.layers import adapted_layers
from litpeft.adapters.linear4bit import bitsandbytes
from litpeft.adapters.qlora import QDoRA, QLoRA
from tests.adapters.small_models import disturb
from tests.profiling.test_launches import Launches

STRATEGIES = {"lora": LoRA, "dora": DoRA, "qlora": QLoRA, "qdora": QDoRA}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def network(strategy: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> nn.Sequential:
    """Return four adapted layers, two of them of equal shape."""
    torch.manual_seed(seed)
    sizes = (24, 32), (32, 32), (32, 32), (32, 8)
    model = nn.Sequential(*(nn.Linear(*size) for size in sizes)).to(dtype)
    STRATEGIES[strategy](rank=4, targets="all-linear").apply(model)
    disturb(model)
    return model.train()


def fed(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(6, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def assert_present_values(model: nn.Module, x: Tensor | None = None) -> Tensor:
    """Check the output of a training call against a copy of the model that knows nothing of earlier calls."""
    x = fed() if x is None else x
    fresh = copy.deepcopy(model)
    for layer in adapted_layers(fresh).values():
        layer._norm_key = layer._prepared = None
    with torch.no_grad():  # computes everything at use
        expected = fresh(x)
    out = model(x)
    assert torch.equal(out, expected)
    return out


def saved_and_loaded(model: nn.Module, assign: bool) -> None:
    state = {name: tensor.clone() * 1.5 for name, tensor in model.state_dict().items() if "lora" in name}
    model.load_state_dict(state, strict=False, assign=assign)


def swap(model: nn.Module) -> None:
    for layer in adapted_layers(model).values():
        torch.utils.swap_tensors(layer.lora_B, nn.Parameter(2 * layer.lora_B.detach()))


def set_data(model: nn.Module) -> None:
    for p in trained(model):
        p.data = p.data * 1.5


@torch.no_grad()
def in_place(model: nn.Module) -> None:
    for p in trained(model):
        p.mul_(1.5)


def step_with(make: Callable[[list[nn.Parameter]], Any]) -> Callable[[nn.Module], None]:
    return lambda model: make(trained(model)).step()


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "sgd": step_with(lambda p: torch.optim.SGD(p, lr=0.5)),
    "adamw foreach": step_with(lambda p: torch.optim.AdamW(p, lr=0.5, foreach=True)),
    "adamw fused": step_with(lambda p: torch.optim.AdamW(p, lr=0.5, fused=True)),
    "adamw 8-bit": step_with(lambda p: bitsandbytes().optim.AdamW8bit(p, lr=0.5)),
    "load_state_dict": lambda model: saved_and_loaded(model, assign=False),
    "load_state_dict with assign": lambda model: saved_and_loaded(model, assign=True),
    "swap_tensors": swap,
    "another .data": set_data,
    "in place": in_place,
    "cast to float64 and back": lambda model: (model.double(), in_place(model), model.bfloat16()),
}


@pytest.mark.parametrize("change", CHANGES)
@every_strategy
def test_the_next_call_uses_the_new_values(strategy: str, change: str) -> None:
    model = network(strategy)
    before = assert_present_values(model)
    before.float().square().sum().backward()
    assert_present_values(model)  # a second batch of the same step
    CHANGES[change](model)
    assert not torch.equal(assert_present_values(model), before)


@pytest.mark.parametrize("strategy", ["lora", "qlora"])
def test_an_update_of_data_by_hand_after_backward_is_used(strategy: str) -> None:
    model = network(strategy)
    for _ in range(3):
        out = assert_present_values(model)
        out.float().square().sum().backward()
        for p in trained(model):
            p.data.sub_(0.1 * p.grad)  # raises no version and calls no optimizer
            p.grad = None


@every_strategy
def test_averaged_weights_written_for_a_validation_are_used_and_taken_back(strategy: str) -> None:
    model = network(strategy)
    training = assert_present_values(model)
    kept = [p.detach().clone() for p in trained(model)]
    model.eval()
    for p in trained(model):
        p.data.copy_(2 * p.data)
    with torch.no_grad():
        validation = model(fed())
    for p, old in zip(trained(model), kept, strict=True):
        p.data.copy_(old)
    assert not torch.equal(validation, training)
    assert torch.equal(assert_present_values(model.train()), training)


@every_strategy
def test_a_call_between_forward_and_backward_changes_no_gradient(strategy: str) -> None:
    model, same = network(strategy), network(strategy)
    upstream = torch.ones(6, 8, dtype=torch.bfloat16)
    first, second = model(fed()), model(2 * fed())
    first.backward(upstream)  # the next call computes casts and gains again
    model(fed())
    second.backward(upstream)
    same(fed()).backward(upstream)
    same(2 * fed()).backward(upstream)
    for p, expected in zip(trained(model), trained(same), strict=True):
        assert torch.equal(p.grad, expected.grad)


@every_strategy
def test_a_change_between_forward_and_backward_is_reported(strategy: str) -> None:
    model = network(strategy)
    out = model(fed())
    in_place(model)
    model(fed())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
@every_strategy
def test_checkpointing_a_network_changes_no_bit(strategy: str, use_reentrant: bool) -> None:
    def gradients(checkpointed: bool) -> list[Tensor]:
        model, found = network(strategy), []
        optimizer = torch.optim.SGD(trained(model), lr=0.1)
        for _ in range(2):
            x = fed().requires_grad_()
            for layer in model:
                x = checkpoint(layer, x, use_reentrant=use_reentrant) if checkpointed else layer(x)
            optimizer.zero_grad()
            x.float().square().sum().backward()
            found += [p.grad.clone() for p in trained(model)]
            optimizer.step()
        return found

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other)


@every_strategy
def test_models_in_one_process_and_copies_do_not_affect_each_other(strategy: str) -> None:
    one, other = network(strategy, seed=0), network(strategy, seed=5)
    copied = copy.deepcopy(one)
    stream = io.BytesIO()
    torch.save(one, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    models = [one, other, copied, loaded]
    for model in models:
        assert_present_values(model)
        assert model[0].layer_group.layers() == list(adapted_layers(model).values())
    before = [model(fed()) for model in models]
    assert torch.equal(before[0], before[2])
    assert torch.equal(before[0], before[3])
    before[0].sum().backward()
    torch.optim.SGD(trained(one), lr=0.1).step()
    for model, old in zip(models, before, strict=True):
        assert torch.equal(assert_present_values(model), old) == (model is not one)
    alone = copy.deepcopy(one[1])
    assert alone.layer_group.layers() == [alone]  # a copy of one layer copies no other layer


def test_a_merged_layer_leaves_its_group() -> None:
    model = network("lora")
    group = model[0].layer_group
    LoRA().merge(model)
    assert group.layers() == []


@pytest.mark.parametrize(("strategy", "operations"), [("lora", 1), ("qlora", 1), ("dora", 2)])
def test_one_operation_casts_the_factors_of_all_layers(strategy: str, operations: int) -> None:
    model = network(strategy).to("meta")
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    for _ in range(2):
        with Launches() as launches:
            out = model(fed().to("meta"))
            model(fed().to("meta"))
        assert launches.names["_foreach_copy_"] == operations  # DoRA's magnitudes are copied to be divided
        out.sum().backward()
        optimizer.step()


@every_strategy
def test_nothing_is_kept_where_no_cast_is_needed_or_no_training_follows(strategy: str) -> None:
    model = network(strategy)
    with torch.no_grad():
        model(fed())
    model.eval()(fed())
    assert all(layer._prepared is None for layer in adapted_layers(model).values())
    wide = network(strategy, torch.float32)
    assert_present_values(wide, fed(torch.float32))
    for layer in adapted_layers(wide).values():
        assert layer._prepared is None or layer._prepared.A is None


def test_norms_of_many_layers_equal_those_of_each_layer() -> None:
    model = network("dora", torch.float32)
    model(fed(torch.float32))
    first, *equal, last = adapted_layers(model).values()
    assert [layer._norm._base is None for layer in (first, *equal, last)] == [True, False, False, True]
    for layer in (first, *equal, last):
        torch.testing.assert_close(layer._norm, layer.compute_norm(), rtol=1e-6, atol=0)
        assert not layer.norm_is_stale()


def test_norms_are_computed_in_parts_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from litpeft.adapters.layers import group

    expected, model = network("dora")(fed()), network("dora")
    calls: list[int] = []
    real = group.norm_from_cross
    monkeypatch.setattr(group, "AT_ONCE", 1)
    monkeypatch.setattr(group, "norm_from_cross", lambda *given: calls.append(len(given[1])) or real(*given))
    torch.testing.assert_close(model(fed()), expected)
    assert calls == [1, 1]


def test_a_memory_report_makes_no_casts_for_compiled_layers() -> None:
    model = network("lora")
    model[1].compile(backend="eager")
    assert len(LoRA().roles(model)["adapter_weights"]) == len(trained(model))


@every_strategy
def test_a_memory_report_counts_what_is_kept_before_the_first_step(strategy: str) -> None:
    model = network(strategy)
    roles = STRATEGIES[strategy](rank=4).roles(model)
    counted = {tensor.data_ptr() for tensor in roles["adapter_weights"]}
    model(fed()).sum().backward()
    for layer in adapted_layers(model).values():
        known = layer._prepared
        assert {known.A.data_ptr(), known.B.data_ptr()} <= counted
        assert known.gain is None or known.gain.data_ptr() in counted


@pytest.mark.parametrize("strategy", ["lora", "dora"])
def test_a_layer_may_be_called_in_another_dtype_than_the_layers_beside_it(strategy: str) -> None:
    """As a head in fp32 beside a body in bf16: each keeps its own casts, whatever order they are called in."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)}).bfloat16()
    STRATEGIES[strategy](rank=4, targets="all-linear").apply(model)
    disturb(model)
    model.train()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    for name, dtype in (
        ("a", torch.bfloat16), ("b", torch.float32), ("a", torch.float32), ("b", torch.bfloat16), ("a", torch.bfloat16),
    ):  # fmt: skip
        assert assert_present_values(model[name], x.to(dtype)).dtype == dtype
        with torch.no_grad():
            for parameter in trained(model):
                parameter.mul_(1.1)


@pytest.mark.parametrize(
    ("strategy", "dtype"), [("lora", torch.bfloat16), ("dora", torch.bfloat16), ("dora", torch.float32)]
)
def test_each_step_uses_the_memory_of_the_step_before(strategy: str, dtype: torch.dtype) -> None:
    model = network(strategy, dtype)
    layers = adapted_layers(model).values()
    kept: list[set[int]] = []
    held: list[Tensor] = []  # referenced, so that no address is used twice
    for number in range(3):
        for p in trained(model):
            p.grad = None
        assert_present_values(model, fed(dtype)).float().square().sum().backward()
        norms = {id(layer._norm) for layer in layers if layer.magnitude is not None}
        made = [t for layer in layers for t in layer.cached_tensors(make=False) if id(t) not in norms]
        held += made
        kept.append({t.data_ptr() for t in made})
        torch.optim.SGD(trained(model), lr=0.1 * (1 + number)).step()
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) >= len(layers)
    double = torch.float64 if dtype == torch.float32 else torch.float32
    model.to(double)
    assert_present_values(model, fed(double))  # casts in another dtype do not fit

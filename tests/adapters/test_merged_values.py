"""Values of merged weights and of DoRA's norms, and the model without its adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.layers import adapted_layers
from litpeft.errors import UserError
from tests.adapters.small_models import MODELS, disturb, small
from tests.adapters.test_layers import SCALING, adapted, both_strategies, distance, trained


@both_strategies
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merged_weight_is_the_exact_sum_rounded_once(magnitude: bool, dtype: torch.dtype) -> None:
    layer = trained("linear", magnitude, dtype)
    W, A, B = (tensor.detach().double() for tensor in (layer.weight, layer.lora_A, layer.lora_B))
    exact = W + SCALING * B @ A
    if magnitude:
        exact *= (layer.magnitude.detach().double() / exact.norm(dim=1))[:, None]
    merged = layer.merged().weight
    assert merged.dtype == dtype
    # fp32 sums may fall on the other side of the middle between two numbers, and nowhere else
    differs = merged != exact.to(dtype)
    assert differs.float().mean() < 0.01
    assert ((merged.double() - exact).abs() <= (0.5 + 1e-3) * torch.finfo(dtype).eps * exact.abs()).all()


def test_a_row_of_zeros_stays_one_in_a_merged_weight() -> None:
    """A pruned neuron has no direction, and the norm that DoRA divides by is 0."""
    layer = DoRA(rank=2, targets=["0"]).apply(nn.Sequential(nn.Linear(4, 3)))[0]
    with torch.no_grad():
        layer.weight[1] = layer.magnitude[1] = 0
    expected = layer.weight.clone()
    torch.testing.assert_close(layer.merged().weight, expected)


@both_strategies
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
def test_an_adapter_that_diverged_is_not_merged(magnitude: bool, name: str, value: float) -> None:
    layer = trained("linear", magnitude)
    with torch.no_grad():
        getattr(layer, name)[1, 2] = value
    with pytest.raises(UserError, match="the run diverged and cannot be merged"):
        layer.merged()


@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding", "conv2d grouped"])
def test_the_norms_of_a_layer_that_is_cast_are_those_of_its_rounded_weight(kind: str) -> None:
    layer = trained(kind, magnitude=True).to(torch.bfloat16)
    W, A, B = (tensor.detach().double() for tensor in layer.grouped(layer.matrix()))
    exact = (W + SCALING * B @ A).flatten(0, 1).norm(dim=1)
    assert distance(layer.norm(), exact) < 3e-3
    assert distance(layer.squares, layer.matrix().double().square().flatten(1).sum(1)) < 1e-6


def test_the_norms_follow_a_weight_that_is_moved_to_another_dtype_and_back() -> None:
    layer = adapted(nn.Linear(24, 20).requires_grad_(False), magnitude=True)
    fine = layer.squares.clone()
    rounded = layer.to(torch.bfloat16).to(torch.float32).squares
    assert not torch.equal(rounded, fine)
    torch.testing.assert_close(rounded, layer.weight.square().sum(1))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_a_model_without_its_adapter_gives_the_outputs_of_the_base(name: str, kind: type) -> None:
    model, inputs = small(name), MODELS[name].inputs
    with torch.no_grad():
        base = model.eval()(**inputs).logits
    adapter = kind(rank=2, targets=MODELS[name].targets)
    adapter.apply(model, head=MODELS[name].head)
    for layer in adapted_layers(model).values():
        disturb(layer)
    with torch.no_grad():
        trained_outputs = model.eval()(**inputs).logits
        with adapter.switched_off(model):
            found = model(**inputs).logits
        after = model(**inputs).logits
    torch.testing.assert_close(found, base, rtol=1e-5, atol=1e-5)
    assert distance(trained_outputs, base) > 1e-2
    assert torch.equal(after, trained_outputs)


@both_strategies
def test_the_gradient_of_a_trained_bias_is_not_rounded_to_the_compute_dtype(magnitude: bool) -> None:
    layer = trained("linear", magnitude, torch.bfloat16)
    layer.bias = nn.Parameter(layer.bias.detach().float())
    out = layer(torch.randn(300, 24, dtype=torch.bfloat16))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    out.backward(upstream)
    torch.testing.assert_close(layer.bias.grad.double(), upstream.double().sum(0), rtol=1e-5, atol=1e-5)

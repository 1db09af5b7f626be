"""Eight-bit layers against bitsandbytes' `Linear8bitLt`, and adapters on them against plain autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.layers import AdaptedQuantisedLinear, LowRank
from litpeft.adapters.linear4bit import bitsandbytes
from litpeft.adapters.linear8bit import Linear8bit

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = [(48, 96), (5, 7), (300, 64), (1, 3)]  # (out, in)


def linear(shape: tuple[int, int] = (48, 96), dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(shape[1], shape[0]).to(dtype).requires_grad_(False)


def theirs(layer: nn.Linear, threshold: float = 6.0) -> Any:
    """Return bitsandbytes' layer in evaluation mode: in training mode, on a CPU, it does not quantise the input."""
    out_features, in_features = layer.weight.shape
    new = bitsandbytes().nn.Linear8bitLt(in_features, out_features, has_fp16_weights=False, threshold=threshold)
    new.load_state_dict(layer.state_dict())
    new = new.to("cpu").eval()
    new.bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
    return new


def inputs(width: int, dtype: torch.dtype) -> Tensor:
    """Return (2, 7, width) with outliers above the threshold in some rows."""
    torch.manual_seed(1)
    x = torch.randn(2, 7, width)
    x[0, 1, 0], x[1, 2, width - 1] = 9.0, -30.0
    return x.to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
@both_dtypes
def test_codes_outputs_and_gradients_equal_bitsandbytes_bit_by_bit(
    dtype: torch.dtype, threshold: float, shape: tuple[int, int]
) -> None:
    plain = linear(shape, dtype)
    reference, layer = theirs(plain, threshold), Linear8bit.from_linear(plain, threshold=threshold)
    x = inputs(shape[1], dtype)
    x_of_theirs, x_of_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, found = reference(x_of_theirs), layer(x_of_ours)
    assert torch.equal(found, expected)
    torch.manual_seed(2)
    gradient = torch.randn(expected.shape).to(dtype)
    expected.backward(gradient)
    found.backward(gradient)
    assert torch.equal(x_of_ours.grad, x_of_theirs.grad)
    assert torch.equal(layer.codes, reference.state.CB)
    assert torch.equal(layer.absmax, reference.state.SCB)
    assert layer.stored_bytes == reference.state.CB.nbytes + reference.state.SCB.nbytes == shape[0] * (shape[1] + 4)
    assert torch.equal(Linear8bit.from_bitsandbytes(reference, dtype)(x), found)


def test_in_training_on_a_cpu_bitsandbytes_gives_the_same_gradients() -> None:
    plain = linear()
    x_of_theirs, x_of_ours = (inputs(96, torch.float32).requires_grad_() for _ in range(2))
    theirs(plain).train()(x_of_theirs).square().sum().backward()
    expected = 2 * nn.functional.linear(x_of_ours, Linear8bit.from_linear(plain).weight, plain.bias)
    Linear8bit.from_linear(plain)(x_of_ours).backward(expected.detach())
    assert torch.allclose(x_of_ours.grad, x_of_theirs.grad, rtol=1e-5, atol=1e-5)


def test_outliers_are_not_quantised_and_the_threshold_decides() -> None:
    plain, x = linear(), inputs(96, torch.float32)
    exact = nn.functional.linear(x, Linear8bit.from_linear(plain).weight, plain.bias)
    errors = [float((Linear8bit.from_linear(plain, threshold=t)(x) - exact).abs().max()) for t in (0.0, 6.0, 1e-3)]
    assert errors[0] > 3 * errors[1] > 3 * errors[2]
    assert errors[2] < 1e-5  # every column is an outlier


@both_dtypes
def test_forward_saves_nothing_but_references_to_the_codes(dtype: torch.dtype) -> None:
    layer, saved = Linear8bit.from_linear(linear(dtype=dtype)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(inputs(96, dtype).requires_grad_())
    assert {tensor.data_ptr() for tensor in saved} == {layer.codes.data_ptr(), layer.absmax.data_ptr()}


def test_a_row_of_zeros_stays_zero() -> None:
    plain = linear()
    plain.weight[3] = 0
    layer = Linear8bit.from_linear(plain)
    assert torch.equal(layer.weight[3], torch.zeros(96))
    assert torch.equal(layer(inputs(96, torch.float32))[..., 3], plain.bias[3].expand(2, 7))


def test_a_cast_of_the_model_leaves_codes_and_constants() -> None:
    layer = Linear8bit.from_linear(linear())
    before = layer.codes.clone(), layer.absmax.clone()
    layer.to(torch.bfloat16)
    assert (layer.codes.dtype, layer.absmax.dtype) == (torch.int8, torch.float32)
    assert torch.equal(layer.codes, before[0])
    assert torch.equal(layer.absmax, before[1])
    assert copy.deepcopy(layer).codes.data_ptr() != layer.codes.data_ptr()


def test_a_conv1d_keeps_its_type_when_it_is_merged() -> None:
    torch.manual_seed(0)
    conv = Conv1D(48, 96).requires_grad_(False)  # (in 96, out 48)
    layer = Linear8bit.from_linear(conv)
    assert layer.weight.shape == (48, 96)
    plain = layer.plain()
    assert type(plain) is Conv1D
    assert torch.allclose(plain.weight, conv.weight, atol=float(conv.weight.abs().max()) / 250)


@pytest.mark.parametrize("magnitude", [False, True])
@both_dtypes
def test_an_adapter_adds_its_update_to_the_layer_of_bitsandbytes(dtype: torch.dtype, magnitude: bool) -> None:
    """The oracle computes in plain autograd; the gain m / ‖W + s BA‖ is a constant in backward."""
    base = linear(dtype=dtype)
    layer = AdaptedQuantisedLinear(Linear8bit.from_linear(base), LowRank(4, 1.5, magnitude=magnitude))
    torch.manual_seed(3)
    with torch.no_grad():
        layer.lora_B.normal_()
        if magnitude:
            layer.magnitude.mul_(torch.rand(48) + 0.5)
    reference, x = theirs(base), inputs(96, dtype)
    reference.bias = None
    A, B = (p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B))
    x_of_ours, x_of_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = reference(x_of_theirs) + 1.5 * (x_of_theirs @ A.T.to(dtype)) @ B.T.to(dtype)
    m = None
    if magnitude:
        m = layer.magnitude.detach().clone().requires_grad_()
        norm = (layer.base.weight.double() + 1.5 * B.double() @ A.double()).norm(dim=1).detach().float()
        expected = (expected * (m / norm)).to(dtype)
    expected = expected + base.bias
    found = layer(x_of_ours)
    tolerance = 2e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))
    torch.manual_seed(4)
    gradient = torch.randn(expected.shape).to(dtype)
    found.backward(gradient)
    expected.backward(gradient)
    pairs = [(layer.lora_A.grad, A.grad), (layer.lora_B.grad, B.grad), (x_of_ours.grad, x_of_theirs.grad)]
    for mine, other in [*pairs, *([(layer.magnitude.grad, m.grad)] if magnitude else [])]:
        assert torch.allclose(mine, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))
    merged = layer.merged()
    assert type(merged) is nn.Linear
    exact = layer.base.weight.float() + 1.5 * layer.lora_B @ layer.lora_A
    exact = exact * (layer.magnitude / exact.norm(dim=1))[:, None] if magnitude else exact
    assert torch.allclose(merged.weight.float(), exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)

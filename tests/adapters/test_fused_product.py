"""bitsandbytes' fused four-bit product in evaluation, against the dequantised weight; on a CPU by its CPU kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from litpeft.adapters import linear4bit
from litpeft.adapters.layers import AdaptedQuantisedLinear, LowRank
from litpeft.adapters.linear4bit import Linear4bit


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Use the fused product on a CPU too, and return the shapes of its inputs."""
    shapes: list[tuple[int, ...]] = []
    product = Linear4bit._product

    def spy(self: Linear4bit, kernel: object, x: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(tuple(x.shape))
        return product(self, kernel, x, bias)

    monkeypatch.setattr(linear4bit, "FUSED", ("cpu",))
    monkeypatch.setattr(Linear4bit, "_product", spy)
    return shapes


@pytest.mark.parametrize("adapter", ["frozen", "lora", "dora"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_evaluation_equals_the_dequantised_weight(
    quant_type: str, double_quant: bool, bias: bool, adapter: str, calls: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    base = Linear4bit.from_linear(nn.Linear(128, 96, bias=bias), quant_type=quant_type, double_quant=double_quant)
    layer, W, b = base, base.weight.double(), base.bias
    x = torch.randn(2, 3, 128)
    expected = x.double() @ W.T
    if adapter != "frozen":
        layer = AdaptedQuantisedLinear(base, LowRank(4, 0.5, 0.1, magnitude=adapter == "dora"))
        nn.init.normal_(layer.lora_B)
        A, B = layer.lora_A.detach().double(), layer.lora_B.detach().double()
        expected = expected + 0.5 * x.double() @ A.T @ B.T
    if adapter == "dora":
        expected = expected * layer.magnitude.detach().double() / (W + 0.5 * B @ A).norm(dim=1)
    expected = expected if b is None else expected + b.detach().double()
    layer.eval()
    with torch.no_grad():
        layer(x)  # DoRA's norm, which dequantises the weight, is computed once
        calls.clear()
        out = layer(x)
    assert len(calls) == 1
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    layer(x)  # with gradients
    with torch.no_grad():
        layer.train()(x)  # reentrant checkpointing repeats this forward with gradients
    assert len(calls) == 1


def test_widths_between_blocks_are_dequantised(calls: list[tuple[int, ...]]) -> None:
    base = Linear4bit.from_linear(nn.Linear(96, 64)).eval()
    with torch.no_grad():
        torch.testing.assert_close(base(torch.eye(96)), base.weight.T + base.bias)
    assert not calls

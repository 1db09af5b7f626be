"""A layer that another package has quantised, here a stand-in: what it holds, its products, and what it is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from litpeft.adapters.packaged_linear import PackagedLinear, dequantiser
from litpeft.adapters.quantised_model import quantisation_name, quantised_layers


class HQQLinear(nn.Module):
    """A layer with the names of the package hqq, which keeps its scales in nested dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 4, 3
        self.register_buffer("codes", torch.arange(12).view(3, 4))
        self.meta = {"scale": torch.full((3, 1), 0.5), "inner": {"zero": torch.full((3,), 2.0), "nbits": 8}}
        self.bias = nn.Parameter(torch.ones(3), requires_grad=False)
        self.moved: list[torch.device] = []

    def dequantize(self) -> Tensor:
        return (self.codes - 2) * self.meta["scale"]

    def to(self, device: torch.device) -> HQQLinear:
        self.moved.append(device)
        return self


HQQLinear.__module__ = "hqq.core.quantize"
WEIGHT = (torch.arange(12.0).view(3, 4) - 2) / 2


def packaged() -> PackagedLinear:
    return PackagedLinear.from_package(HQQLinear(), torch.float32)


def test_it_computes_with_the_dequantised_weight_and_passes_a_gradient() -> None:
    layer, x = packaged(), torch.randn(5, 4, requires_grad=True)
    torch.testing.assert_close(layer(x), x @ WEIGHT.T + 1)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, WEIGHT.sum(0).expand(5, 4))
    torch.testing.assert_close(layer.plain().weight, WEIGHT)
    assert layer.layer.bias is None  # the bias is added once


def test_it_holds_the_codes_and_the_constants_of_every_depth() -> None:
    layer = packaged()
    assert [tensor.nbytes for tensor in layer.held()] == [12 * 8, 3 * 4, 3 * 4]
    assert layer.held()[0] is layer.layer.codes
    assert [tensor.nbytes for tensor in layer.constants()] == [12, 12]
    assert (layer.stored, layer.kind) == ((), "hqq")
    assert layer.extra_repr().endswith(", hqq")
    model = nn.Sequential(layer)
    assert quantisation_name(model) == "hqq"
    assert quantised_layers(model) == [layer]
    assert [name for name, _ in model.named_modules()] == ["", "0"]  # the package's layer is no target


def test_a_cast_of_the_model_leaves_the_codes_and_a_move_takes_them_along() -> None:
    layer = packaged()
    layer.to(torch.bfloat16)
    assert (layer.layer.codes.dtype, layer.bias.dtype, layer.layer.moved) == (torch.int64, torch.bfloat16, [])
    layer.to("meta")
    assert layer.layer.moved == [torch.device("meta")]


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Embedding(2, 2), nn.ReLU()])
def test_other_layers_are_not_dequantised(layer: nn.Module) -> None:
    assert dequantiser(layer) is None

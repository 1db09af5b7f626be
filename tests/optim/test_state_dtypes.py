"""An optimizer is restored bit by bit, whatever the dtypes of its state and of the parameters."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from litpeft.optim import build_optimizer

FACTORIES = {
    "Adafactor": partial(Adafactor, lr=0.01, beta1=0.9, relative_step=False, scale_parameter=False),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, fused=True),
}
DRAW = torch.Generator().manual_seed(0)
START = [torch.randn(64, 32, generator=DRAW), torch.randn(64, generator=DRAW)]
GRADIENTS = [[torch.randn(tensor.shape, generator=DRAW) for tensor in START] for _ in range(6)]


def stepped(optimizer: Optimizer, gradients: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Make steps with these gradients; return the parameters and the tensors of their state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for gradient in gradients:
        for parameter, values in zip(parameters, gradient, strict=True):
            parameter.grad = values.to(parameter.dtype)
        optimizer.step()
    states = (value for parameter in parameters for value in optimizer.state[parameter].values())
    return [*(parameter.detach() for parameter in parameters), *(each for each in states if torch.is_tensor(each))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", FACTORIES)
def test_a_restored_optimizer_goes_on_as_if_it_had_not_stopped(name: str, dtype: torch.dtype) -> None:
    def made(values: list[torch.Tensor]) -> Optimizer:
        parameters = [torch.nn.Parameter(tensor.to(dtype, copy=True)) for tensor in values]
        return build_optimizer(FACTORIES[name], [{"params": parameters}], 1e-3)

    whole = stepped(made(START), GRADIENTS)
    first = made(START)
    values, file = stepped(first, GRADIENTS[:3])[:2], io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved: dict[str, Any] = torch.load(file, weights_only=True)
    second = made(values)
    second.load_state_dict(saved)
    saved["state"].clear()  # the optimizer holds copies
    resumed = stepped(second, GRADIENTS[3:])
    assert [tensor.dtype for tensor in resumed] == [tensor.dtype for tensor in whole]
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))

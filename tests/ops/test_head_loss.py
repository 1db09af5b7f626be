"""The loss through a large output layer, with logits as large as some models have."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from litpeft.ops import head_loss as module
from litpeft.ops.head_loss import head_loss


@pytest.mark.parametrize("rows", [1, 5, 23])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_loss_and_gradients_equal_torch_in_chunks_of_any_size(
    scale: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 50 * rows)
    torch.manual_seed(0)
    head = nn.Linear(16, 50)
    labels = torch.randint(50, (23,))
    found = []
    for loss_of in (
        lambda hidden: head_loss(hidden, labels, head, 50),
        lambda hidden: F.cross_entropy(head(hidden), labels, reduction="sum"),
    ):
        hidden = (scale * torch.randn(23, 16, generator=torch.Generator().manual_seed(1))).requires_grad_()
        head.zero_grad()
        loss = loss_of(hidden)
        loss.backward()
        found.append([loss.detach(), hidden.grad, head.weight.grad.clone(), head.bias.grad.clone()])
    assert found[0][0].isfinite()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(head_loss(hidden, labels, head, 50), found[1][0], rtol=1e-4, atol=1e-4)

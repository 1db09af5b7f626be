"""Cross-entropy through a large output layer without ever holding all of its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 1 << 23  # logits that are held at once: 32 MiB in fp32


def head_loss(hidden: Tensor, labels: Tensor, head: nn.Module, vocabulary: int) -> Tensor:
    """The sum of the cross-entropies of `head(hidden)` and `labels`, in fp32, a chunk of positions at a time.

    Where a gradient is needed it is worked out chunk by chunk in forward, by the head's own backward, so that nothing
    of the size positions x vocabulary outlives its chunk and nothing is computed twice.

    Args:
        hidden: (N, width), what the head is fed with at the positions that carry a label.
        labels: (N), ids of tokens.
        head: from (..., width) to (..., vocabulary).
        vocabulary: its number of outputs, by which the chunk is chosen.

    Returns:
        A scalar.
    """
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    return _HeadLoss.apply(hidden, labels, head, max(1, CHUNK // vocabulary), *trained)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: nn.Module, rows: int, *trained: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        if not any(ctx.needs_input_grad):
            for part, wanted in zip(hidden.split(rows), labels.split(rows), strict=True):
                total += F.cross_entropy(head(part).float(), wanted, reduction="sum")
            return total
        d_hidden = torch.empty_like(hidden)
        d_trained = [torch.zeros_like(parameter) for parameter in trained]
        for part, wanted, into in zip(hidden.split(rows), labels.split(rows), d_hidden.split(rows), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss = F.cross_entropy(head(part).float(), wanted, reduction="sum")
            found, *others = torch.autograd.grad(loss, [part, *trained])
            into.copy_(found)
            for kept, more in zip(d_trained, others, strict=True):
                kept += more
            total += loss.detach()
        ctx.save_for_backward(d_hidden, *d_trained)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, *d_trained = (saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return (d_hidden, None, None, None, *d_trained)

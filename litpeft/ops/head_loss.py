"""Cross-entropy through a large output layer without ever holding all of its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from litpeft.ops.row_chunks import by_rows

CHUNK = 1 << 23  # logits that are held at once; on a GPU four times as many, where each operation takes its launch


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
    if not torch.is_grad_enabled():  # which a Function is not told of: it would work out gradients for nothing
        hidden, trained = hidden.detach(), []
    most = CHUNK if hidden.device.type == "cpu" else 4 * CHUNK
    return _HeadLoss.apply(hidden, labels, head, max(1, most // vocabulary), *trained)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: nn.Module, rows: int, *trained: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        if not any(ctx.needs_input_grad):
            for part, wanted in zip(hidden.split(rows), labels.split(rows), strict=True):
                total += _cross_entropy(head(part), wanted)
            return total
        d_hidden = torch.empty_like(hidden)
        d_trained = [torch.zeros_like(parameter) for parameter in trained]
        for part, wanted, into in zip(hidden.split(rows), labels.split(rows), d_hidden.split(rows), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                logits = head(part)
            gradient = torch.empty_like(logits)
            total += _cross_entropy(logits.detach(), wanted, gradient)
            found, *others = torch.autograd.grad(logits, [part, *trained], gradient)
            into.copy_(found)
            for kept, more in zip(d_trained, others, strict=True):
                kept += more
        ctx.save_for_backward(d_hidden, *d_trained)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, *d_trained = (saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return (d_hidden, None, None, None, *d_trained)


def _cross_entropy(logits: Tensor, labels: Tensor, gradient: Tensor | None = None) -> Tensor:
    """The sum over rows, in fp32; the gradient by the logits, softmax minus one-hot, is written where it is wanted."""
    total = logits.new_zeros((), dtype=torch.float32)
    for some, at, *into in by_rows(logits, labels[:, None], *([] if gradient is None else [gradient])):
        wide = some.to(torch.float32, copy=True)
        wide -= wide.amax(-1, keepdim=True)
        picked = wide.gather(-1, at)
        sums = wide.exp_().sum(-1, keepdim=True)
        total += (sums.log() - picked).sum()
        if into:
            wide /= sums
            into[0].copy_(wide.scatter_add_(-1, at, torch.full_like(picked, -1)))
    return total

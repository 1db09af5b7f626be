"""Cross-entropy through a large output layer, chunk by chunk, so that the full logits are never in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from litpeft.ops.row_chunks import split_rows

CHUNK = 1 << 23  # logits per chunk on a CPU; a GPU uses four times as many, because of its kernel launches


def head_loss(hidden: Tensor, labels: Tensor, head: nn.Module, vocabulary: int) -> Tensor:
    """Return the sum of the cross-entropies of `head(hidden)` and `labels`, an fp32 scalar.

    If a gradient is needed, forward computes it chunk by chunk with the head's own backward. So no tensor of size
    (N, vocabulary) outlives its chunk, and nothing is computed twice.

    Args:
        hidden: (N, width), input of the head at the positions with loss.
        labels: (N) int64, token ids.
        head: output layer, from (..., width) to (..., vocabulary).
        vocabulary: number of logits per position; sets the chunk size.
    """
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if not torch.is_grad_enabled():  # a Function does not see this mode and would compute gradients in vain
        hidden, trained = hidden.detach(), []
    chunk = CHUNK if hidden.device.type == "cpu" else 4 * CHUNK
    return _HeadLoss.apply(hidden, labels, head, max(1, chunk // vocabulary), *trained)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: nn.Module, rows: int, *trained: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        if not any(ctx.needs_input_grad):
            for part, targets in zip(hidden.split(rows), labels.split(rows), strict=True):
                total += _cross_entropy(head(part), targets)
            return total
        d_hidden = torch.empty_like(hidden)
        d_trained = [torch.zeros_like(parameter) for parameter in trained]
        for part, targets, d_part in zip(hidden.split(rows), labels.split(rows), d_hidden.split(rows), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                logits = head(part)
            gradient = torch.empty_like(logits)
            total += _cross_entropy(logits.detach(), targets, gradient)
            d_hidden_part, *d_trained_part = torch.autograd.grad(logits, [part, *trained], gradient)
            d_part.copy_(d_hidden_part)
            for accumulated, new in zip(d_trained, d_trained_part, strict=True):
                accumulated += new
        ctx.save_for_backward(d_hidden, *d_trained)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, *d_trained = (saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return (d_hidden, None, None, None, *d_trained)


def _cross_entropy(logits: Tensor, labels: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Return the sum over rows in fp32; write the gradient by the logits (softmax - one-hot) into `gradient`."""
    total = logits.new_zeros((), dtype=torch.float32)
    for part, targets, *out in split_rows(logits, labels[:, None], *([] if gradient is None else [gradient])):
        wide = part.to(torch.float32, copy=True)
        wide -= wide.amax(-1, keepdim=True)
        picked = wide.gather(-1, targets)
        sums = wide.exp_().sum(-1, keepdim=True)
        total += (sums.log() - picked).sum()
        if out:
            wide /= sums
            out[0].copy_(wide.scatter_add_(-1, targets, torch.full_like(picked, -1)))
    return total

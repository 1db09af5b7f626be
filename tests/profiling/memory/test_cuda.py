"""CUDA's choices, made for tensors without numbers: what they keep, against shapes and against a CPU's own autocast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from litpeft.profiling.memory import MemoryTracker
from litpeft.profiling.memory.cuda import cuda_choices

HEADS, TOKENS, HEAD = 4, 512, 64


def kept(dtype: torch.dtype, groups: int, mask: Tensor | None = None) -> int:
    """Bytes that attention keeps for backward beside its arguments."""
    query, key = (torch.empty(1, n, TOKENS, HEAD, dtype=dtype, device="meta") for n in (HEADS, groups))
    query.requires_grad_()
    tracker = MemoryTracker(torch.device("meta"))
    tracker.label([query, key], "base_weights")
    with cuda_choices(), tracker:
        out = F.scaled_dot_product_attention(query, key, key, mask, is_causal=mask is None, enable_gqa=groups != HEADS)
    assert out.shape == query.shape
    return tracker.peak(tracker.operations).split["activations"]


def test_attention_in_bf16_or_with_all_heads_keeps_no_square() -> None:
    out = HEADS * TOKENS * HEAD
    for groups in (HEADS, 1):
        assert 2 * out < kept(torch.bfloat16, groups) < 2.2 * out  # its result, and a number a row
    assert 4 * out < kept(torch.float32, HEADS) < 4.2 * out


def test_attention_of_grouped_heads_in_fp32_keeps_the_square_of_the_tokens() -> None:
    """Neither the flash kernel nor the memory-efficient one takes it: docs of scaled_dot_product_attention, GQA."""
    square = 4 * HEADS * TOKENS**2
    assert square < kept(torch.float32, 1) < 1.6 * square


A = torch.empty(16, 16, device="meta")
PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda a: a @ a,
    "addmm": lambda a: torch.addmm(a[0], a, a),
    "bmm": lambda a: torch.bmm(a[None], a[None]),
    "baddbmm": lambda a: torch.baddbmm(a[None], a[None], a[None]),
    "einsum": lambda a: torch.einsum("ij,jk->ik", a, a),
    "linear": lambda a: F.linear(a, a, a[0]),
    "conv2d": lambda a: F.conv2d(a[None, :, :, None], a[..., None, None]),
    "attention": lambda a: F.scaled_dot_product_attention(a[None, None], a[None, None], a[None, None]),
}
WIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "pow": lambda a: torch.pow(a, 3.0),
    "rsqrt": lambda a: a.rsqrt(),
    "softmax": lambda a: a.softmax(-1),
    "log_softmax": lambda a: a.log_softmax(-1),
    "layer_norm": lambda a: F.layer_norm(a, (16,)),
    "mse_loss": lambda a: F.mse_loss(a, a),
    "cross_entropy": lambda a: F.cross_entropy(a, torch.zeros(16, dtype=torch.int64, device="meta")),
}
ALIKE: dict[str, Callable[[Tensor], Tensor]] = {"add": lambda a: a + a, "silu": F.silu, "mean": lambda a: a.mean()}


@pytest.mark.parametrize("name", [*PRODUCTS, *WIDE, *ALIKE])
def test_autocast_is_that_of_cuda(name: str) -> None:
    operation = (PRODUCTS | WIDE | ALIKE)[name]
    for given in (torch.float32, torch.bfloat16):
        expected = torch.bfloat16 if name in PRODUCTS else torch.float32 if name in WIDE else given
        with cuda_choices():
            with torch.autocast("cpu", torch.bfloat16):
                assert operation(A.to(given)).dtype == expected
                with torch.autocast("cpu", enabled=False):
                    assert operation(A.to(given)).dtype == given
            assert operation(A.to(given)).dtype == given


def test_a_cpus_own_rules_are_back_afterwards() -> None:
    ones = torch.ones(2, 2)
    with cuda_choices():
        pass
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.addmm(ones[0], ones, ones).dtype == torch.bfloat16
        assert torch.pow(ones.bfloat16(), 3.0).dtype == torch.bfloat16  # which CUDA would not


class Stack(nn.Module):
    """Products and nothing else that either list names."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            layer for _ in range(4) for layer in (Conv1D(64, 64), nn.Linear(64, 64, bias=False))
        )
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
            x = F.silu(x)
        return x


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("graded", [False, True])
def test_copies_of_weights_live_as_long_as_in_torchs_own_autocast(checkpointed: bool, graded: bool) -> None:
    """A copy is made once, also where no gradient is wanted, and kept to the end of autocast."""
    found = {}
    for device in ("cpu", "meta"):
        with torch.device(device):
            model, x = Stack(checkpointed), torch.ones(8, 64)
        tracker = MemoryTracker(torch.device(device))
        tracker.follow(model, {"base_weights": model.parameters()})
        with cuda_choices() if device == "meta" else nullcontext(), tracker:
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    model(x)
                if graded:
                    loss = model(x).float().sum()
            if graded:
                loss.backward()
        found[device] = tracker.peak().bytes
    copies = sum(p.numel() for p in model.parameters() if p.dim() == 2) * 2
    assert found["meta"] == pytest.approx(found["cpu"], rel=0.002)
    assert found["meta"] > sum(p.nbytes for p in model.parameters()) + copies

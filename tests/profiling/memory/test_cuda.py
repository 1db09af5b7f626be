"""CUDA's kernels and autocast simulated on meta tensors: their memory, compared with shapes and with the CPU's autocast."""

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


def saved_bytes(dtype: torch.dtype, groups: int, mask: Tensor | None = None) -> int:
    """Return the bytes that attention saves for backward, without its arguments."""
    query, key = (torch.empty(1, n, TOKENS, HEAD, dtype=dtype, device="meta") for n in (HEADS, groups))
    query.requires_grad_()
    tracker = MemoryTracker(torch.device("meta"))
    tracker.label([query, key], "base_weights")
    with cuda_choices(), tracker:
        out = F.scaled_dot_product_attention(query, key, key, mask, is_causal=mask is None, enable_gqa=groups != HEADS)
    assert out.shape == query.shape
    return tracker.peak(tracker.operations).split["activations"]


def test_attention_in_bf16_or_without_grouped_heads_saves_no_scores() -> None:
    out = HEADS * TOKENS * HEAD
    for groups in (HEADS, 1):
        assert 2 * out < saved_bytes(torch.bfloat16, groups) < 2.2 * out  # the output, and one number per row
    assert 4 * out < saved_bytes(torch.float32, HEADS) < 4.2 * out


def test_grouped_query_attention_in_fp32_saves_the_scores() -> None:
    """Neither the flash nor the memory-efficient kernel supports it: docs of scaled_dot_product_attention, GQA."""
    square = 4 * HEADS * TOKENS**2
    assert square < saved_bytes(torch.float32, 1) < 1.6 * square


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
IN_FP32: dict[str, Callable[[Tensor], Tensor]] = {
    "pow": lambda a: torch.pow(a, 3.0),
    "rsqrt": lambda a: a.rsqrt(),
    "softmax": lambda a: a.softmax(-1),
    "log_softmax": lambda a: a.log_softmax(-1),
    "layer_norm": lambda a: F.layer_norm(a, (16,)),
    "mse_loss": lambda a: F.mse_loss(a, a),
    "cross_entropy": lambda a: F.cross_entropy(a, torch.zeros(16, dtype=torch.int64, device="meta")),
}
UNCHANGED: dict[str, Callable[[Tensor], Tensor]] = {"add": lambda a: a + a, "silu": F.silu, "mean": lambda a: a.mean()}


@pytest.mark.parametrize("name", [*PRODUCTS, *IN_FP32, *UNCHANGED])
def test_autocast_uses_the_dtypes_of_cuda(name: str) -> None:
    operation = (PRODUCTS | IN_FP32 | UNCHANGED)[name]
    for dtype in (torch.float32, torch.bfloat16):
        expected = torch.bfloat16 if name in PRODUCTS else torch.float32 if name in IN_FP32 else dtype
        with cuda_choices():
            with torch.autocast("cpu", torch.bfloat16):
                assert operation(A.to(dtype)).dtype == expected
                with torch.autocast("cpu", enabled=False):
                    assert operation(A.to(dtype)).dtype == dtype
            assert operation(A.to(dtype)).dtype == dtype


def test_the_cpus_autocast_rules_are_restored_afterwards() -> None:
    ones = torch.ones(2, 2)
    with cuda_choices():
        pass
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.addmm(ones[0], ones, ones).dtype == torch.bfloat16
        assert torch.pow(ones.bfloat16(), 3.0).dtype == torch.bfloat16  # CUDA would use fp32


class Stack(nn.Module):
    """Matrix products, and SiLU, which autocast does not change."""

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
@pytest.mark.parametrize("with_gradient", [False, True])
def test_cast_weights_live_as_long_as_in_torchs_autocast(checkpointed: bool, with_gradient: bool) -> None:
    """Each weight is cast once, also under no_grad, and the copy is kept until autocast ends."""
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
                if with_gradient:
                    loss = model(x).float().sum()
            if with_gradient:
                loss.backward()
        found[device] = tracker.peak().bytes
    copies = sum(p.numel() for p in model.parameters() if p.dim() == 2) * 2
    assert found["meta"] == pytest.approx(found["cpu"], rel=0.002)
    assert found["meta"] > sum(p.nbytes for p in model.parameters()) + copies

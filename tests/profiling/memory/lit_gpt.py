"""Llama 2 7B as Lit-GPT of October 2023 fine-tuned it, on the meta device, to estimate the memory of its runs.

Rewritten from the sources of that date: Lightning-AI/lit-gpt at and around commit 8641822 (`lit_gpt/model.py`,
`lit_gpt/lora.py`, `finetune/lora.py`), Fabric of Lightning 2.1, bitsandbytes 0.41.1, torch 2.1. Meta tensors have no
values, so only shapes and dtypes matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from litpeft.adapters.linear4bit import bitsandbytes
from litpeft.profiling.memory import MemoryTracker
from litpeft.profiling.memory.allocator import replay
from litpeft.profiling.memory.cuda import WORKSPACES, cuda_choices, prepare_bitsandbytes
from litpeft.profiling.memory.meta_tensors import MetaValues, meta_execution

WIDTH, HEADS, INNER, LAYERS, VOCABULARY = 4096, 32, 11008, 32, 32000  # Llama 2 7B
TOKENS = 1304  # Alpaca's longest example in Llama's tokens: tutorials/resource-tables.md
CHUNK = 128  # positions per call of the head: finetune/lora.py, lm_head_chunk_size


@dataclass(frozen=True)
class Stack:
    """Settings and implementation details of a run; published.yaml gives the source of each."""

    rank: int = 8
    all_layers: bool = False  # LoRA on all linear layers and the head, not only on query and value
    optimizer: str = "AdamW"
    four_bit: bool = False  # nf4 or fp4: half a byte per weight
    rms_norm: str = "bf16"  # its compute dtype, also of the input saved for backward
    keeps_fp32_logits: bool = True  # the fp32 copy of the logits is alive during backward
    pads_with_zeros: bool = True  # LoRA's query and value are padded with zeros by index_copy, which saves its source
    value_is_view: bool = True  # value is a view of the joint query, key and value tensor, and keeps all of it alive
    quantises_head: bool = True
    dequantised_to: str = "float16"  # dtype of a dequantised matrix, before its copy to bf16
    keeps_input: bool = True  # a 4-bit product saves its input, although backward does not need it


class _FourBitProduct(torch.autograd.Function):
    """x Wᵀ with W dequantised in forward and again in backward; the input is saved until the graph is freed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBit) -> Tensor:
        ctx.layer, ctx.saved = layer, x if layer.stack.keeps_input and ctx.needs_input_grad[0] else None
        return F.linear(x, layer.dequantised())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantised(), None


class FourBit(nn.Module):
    """A frozen matrix with half a byte per weight and an fp32 maximum per block of 64."""

    def __init__(self, stack: Stack, inner: int, outer: int) -> None:
        super().__init__()
        self.stack, self.shape = stack, (outer, inner)
        self.register_buffer("codes", torch.empty(inner * outer // 2, dtype=torch.uint8))
        self.register_buffer("absmax", torch.empty(inner * outer // 64, dtype=torch.float32))

    def dequantised(self) -> Tensor:
        return torch.empty(self.shape, dtype=getattr(torch, self.stack.dequantised_to), device="meta").to(
            torch.bfloat16
        )

    def forward(self, x: Tensor) -> Tensor:
        return _FourBitProduct.apply(x, self)


class Linear(nn.Module):
    """A frozen linear layer, optionally with LoRA in bf16."""

    def __init__(self, stack: Stack, inner: int, outer: int, adapted: bool, head: bool = False) -> None:
        super().__init__()
        four_bit = stack.four_bit and (stack.quantises_head or not head)
        self.base = FourBit(stack, inner, outer) if four_bit else nn.Linear(inner, outer, bias=False)
        self.base.requires_grad_(False)
        self.A, self.B = (nn.Parameter(torch.empty(stack.rank, n)) if adapted else None for n in (inner, outer))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if self.A is None:
            return out
        return out + F.dropout(x, 0.05) @ self.A.t() @ self.B * 2.0


class QueryKeyValue(nn.Module):
    """Query, key and value in one matrix, with LoRA by a grouped convolution on query and value, or on all three."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack, self.parts = stack, 3 if stack.all_layers else 2
        self.base = Linear(stack, WIDTH, 3 * WIDTH, False).base
        self.A = nn.Parameter(torch.empty(self.parts * stack.rank, WIDTH))
        self.B = nn.Parameter(torch.empty(self.parts * WIDTH, stack.rank))

    def forward(self, x: Tensor) -> Tensor:  # (1, T, width) -> (1, T, 3 width)
        out = self.base(x)
        low_rank = F.linear(F.dropout(x, 0.05), self.A)
        added = F.conv1d(low_rank.mT, self.B[..., None], groups=self.parts).mT
        if self.parts == 2 and self.stack.pads_with_zeros:
            places = torch.empty(2 * WIDTH, dtype=torch.int64, device="meta")
            blank = added.new_zeros(added.shape[1], 3 * WIDTH)
            added = blank.index_copy(1, places, added[0])[None]
        elif self.parts == 2:
            query, value = added.chunk(2, -1)
            added = torch.cat([query, torch.zeros_like(query), value], -1)
        return out + added * 2.0


class RMSNorm(nn.Module):
    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.in_fp32 = stack.rms_norm == "fp32"
        self.weight = nn.Parameter(torch.empty(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        at = x.float() if self.in_fp32 else x
        normal = at * torch.rsqrt((at * at).mean(-1, keepdim=True) + 1e-5)
        return (self.weight * normal).to(x.dtype)


class Block(nn.Module):
    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self.norms = nn.ModuleList(RMSNorm(stack) for _ in range(2))
        self.qkv, self.out = QueryKeyValue(stack), Linear(stack, WIDTH, WIDTH, stack.all_layers)
        self.gate, self.up = (Linear(stack, WIDTH, INNER, stack.all_layers) for _ in range(2))
        self.down = Linear(stack, INNER, WIDTH, stack.all_layers)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x), angles)
        seen = self.norms[1](x)
        return self.down(F.silu(self.gate(seen)) * self.up(seen)) + x

    def attention(self, x: Tensor, angles: Tensor) -> Tensor:
        joint = self.qkv(x).view(1, -1, HEADS, 3, WIDTH // HEADS).permute(0, 2, 3, 1, 4)  # (1, heads, 3, T, head)
        query, key, value = (part[:, :, 0] for part in joint.split(1, dim=2))
        query, key = rotate(query, angles), rotate(key, angles)
        if not self.stack.value_is_view:
            value = value.contiguous()
        del joint
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (1, heads, T, head)
        return self.out(mixed.transpose(1, 2).reshape(1, -1, WIDTH))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Apply rotary embeddings; the angles are fp32, as they are computed again for the longest length.

    The concatenation with the part that is not rotated (here empty) makes the result contiguous by head. So is the
    output of the flash kernel, which is then copied to be contiguous by token.
    """
    one, two = x.chunk(2, -1)
    result = x * angles + torch.cat((-two, one), -1) * angles
    return torch.cat((result.to(x.dtype), x[..., x.shape[-1] :]), -1)


class Llama(nn.Module):
    def __init__(self, stack: Stack, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(stack) for _ in range(layers))
        self.norm = RMSNorm(stack)
        self.head = Linear(stack, WIDTH, VOCABULARY, stack.all_layers, head=True)

    def forward(self, ids: Tensor) -> list[Tensor]:
        angles = torch.empty(ids.shape[1], WIDTH // HEADS, dtype=torch.float32, device="meta")
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, angles)
        return [self.head(part) for part in self.norm(x).split(CHUNK, dim=1)]


def loss_of(logits: list[Tensor], ids: Tensor) -> Tensor:
    """Return the loss, chunk by chunk, without the last position: `lit_gpt/utils.py`, chunked_cross_entropy."""
    logits = [*logits[:-1], logits[-1][:, :-1]]
    pairs = zip(logits, ids[0, 1:].split(CHUNK), strict=True)
    return torch.cat([F.cross_entropy(some[0].float(), at, reduction="none") for some, at in pairs]).mean()


@cache
def peak(stack: Stack, stage: str = "first", layers: int = LAYERS) -> float:
    """Return the highest allocated memory of a step with the longest example, in GB (1e9 bytes).

    Args:
        stack: settings and implementation details.
        stage: `first`: the first step, before gradients and states exist, with the longest example
            (`finetune/lora.py`, get_batch); `later`: a later step with it, while gradients are accumulated.
        layers: number of layers.
    """
    with torch.device("meta"), meta_execution(MetaValues()):
        model = Llama(stack, layers).bfloat16()
        for layer in (module for module in model.modules() if isinstance(module, FourBit)):
            layer.absmax = layer.absmax.float()
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [t for t in (*model.parameters(), *model.buffers()) if not t.requires_grad]
    optimizer = optimizer_of(stack, trained)
    tracker = MemoryTracker(torch.device("meta"))
    with cuda_choices(), meta_execution(MetaValues()):
        if stage == "later":
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
        states = tree_leaves(list(optimizer.state.values()))
        tracker.label([state for state in states if isinstance(state, Tensor)], "optimizer_state")
        tracker.follow(model, {"base_weights": frozen, "adapter_weights": trained})
        ids = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
        with tracker:
            logits = model(ids)
            if stack.keeps_fp32_logits:
                logits = [part.float() for part in logits]
            loss = loss_of(logits, ids)
            if not stack.keeps_fp32_logits:
                del logits
            loss.backward()
    return float(replay(tracker.events(), WORKSPACES).allocated.max() / 1e9)


def optimizer_of(stack: Stack, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of `finetune/lora.py`: AdamW, or bitsandbytes' paged AdamW for a 4-bit base."""
    if stack.optimizer == "SGD":
        return torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    if not stack.four_bit:
        return torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.01)
    optimizer = bitsandbytes().optim.PagedAdamW(trained, lr=3e-4, weight_decay=0.01)
    prepare_bitsandbytes(optimizer)
    return optimizer

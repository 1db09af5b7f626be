"""The floor of a training step: the time of the products with its frozen weights, and of nothing else."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MM, ADDMM = torch.ops.aten.mm.default, torch.ops.aten.addmm.default
THIN = 16  # a product with a side no wider than this is an adapter's, or a classifier's


class Products(TorchDispatchMode):
    """Counts the products of two matrices that are made within it, by shape, layout and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (MM, ADDMM):
            a, b = args[-2:]
            if min(*a.shape, *b.shape) > THIN:
                self.counts[a.shape, a.stride(), b.shape, b.stride(), a.dtype, a.device] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self) -> float:
        """What the same products take by themselves: the quicker of two rounds of all."""
        rounds = []
        for _ in range(2):
            spent = 0.0
            for (a_shape, a_stride, b_shape, b_stride, dtype, device), count in self.counts.items():
                wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
                a = torch.empty_strided(a_shape, a_stride, dtype=dtype, device=device).normal_()
                b = torch.empty_strided(b_shape, b_stride, dtype=dtype, device=device).normal_()
                torch.mm(a, b)
                wait()
                begun = time.perf_counter()
                for _ in range(count):
                    torch.mm(a, b)
                wait()
                spent += time.perf_counter() - begun
            rounds.append(spent)
        return min(rounds)

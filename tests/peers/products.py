"""Measure a lower bound of a training step's time: its matrix products with the frozen weights alone."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from litpeft.ops.native import frozen_products

MM, ADDMM = torch.ops.aten.mm.default, (torch.ops.aten.addmm.default, torch.ops.aten.addmm_.default)
THIN = 16  # a product with a side up to this width belongs to an adapter or a classifier


class Products(TorchDispatchMode):
    """While active, count matrix products by shape, layout and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __enter__(self) -> Products:
        self.in_c = frozen_products._product  # products in C are not operations of torch

        def counted(x: Tensor, weight: Tensor, transposed: bool, *others: Any, **options: Any) -> None:
            self.count(x, weight.T if transposed else weight)
            self.in_c(x, weight, transposed, *others, **options)

        frozen_products._product = counted
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        frozen_products._product = self.in_c
        super().__exit__(*error)

    def count(self, a: Tensor, b: Tensor) -> None:
        if min(*a.shape, *b.shape) > THIN:
            self.counts[a.shape, a.stride(), b.shape, b.stride(), a.dtype, a.device] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (MM, *ADDMM):
            self.count(*args[-2:])
        return func(*args, **(kwargs or {}))

    def seconds(self) -> float:
        """Return the time of the counted products alone: the faster of two rounds."""
        rounds = []
        for _ in range(2):
            spent = 0.0
            for (a_shape, a_stride, b_shape, b_stride, dtype, device), count in self.counts.items():
                wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
                a = torch.empty_strided(a_shape, a_stride, dtype=dtype, device=device).normal_()
                b = torch.empty_strided(b_shape, b_stride, dtype=dtype, device=device).normal_()
                torch.mm(a, b)
                wait()
                started = time.perf_counter()
                for _ in range(count):
                    torch.mm(a, b)
                wait()
                spent += time.perf_counter() - started
            rounds.append(spent)
        return min(rounds)

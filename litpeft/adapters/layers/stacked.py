"""Stacked linear layers (the experts of a mixture) with an adapter for each expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from litpeft.adapters.experts import Compute, StackedLinear, StackedLinear4bit
from litpeft.adapters.functional import Prepared, ToMatrix, adapted_linear
from litpeft.adapters.gain import norm_from_cross
from litpeft.adapters.layers.base import AdaptedLayer, row_squares
from litpeft.adapters.layers.group import AT_ONCE
from litpeft.adapters.layers.linear import _cast, _cast_transposed


class AdaptedStackedLinear(AdaptedLayer):
    """StackedLinear with an adapter: A (E r, in) and B (E out, r) hold one pair of matrices per expert.

    As a matrix, W is (E out, in), with one group of rows per expert.
    """

    prepares = True

    def take_over(self, base: StackedLinear) -> None:
        self.weight, self.bias, self.transposed = base.weight, None, base.transposed
        self._take_sizes(base)

    def _take_sizes(self, base: StackedLinear | StackedLinear4bit) -> None:
        self.groups = base.experts
        self.in_features, self.out_features = base.in_features, base.out_features

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.groups * self.rank, self.in_features), (self.groups * self.out_features, self.rank)

    def matrix(self) -> Tensor:
        return (self.weight.mT if self.transposed else self.weight).flatten(0, 1)

    def stored_of(self, expert: int) -> tuple[Tensor, ...]:
        """Return the stored tensors of one expert's weight, the arguments of `to_matrix`."""
        return (self.weight[expert],)

    @property
    def to_matrix(self) -> ToMatrix:
        """The function that turns the stored tensors of an expert into its W (out, in)."""
        return _cast_transposed if self.transposed else _cast

    def by_expert(self, bias: Tensor | None) -> Compute:
        """Return the function that computes one expert's adapted layer; `bias` is (E, out) or None."""
        gain = None if self.magnitude is None else self.gain()
        # unbound once: the backward pass then writes all gradients of a parameter in one operation
        A, B, magnitudes, gains, biases = (
            self._split(tensor)
            for tensor in (self.lora_A, self.lora_B, self.magnitude, gain, None if bias is None else bias.flatten())
        )
        dropout, dtype = self.dropout if self.training else 0.0, self._compute_dtype()
        prepared: dict[torch.dtype, list[Prepared | None]] = {}  # compute dtype -> one item per expert

        def compute(x: Tensor, expert: int) -> Tensor:
            wide, stored = x.to(dtype or x.dtype), self.stored_of(expert)
            if wide.dtype not in prepared:
                prepared[wide.dtype] = self._prepared_parts(wide.dtype)
            parts = A[expert], B[expert], self.scaling, dropout, magnitudes[expert], gains[expert], None
            casts = prepared[wide.dtype][expert]
            return adapted_linear(wide, stored, self.to_matrix, biases[expert], *parts, casts).to(x.dtype)

        return compute

    def _split(self, tensor: Tensor | None) -> Sequence[Tensor | None]:
        """Return the parts of the experts of a tensor whose rows belong to the experts in turn."""
        return [None] * self.groups if tensor is None else tensor.unflatten(0, (self.groups, -1)).unbind()

    def _prepared_parts(self, dtype: torch.dtype) -> list[Prepared | None]:
        whole = self.prepared(dtype)
        if whole is None or whole.A is None:
            return [None] * self.groups
        factors = zip(self._split(whole.A), self._split(whole.B), strict=True)
        return [Prepared(A, B, whole=whole) for A, B in factors]

    def _compute_dtype(self) -> torch.dtype | None:
        return None

    def compute_norm(self, matrix: Tensor | None = None) -> Tensor:
        """Return the row norms (E out); a 4-bit weight is dequantised one expert at a time."""
        A, B, squares = (t.unflatten(0, (self.groups, -1)) for t in (self.lora_A, self.lora_B, self.squares))
        most = max(1, AT_ONCE // (A[0].numel() + B[0].numel()))  # experts at once
        cross = (w @ a.T.to(w.dtype) for w, a in zip(self._matrices(), A, strict=True))  # W Aᵀ (out, r) of each expert
        parts = zip(squares.split(most), A.split(most), B.split(most), strict=True)
        norms = [
            norm_from_cross(s.flatten(), torch.stack(list(islice(cross, len(a)))), a, b, self.scaling)
            for s, a, b in parts
        ]
        return torch.cat(norms)

    def squared_norms(self) -> Tensor:
        return torch.cat([row_squares(w) for w in self._matrices()])

    def _matrices(self) -> Iterator[Tensor]:
        """Iterate over the W (out, in) of the experts."""
        for expert in range(self.groups):
            yield self.to_matrix(*self.stored_of(expert), dtype=self.frozen_dtype())

    def plain(self, matrix: Tensor) -> nn.Module:
        stacked = matrix.unflatten(0, (self.groups, -1))
        stored = stacked.mT.contiguous() if self.transposed else stacked
        return StackedLinear(nn.Parameter(stored, requires_grad=False), self.transposed)


class AdaptedStackedLinear4bit(AdaptedStackedLinear):
    """StackedLinear4bit with an adapter. Merging gives the original layer type with dequantised weights."""

    def take_over(self, base: StackedLinear4bit) -> None:
        self.base, self.bias, self.transposed = base, None, base.transposed
        self._take_sizes(base)

    def frozen(self) -> Iterator[Tensor]:
        return self.base.buffers()

    def matrix(self) -> Tensor:
        return self.base.weight.flatten(0, 1)

    weight = property(matrix)

    def stored_of(self, expert: int) -> tuple[Tensor, ...]:
        return self.base.stored_of(expert)

    @property
    def to_matrix(self) -> Callable[..., Tensor]:
        return self.base.to_matrix

    def _compute_dtype(self) -> torch.dtype | None:
        return self.base.compute_dtype

    def frozen_dtype(self) -> torch.dtype:
        return self.base.compute_dtype or self.base.dtype

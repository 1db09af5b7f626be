"""Stacked linear layers (the experts of a mixture) with an adapter for each expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from litpeft.adapters.experts import Compute, StackedLinear, StackedLinear4bit
from litpeft.adapters.functional import ToMatrix, adapted_linear, low_rank_norm
from litpeft.adapters.layers.base import AdaptedLayer, row_squares
from litpeft.adapters.layers.linear import _cast, _cast_transposed


class AdaptedStackedLinear(AdaptedLayer):
    """StackedLinear with an adapter: A (E r, in) and B (E out, r) hold one pair of matrices per expert.

    As a matrix, W is (E out, in), with one group of rows per expert.
    """

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
        norm = None if self.magnitude is None else self.norm()
        # unbound once: the backward pass then writes all gradients of a parameter in one operation
        A, B, magnitudes, norms, biases = (
            [None] * self.groups if tensor is None else tensor.unflatten(0, (self.groups, -1)).unbind()
            for tensor in (self.lora_A, self.lora_B, self.magnitude, norm, None if bias is None else bias.flatten())
        )
        dropout, dtype = self.dropout if self.training else 0.0, self._compute_dtype()

        def compute(x: Tensor, expert: int) -> Tensor:
            wide, stored = x.to(dtype or x.dtype), self.stored_of(expert)
            parts = A[expert], B[expert], self.scaling, dropout, magnitudes[expert], norms[expert]
            return adapted_linear(wide, stored, self.to_matrix, biases[expert], *parts).to(x.dtype)

        return compute

    def _compute_dtype(self) -> torch.dtype | None:
        return None

    def compute_norm(self, matrix: Tensor | None = None) -> Tensor:
        """Return the row norms (E out), one expert at a time: a 4-bit weight is never dequantised as a whole."""
        A, B, squares = (t.unflatten(0, (self.groups, -1)) for t in (self.lora_A, self.lora_B, self.squares))
        norms = [
            low_rank_norm(squares[i], w[None], A[i : i + 1], B[i : i + 1], self.scaling)
            for i, w in enumerate(self._matrices())
        ]
        return torch.cat(norms)

    def squared_norms(self) -> Tensor:
        return torch.cat([row_squares(w) for w in self._matrices()])

    def _matrices(self) -> Iterator[Tensor]:
        """Iterate over the W (out, in) of the experts."""
        for expert in range(self.groups):
            yield self.to_matrix(*self.stored_of(expert), dtype=self._dtype())

    def _dtype(self) -> torch.dtype:
        return self.weight.dtype

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

    def _dtype(self) -> torch.dtype:
        return self.base.dtype

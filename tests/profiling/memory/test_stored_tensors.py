"""The tensors that hold the memory of others: of sparse ones the indices and values."""

from __future__ import annotations

import pytest
import torch

from litpeft.profiling.memory.stored_tensors import dense, nested_tensors

MATRIX = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]])


@pytest.mark.parametrize(
    ("sparse", "sizes"),
    [
        (MATRIX.to_sparse_coo(), [2 * 3 * 8, 3 * 4]),  # two indices of each value
        (MATRIX.to_sparse_csr(), [(2 + 1) * 8, 3 * 8, 3 * 4]),  # where each row starts, columns, values
        (MATRIX.to_sparse_csc(), [(3 + 1) * 8, 3 * 8, 3 * 4]),
    ],
)
def test_a_sparse_tensor_is_its_indices_and_values(sparse: torch.Tensor, sizes: list[int]) -> None:
    assert [part.nbytes for part in dense([sparse])] == sizes
    assert next(iter(dense([MATRIX, sparse]))) is MATRIX


def test_another_layout_is_refused() -> None:
    with pytest.raises(
        NotImplementedError, match="the memory of a tensor of layout torch.sparse_bsr cannot be tracked"
    ):
        list(dense([MATRIX.to_sparse_bsr((1, 1))]))


def test_tensors_are_found_in_nested_tuples_and_lists() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    found = list(nested_tensors([one, (2, [two, ("x", three)]), None, {"not": one}]))
    assert [each is expected for each, expected in zip(found, (one, two, three), strict=True)] == [True] * 3

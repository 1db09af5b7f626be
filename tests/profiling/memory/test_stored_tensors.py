"""The tensors that hold the memory of others: of sparse ones the indices and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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


class Packed(torch.Tensor):
    """A tensor that keeps its values as codes and a scale, as packages for quantisation do; the scale may be missing."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor | None) -> Packed:
        made = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, int]]:
        return ["codes", "scale"], {"bits": 8}

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("no operation is run on it")

    __tensor_unflatten__ = staticmethod(lambda *_: None)


def test_a_wrapped_tensor_is_what_is_inside() -> None:
    codes, scale, after = torch.ones(3, dtype=torch.uint8), torch.ones(2), torch.ones(1)
    inside = MATRIX.to_sparse_coo()
    found = list(dense([Packed(Packed(codes, None), scale), Packed(inside, None), after]))
    assert [id(part) for part in found[:2]] == [id(codes), id(scale)]
    assert [part.nbytes for part in found[2:]] == [2 * 3 * 8, 3 * 4, 4]
    fake = FakeTensorMode().from_tensor(torch.ones(4))
    assert next(iter(dense([fake]))) is fake


def test_another_layout_is_refused() -> None:
    with pytest.raises(
        NotImplementedError, match="the memory of a tensor of layout torch.sparse_bsr cannot be tracked"
    ):
        list(dense([MATRIX.to_sparse_bsr((1, 1))]))


def test_tensors_are_found_in_nested_tuples_and_lists() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    found = list(nested_tensors([one, (2, [two, ("x", three)]), None, {"not": one}]))
    assert [each is expected for each, expected in zip(found, (one, two, three), strict=True)] == [True] * 3

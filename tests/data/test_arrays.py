"""Columns of lists in any chunks, and batches of rows that are padded on either side."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litpeft.data.arrays import Lists, column_array, mask, padded, tensors
from litpeft.data.cache import dataset_of

few = settings(max_examples=40, deadline=None, derandomize=True)
ROWS = st.lists(st.lists(st.integers(-9, 9), max_size=4), min_size=1, max_size=5)


@few
@given(chunks=st.lists(ROWS | st.just([]), max_size=4))
def test_a_row_is_the_same_in_whatever_chunks_it_is_stored(chunks: list[list[list[int]]]) -> None:
    kind = pa.list_(pa.int32())
    column = pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind)
    lists, rows = Lists(dataset_of(pa.table({"ids": column})), "ids"), [row for chunk in chunks for row in chunk]
    assert lists.lengths.tolist() == [len(row) for row in rows]
    for number, row in enumerate(rows):
        found = lists[number]
        assert (found.tolist(), found.dtype) == (row, np.int64)


@few
@given(rows=ROWS, value=st.integers(-9, 9))
def test_padding_fills_one_side_up_to_the_longest_row(rows: list[list[int]], value: int) -> None:
    arrays, width = [np.array(row, dtype=np.int64) for row in rows], max(map(len, rows))
    right = [row + [value] * (width - len(row)) for row in rows]
    left = [[value] * (width - len(row)) + row for row in rows]
    assert padded(arrays, value).tolist() == padded(arrays, value, left=False).tolist() == right
    assert padded(arrays, value, left=True).tolist() == left
    seen = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    assert mask(arrays).tolist() == mask(arrays, left=False).tolist() == seen
    assert mask(arrays, left=True).tolist() == [row[::-1] for row in seen]
    assert {padded(arrays, value).dtype, mask(arrays).dtype} == {np.dtype(np.int64)}


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int32", "int64", "float32", "float64"])
def test_whole_numbers_become_int64_and_others_keep_their_dtype(kind: str) -> None:
    (found,) = tensors({"x": np.array([[0, 1], [1, 0]], dtype=kind)}).values()
    assert found.dtype == (getattr(torch, kind) if kind.startswith("float") else torch.int64)
    assert found.tolist() == [[0, 1], [1, 0]]


@few
@given(chunks=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_column_of_numbers_or_of_lists_of_equal_length_is_an_array(chunks: list[list[int]]) -> None:
    numbers = [number for chunk in chunks for number in chunk]
    kind = pa.list_(pa.int64(), 2)
    pairs = pa.chunked_array([pa.array([[n, -n] for n in chunk], kind) for chunk in chunks], kind)
    table = dataset_of(pa.table({"number": pa.chunked_array(chunks, pa.int64()), "pair": pairs}))
    assert column_array(table, "number").tolist() == numbers
    assert column_array(table, "pair").tolist() == [[n, -n] for n in numbers]

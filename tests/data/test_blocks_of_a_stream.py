"""Blocks of a stream of numbers: each row once in a pass, whatever the size of a block and wherever reading starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litpeft.data.cache import dataset_of
from litpeft.data.stream_blocks import Blocks
from litpeft.errors import UserError


@dataclass
class Kept:
    """The rows of a table that are used."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class Numbers:
    """A data set of the numbers from 0; those that 3 divides have no loss, and are dropped."""

    on_bad_row = "error"

    def __init__(self, rows: int) -> None:
        self.number, self._tables = rows, {}
        self.dropped: dict[str, int] = {}
        self.read = 0  # rows

    def _rows(self, split: str, required: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(self.number):
            self.read += 1
            yield f"row {number}", {"number": number}

    def tokenise(self, split: str) -> tuple[Any, dict[str, Any]]:
        found = [row["number"] for _, row in self._rows(split, {})]
        table = self.stored(iter([{"number": pa.array(found), "text": pa.array(map(str, found))}]))
        return dataset_of(table), {"documents": len(found), "total_rows": len(found)}

    def kept(self, split: str, rows: np.ndarray) -> Kept:
        numbers = np.array(self._tables[split][0]["number"][:])
        self.dropped[split] = int((numbers % 3 == 0).sum())
        return Kept(rows[numbers % 3 != 0])


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 14),
    size=st.integers(1, 6),
    first=st.integers(0, 4),
    limit=st.none() | st.integers(1, 12),
    passed=st.integers(0, 2),
    start=st.integers(0, 3),
)
def test_the_blocks_of_each_pass_have_each_row_once_in_order(
    rows: int, size: int, first: int, limit: int | None, passed: int, start: int
) -> None:
    used = list(range(rows))[first : None if limit is None else first + limit]
    parts = [used[at : at + size] for at in range(0, len(used), size)]
    blocks = Blocks(Numbers(rows), size, first, limit)
    if not parts:
        held = rf"; the first {first} are for validation \(data.val_samples\)" if first else ""
        for read in (lambda: blocks.block(0), blocks.first_table):
            with pytest.raises(UserError, match=rf"^data.streaming: no row is left for training{held}\.$"):
                read()
        return
    assert blocks.first_table()[0]["number"][:] == parts[0]
    blocks.passed, blocks.number = passed, start = passed, min(start, len(parts) - 1)
    places = [
        (number // len(parts) + passed, number % len(parts)) for number in range(start, start + 2 * len(parts) + 2)
    ]
    for block, (pass_, number) in zip(itertools.islice(blocks, len(places)), places, strict=True):
        kept = [each for each in parts[number] if each % 3]
        assert (block.passed, block.number) == (pass_, number)
        assert (block.table["number"].to_pylist() if kept else block.table) == (kept or None)
        counts = {"rows_read": len(parts[number]), "rows_used": len(kept), "documents": len(parts[number])}
        dropped = len(parts[number]) - len(kept)
        assert block.counts == counts | ({"dropped_rows": dropped} if dropped else {})
        assert not kept or block.table.column_names == ["number"]  # texts for people are not kept
    assert blocks.per_pass == len(parts)


@settings(max_examples=50, deadline=None)
@given(places=st.lists(st.integers(0, 9), min_size=1, max_size=6), rows=st.sampled_from([11, 40]))
def test_a_worker_may_read_any_block_next(places: list[int], rows: int) -> None:
    blocks = Blocks(Numbers(rows), 3, rows=11)  # of 40 rows the first 11 are used
    for place in places:
        block = blocks.block(place)
        assert (block.passed, block.number) == divmod(place, 4)
        expected = [number for number in range(11)[3 * block.number :][:3] if number % 3]
        assert block.table["number"].to_pylist() == expected


def test_rows_are_read_once_in_a_pass() -> None:
    blocks = Blocks(Numbers(12), 4, 2)
    for number in range(3):
        blocks.block(number)
    assert blocks.data.read == 12
    blocks.block(1)  # stands before: the rows are read again
    assert blocks.data.read == 12 + 10

"""Blocks of consecutive rows of a stream, each tokenised as if it were a small data set.

A block depends only on the rows, its size and its number. So worker processes can share the blocks, a resumed run can
start at any of them, and neither changes a batch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from torch.utils.data import IterableDataset, get_worker_info

from litpeft.data.bad_rows import BadRows
from litpeft.data.cache import dataset_of
from litpeft.errors import UserError

COUNTED = (  # facts of a block that are summed over the blocks of a run
    *("skipped_rows", "truncated_rows", "empty_responses_dropped", "turns_after_last_answer", "answers"),
    *("answers_without_text", "thoughts_left_out", "documents"),
)
SHOWN = ("text", "answer")  # columns for people, which batches do not need


class _EndOfRows(Exception):
    """The stream has no row where a block should begin."""


class _NoUsableRows(Exception):
    """No row of a block can be used."""


class _BadRowsOfBlock(BadRows):
    """The bad rows of a block; all of its rows may be bad if they are skipped."""

    def check(self, rows: int) -> None:
        if not self.skip:
            super().check(rows)


@dataclass
class Block:
    """The rows of a block that can be used.

    Attributes:
        passed: number of whole passes over the rows before this block.
        number: number of the block in its pass, from 0.
        table: the tokenised rows; None if the block has no usable row.
        counts: number of rows read and used, and of rows left out or truncated, by kind.
        facts: what else is known about the rows, such as their columns.
    """

    passed: int
    number: int
    table: pa.Table | None
    counts: dict[str, int]
    facts: dict[str, Any]


class Blocks(IterableDataset):
    """The blocks of the training rows of a data set, without end: after the last one follows the first one.

    Args:
        data: the data set; its training rows are read with a copy of it.
        size: rows per block, as read.
        first_row: number of rows at the start that are left out.
        rows: number of rows after those to use; None for all.
    """

    def __init__(self, data: Any, size: int, first_row: int = 0, rows: int | None = None) -> None:
        self.size, self.first_row = size, first_row
        self.last_row = None if rows is None else first_row + rows
        self.passed, self.number = 0, 0  # where iteration starts
        self.per_pass: int | None = None  # blocks in a pass; None until the end was seen
        self.data = reading_copy(data)
        self.data._rows, self.data.stored = self._rows_of_block, _in_memory
        self.data.bad_rows = lambda split: _BadRowsOfBlock(data.on_bad_row == "skip")
        self._reader: Iterator[tuple[str, dict[str, Any]]] | None = None
        self._at, self._start, self._read = 0, first_row, 0  # rows read; first row of the block; rows of the block

    def __iter__(self) -> Iterator[Block | UserError]:
        """Yield the blocks, and for a block that cannot be read the error, which a worker process must not raise."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for following in itertools.count(first, step):
            try:
                yield self.block(following)
            except UserError as error:
                yield error

    def first_table(self) -> tuple[datasets.Dataset, dict[str, Any]]:
        """Return the table of the first block with all of its columns, and the facts about it.

        Raises:
            UserError: a row cannot be read or used, or there are no rows that can be used.
        """
        try:
            return self.data.tokenise("train")
        except (_EndOfRows, _NoUsableRows):
            raise self._no_rows() from None

    def block(self, following: int) -> Block:
        """Return a block, counted from where iteration starts.

        Raises:
            UserError: a row cannot be read or used, or there are no rows.
        """
        while True:
            passed, number = 0, self.number + following
            if self.per_pass is not None:
                passed, number = divmod(number, self.per_pass)
            try:
                return self._block(self.passed + passed, number)
            except _EndOfRows:
                end = self._at if self.last_row is None else min(self._at, self.last_row)  # more rows may be skipped
                self.per_pass = -(-max(0, end - self.first_row) // self.size)
                if not self.per_pass:
                    raise self._no_rows() from None

    def _no_rows(self) -> UserError:
        if self._read:
            return UserError(f"data.streaming: none of the first {self._read} training rows can be used.")
        held = f"; the first {self.first_row} are for validation (data.val_samples)" if self.first_row else ""
        return UserError(f"data.streaming: no row is left for training{held}.")

    def _block(self, passed: int, number: int) -> Block:
        self._start, self._read = self.first_row + number * self.size, 0
        try:
            table, facts = self.data.tokenise("train")
        except _NoUsableRows:
            return Block(passed, number, None, {"rows_read": self._read}, {})
        self.data._tables["train"] = table, facts
        kept = self.data.kept("train", np.arange(len(table)))
        lost = {
            "truncated_rows": getattr(self.data, "truncated", {}).get("train", 0),
            "dropped_rows": getattr(self.data, "dropped", {}).get("train", 0),
        }
        counts = {name: facts.get(name, 0) + lost.get(name, 0) for name in dict.fromkeys((*COUNTED, *lost))}
        counts = {"rows_read": self._read, "rows_used": len(kept)} | {name: n for name, n in counts.items() if n}
        rows = table.data.table.drop_columns([name for name in SHOWN if name in table.column_names])
        rows = rows.take(kept.rows) if len(kept) < len(table) else rows
        return Block(passed, number, rows if len(rows) else None, counts, facts)

    def _rows_of_block(self, split: str, required: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows of the block as `TabularData._rows` does, after those that other blocks have."""
        if self._reader is None or self._at > self._start:
            self._reader, self._at = type(self.data)._rows(self.data, "train", required), 0
        for _ in itertools.islice(self._reader, self._start - self._at):
            self._at += 1
        end = self._start + self.size if self.last_row is None else min(self._start + self.size, self.last_row)
        for placed in itertools.islice(self._reader, max(0, end - self._at)):
            self._at, self._read = self._at + 1, self._read + 1
            yield placed
        if not self._read:
            raise _EndOfRows


def reading_copy(data: Any) -> Any:
    """Return a copy of a data set that reads rows without changing what the data set knows, and has no trainer."""
    reader = copy.copy(data)
    vars(reader).update({name: dict(value) for name, value in vars(reader).items() if type(value) is dict})
    reader.trainer = SimpleNamespace(lightning_module=SimpleNamespace(encoder_decoder=getattr(data, "encoder", False)))
    return reader


def table_of(data: Any, table: pa.Table) -> Any:
    """Return the rows of a table as the data set from which batches of this data set are built, packed if asked for."""
    data._tables["train"] = dataset_of(table), {}
    return data.encoded("train", np.arange(len(table)))


def _in_memory(batches: Iterator[dict[str, pa.Array]], *_: Any) -> pa.Table:
    """Return batches of columns as one table; in place of `FineTuneData.stored`."""
    parts = [pa.RecordBatch.from_pydict(columns) for columns in batches]
    if not parts:
        raise _NoUsableRows
    return pa.Table.from_batches(parts)

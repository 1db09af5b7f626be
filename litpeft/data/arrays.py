"""Columns of lists of token ids, and arrays and tensors of batches."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor


class Lists:
    """A column of lists of numbers in Arrow's flat arrays with offsets; only the rows asked for are copied."""

    def __init__(self, table: datasets.Dataset, name: str) -> None:
        chunks = [chunk for chunk in table.data.column(name).chunks if len(chunk)]
        self._chunks = [(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks])
        self.lengths = np.concatenate(
            [np.diff(offsets) for _, offsets in self._chunks] or [np.zeros(0, dtype=np.int32)]
        )

    def __getitem__(self, row: int) -> np.ndarray:
        number = int(np.searchsorted(self._ends, row, side="right"))
        values, offsets = self._chunks[number]
        place = row - (self._ends[number - 1] if number else 0)
        return values[offsets[place] : offsets[place + 1]].astype(np.int64)


def padded(rows: Sequence[np.ndarray], value: int, left: bool = False) -> np.ndarray:
    """Return the rows as one array (B, T), filled with `value` on the right or left."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, out.shape[1] - len(row) if left else 0 : None if left else len(row)] = row
    return out


def mask(rows: Sequence[np.ndarray], left: bool = False) -> np.ndarray:
    """Return the attention mask of padded rows, (B, T)."""
    return padded([np.ones(len(row), dtype=np.int64) for row in rows], 0, left)


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the arrays as tensors: integers as int64, floating-point numbers in their own dtype."""
    whole = {name: array if array.dtype.kind == "f" else array.astype(np.int64) for name, array in arrays.items()}
    return {name: torch.from_numpy(array) for name, array in whole.items()}


def column_array(table: datasets.Dataset, name: str) -> np.ndarray:
    """Return a column of numbers, (rows,), or of lists of equal length, (rows, length)."""
    column = table.data.column(name)
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate(parts).reshape(-1, column.type.list_size)

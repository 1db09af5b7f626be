"""Tokenised rows stored in flat arrays, and padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class EncodedRows(Dataset):
    """Rows of a tokenised table; indexing with a list gives a batch padded to its longest row.

    The token ids stay in Arrow's flat array with row offsets, so a batch needs one copy per row.

    Args:
        table: table with the columns `input_ids` (a list of ints per row), `label` and, for pairs of texts,
            `token_type_ids` (which text a token is of).
        rows: row numbers in the table, in the order of this data set.
        pad_id: token id of the padding.
    """

    def __init__(self, table: datasets.Dataset, rows: np.ndarray, pad_id: int) -> None:
        column = table.data.column("input_ids").combine_chunks()
        self._ids = column.values.to_numpy()
        self._offsets = column.offsets.to_numpy()
        typed = "token_type_ids" in table.column_names
        self._types = table.data.column("token_type_ids").combine_chunks().values.to_numpy() if typed else None
        self._labels = table.data.column("label").to_numpy()
        self.rows, self.pad_id = rows, pad_id
        self.lengths = np.diff(self._offsets)[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch: `input_ids` and `attention_mask` (B, T), `labels` and `row` (B,), all int64.

        Pairs of texts also have `token_type_ids` (B, T), 0 for padding. `row` is the row number in the table;
        predictions are sorted by it into the order of the file.
        """
        rows = self.rows[indices]
        lengths = self.lengths[indices]
        input_ids = self._padded(self._ids, rows, lengths, self.pad_id)
        types = {} if self._types is None else {"token_type_ids": self._padded(self._types, rows, lengths, 0)}
        mask = np.arange(input_ids.shape[1]) < lengths[:, None]
        return {name: torch.from_numpy(array) for name, array in types.items()} | {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(self._labels[rows].astype(np.int64)),
            "row": torch.from_numpy(rows),
        }

    def marked(self, index: int) -> list[tuple[np.ndarray, bool]]:
        """Return the token ids of one row, without loss of their own, to show the row."""
        start = self._offsets[self.rows[index]]
        return [(self._ids[start : start + self.lengths[index]], False)]

    def _padded(self, values: np.ndarray, rows: np.ndarray, lengths: np.ndarray, padding: int) -> np.ndarray:
        """Return the values of these rows of a flat array, (B, T)."""
        out = np.full((len(rows), lengths.max()), padding, dtype=np.int64)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            out[i, :length] = values[self._offsets[row] : self._offsets[row] + length]
        return out

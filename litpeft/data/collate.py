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
        table: table with the columns `input_ids` (a list of ints per row) and `label`.
        rows: row numbers in the table, in the order of this data set.
        pad_id: token id of the padding.
    """

    def __init__(self, table: datasets.Dataset, rows: np.ndarray, pad_id: int) -> None:
        column = table.data.column("input_ids").combine_chunks()
        self._ids = column.values.to_numpy()
        self._offsets = column.offsets.to_numpy()
        self._labels = table.data.column("label").to_numpy()
        self.rows, self.pad_id = rows, pad_id
        self.lengths = np.diff(self._offsets)[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch: `input_ids` and `attention_mask` (B, T), `labels` and `row` (B,), all int64.

        `row` is the row number in the table; predictions are sorted by it into the order of the file.
        """
        rows = self.rows[indices]
        lengths = self.lengths[indices]
        input_ids = np.full((len(rows), lengths.max()), self.pad_id, dtype=np.int64)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            input_ids[i, :length] = self._ids[self._offsets[row] : self._offsets[row] + length]
        mask = np.arange(input_ids.shape[1]) < lengths[:, None]
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(self._labels[rows].astype(np.int64)),
            "row": torch.from_numpy(rows),
        }

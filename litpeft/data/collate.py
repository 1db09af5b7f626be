"""Rows of token ids, held as flat arrays, and the padded batches that are made of them."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class EncodedRows(Dataset):
    """Rows of a tokenised table; indexing with a list gives a batch padded to its longest row.

    The ids stay in one flat array beside the rows' borders (as Arrow keeps them), so a batch costs one copy a row.

    Args:
        table: has columns `input_ids` (a list of ints a row) and `label`.
        rows: which rows of the table, in which order.
        pad_id: token id to pad with.
    """

    def __init__(self, table: datasets.Dataset, rows: np.ndarray, pad_id: int) -> None:
        column = table.data.column("input_ids").combine_chunks()
        self._ids = column.values.to_numpy()
        self._borders = column.offsets.to_numpy()
        self._labels = table.data.column("label").to_numpy()
        self.rows, self.pad_id = rows, pad_id
        self.lengths = np.diff(self._borders)[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: `input_ids` and `attention_mask` (B, T), `labels` and `row` (B,), all int64.

        `row` is the row's place in the table: predictions are put back in the file's order by it.
        """
        rows = self.rows[indices]
        lengths = self.lengths[indices]
        input_ids = np.full((len(rows), lengths.max()), self.pad_id, dtype=np.int64)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            input_ids[place, :length] = self._ids[self._borders[row] : self._borders[row] + length]
        mask = np.arange(input_ids.shape[1]) < lengths[:, None]
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(self._labels[rows].astype(np.int64)),
            "row": torch.from_numpy(rows),
        }

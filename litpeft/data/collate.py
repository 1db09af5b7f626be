"""Tokenised rows stored in flat arrays, and padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from litpeft.data.arrays import Lists, column_array, mask, padded, tensors


class EncodedRows(Dataset):
    """Rows of a tokenised table; indexing with a list gives a batch padded to its longest row.

    Args:
        table: table with the columns `input_ids` (a list of ints per row), `label` (a number per row, or a list
            of equal length) and, for pairs of texts, `token_type_ids` (which text a token is of).
        rows: row numbers in the table, in the order of this data set.
        pad_id: token id of the padding.
    """

    def __init__(self, table: datasets.Dataset, rows: np.ndarray, pad_id: int) -> None:
        self._ids = Lists(table, "input_ids")
        self._types = Lists(table, "token_type_ids") if "token_type_ids" in table.column_names else None
        self._labels = column_array(table, "label")
        self.rows, self.pad_id = rows, pad_id
        self.lengths = self._ids.lengths[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch: `input_ids` and `attention_mask` (B, T), `labels` and `row` (B,), all int64.

        Labels that are lists of equal length are (B, length); targets that are numbers are float64.
        Pairs of texts also have `token_type_ids` (B, T), 0 for padding. `row` is the row number in the table;
        predictions are sorted by it into the order of the file.
        """
        rows = self.rows[indices]
        texts = [self._ids[row] for row in rows]
        types = {} if self._types is None else {"token_type_ids": padded([self._types[row] for row in rows], 0)}
        batch = {"input_ids": padded(texts, self.pad_id), "attention_mask": mask(texts), **types}
        return tensors(batch | {"labels": self._labels[rows], "row": rows})

    def marked(self, index: int) -> list[tuple[np.ndarray, bool]]:
        """Return the token ids of one row, without loss of their own, to show the row."""
        return [(self._ids[self.rows[index]], False)]

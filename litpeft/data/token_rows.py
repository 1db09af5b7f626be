"""Batches for language models: texts of which some tokens have loss, or pairs of prompt and response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from litpeft.data.arrays import Lists, mask, padded, tensors

IGNORED = -100  # label of a position without loss, as in torch's cross_entropy
NO_LOSS, ANSWER, LAST_ANSWER = 0, 1, 2  # values of the column `loss`
TrainOn = Literal["assistant", "last", "all"]
LEAST = {"assistant": ANSWER, "last": LAST_ANSWER, "all": NO_LOSS}  # smallest value of `loss` that counts


class TokenRows(Dataset):
    """Rows of a table for causal models; indexing with a list gives a batch.

    Args:
        table: table with the columns `ids` (token ids), `loss` (`NO_LOSS`, `ANSWER` or `LAST_ANSWER` for each token),
            `first` and `last` (number of the first token of the first and of the last answer).
        rows: row numbers in the table, in the order of this data set.
        pad_id: token id of the padding.
        max_length: maximum sequence length in tokens; longer rows are truncated. Rows of which no token with loss is
            left are dropped.
        train_on: the tokens with loss: those of each answer, of the `last` one, or `all`.
        prompts: give only the tokens before the last answer, padded on the left, for generation.

    Attributes:
        bins: numbers of the rows that are packed into each row; None without packing.
        lengths: tokens of each row, or of each packed row.
        truncated: number of rows that `max_length` truncates.
        opening: token ids that follow each prompt, (n,).
    """

    opening = np.zeros(0, dtype=np.int64)

    def __init__(
        self,
        table: datasets.Dataset,
        rows: np.ndarray,
        pad_id: int,
        max_length: int,
        train_on: TrainOn = "assistant",
        prompts: bool = False,
    ) -> None:
        self._ids, self._loss = Lists(table, "ids"), Lists(table, "loss")
        self._last = table.data.column("last").to_numpy()
        self.pad_id, self.max_length, self.prompts = pad_id, max_length, prompts
        self._least = LEAST[train_on]
        if not prompts:
            starts = {"assistant": table.data.column("first").to_numpy(), "last": self._last}.get(train_on)
            first = np.ones(len(rows), dtype=int) if starts is None else np.maximum(starts[rows], 1)
            rows = rows[first < np.minimum(self._ids.lengths[rows], max_length)]
        self.rows = rows
        self.truncated = int((self._ids.lengths[rows] > max_length).sum())
        self.bins: list[np.ndarray] | None = None

    @property
    def whole_lengths(self) -> np.ndarray:
        """Tokens of each row before truncation."""
        return self._ids.lengths[self.rows]

    @property
    def lengths(self) -> np.ndarray:
        lengths = np.minimum(self._last[self.rows] if self.prompts else self._ids.lengths[self.rows], self.max_length)
        return lengths if self.bins is None else np.array([lengths[rows].sum() for rows in self.bins])

    def __len__(self) -> int:
        return len(self.rows) if self.bins is None else len(self.bins)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch, int64 unless stated otherwise.

        Returns:
            `input_ids` and `attention_mask` (B, T), `row` (B,), and `labels` (B, T) unless these are prompts: the token
            id where a token has loss, else -100. Packed batches have `position_ids` (B, T) instead of a mask, which
            restart at 0 for each document: an example, or the padding of a row. `cu_seqlens` (documents + 1), int32:
            the first token of each document in the B T tokens, and B T. `max_seqlen` (L, 0): empty, its size is the
            number of tokens of the longest document, known without reading from a GPU.
        """
        if self.bins is not None:
            return self._packed([self.bins[i] for i in indices])
        rows = self.rows[indices]
        if self.prompts:
            # a long prompt keeps its end, which the response follows
            whole = [np.concatenate([self._ids[row][: self._last[row]], self.opening]) for row in rows]
            texts = [text[-self.max_length :] for text in whole]
            batch = {"input_ids": padded(texts, self.pad_id, left=True)}
        else:
            texts, labels = zip(*map(self._text, rows), strict=True)
            batch = {"input_ids": padded(texts, self.pad_id), "labels": padded(labels, IGNORED)}
        batch["attention_mask"] = mask(texts, left=self.prompts)
        return tensors(batch | {"row": rows})

    def _text(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and labels of a row."""
        ids = self._ids[row][: self.max_length]
        has_loss = self._loss[row][: self.max_length] >= self._least
        return ids, np.where(has_loss, ids, IGNORED)

    def _packed(self, bins: list[np.ndarray]) -> dict[str, Tensor]:
        ids, labels, positions, firsts = [], [], [], []
        for rows in bins:
            parts = [self._text(row) for row in self.rows[rows]]
            for _, label in parts:
                label[0] = IGNORED  # the token before the first one belongs to another example
            ids.append(np.concatenate([part for part, _ in parts]))
            labels.append(np.concatenate([label for _, label in parts]))
            positions.append(np.concatenate([np.arange(len(part)) for part, _ in parts]))
            firsts.append(self.rows[rows[0]])
        width = max(map(len, ids))
        position_ids = np.stack([np.append(p, np.arange(width - len(p))) for p in positions])
        batch = {"input_ids": padded(ids, self.pad_id), "labels": padded(labels, IGNORED), "position_ids": position_ids}
        counts = {"row": firsts, "real_tokens": sum(map(len, ids)), "samples": sum(map(len, bins))}
        starts = np.append(np.flatnonzero(position_ids == 0), position_ids.size)
        documents = {
            "cu_seqlens": torch.from_numpy(starts.astype(np.int32)),
            "max_seqlen": torch.empty(int(position_ids.max()) + 1, 0),
        }
        return documents | tensors(batch | {name: np.array(count) for name, count in counts.items()})

    def marked(self, index: int) -> list[tuple[np.ndarray, bool]]:
        """Return runs of token ids of one row, each with whether its tokens have loss, to show the row."""
        ids, labels = self._text(int(self.rows[index]))
        edges = np.flatnonzero(np.diff(labels != IGNORED)) + 1
        return [(ids[run], bool(labels[run[0]] != IGNORED)) for run in np.split(np.arange(len(ids)), edges)]


class PairRows(Dataset):
    """Rows of a table for encoder-decoder models; indexing with a list gives a batch.

    Args:
        table: table with the columns `prompt` and `response`, lists of token ids.
        rows: row numbers in the table, in the order of this data set.
        pad_id: token id of the padding.
        max_length: maximum length of a prompt and of a response, in tokens; longer ones are truncated. A truncated
            prompt keeps its start, which mostly has the instruction, and the special token that ends it.
        prompts: give only the prompts, for generation.
        end_id: token id of the special token that ends a prompt; None if there is none.

    Attributes:
        truncated: number of rows whose prompt or response is truncated.
        cut_prompts: number of rows whose prompt is truncated.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        rows: np.ndarray,
        pad_id: int,
        max_length: int,
        prompts: bool = False,
        end_id: int | None = None,
    ) -> None:
        self.end_id = end_id
        self._prompts, self._responses = Lists(table, "prompt"), Lists(table, "response")
        self.rows, self.pad_id, self.max_length, self.prompts = rows, pad_id, max_length, prompts
        self.truncated = int((self.whole_lengths > max_length).sum())
        self.cut_prompts = int((self._prompts.lengths[rows] > max_length).sum())

    def _prompt(self, row: int) -> np.ndarray:
        """Return the token ids of a prompt, truncated before the special token that ends it."""
        ids = self._prompts[row]
        if len(ids) > self.max_length > 1 and ids[-1] == self.end_id:
            return np.append(ids[: self.max_length - 1], ids[-1])
        return ids[: self.max_length]

    @property
    def whole_lengths(self) -> np.ndarray:
        """Tokens of the prompt or the response of each row, whichever is longer, before truncation."""
        prompts = self._prompts.lengths[self.rows]
        return prompts if self.prompts else np.maximum(prompts, self._responses.lengths[self.rows])

    @property
    def lengths(self) -> np.ndarray:
        lengths = np.minimum(self._prompts.lengths[self.rows], self.max_length)
        return lengths if self.prompts else lengths + np.minimum(self._responses.lengths[self.rows], self.max_length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch, all int64: `input_ids` and `attention_mask` (B, T), `row` (B,) and `labels` (B, U)."""
        rows = self.rows[indices]
        texts = [self._prompt(row) for row in rows]
        batch = {"input_ids": padded(texts, self.pad_id), "attention_mask": mask(texts)}
        if not self.prompts:
            batch["labels"] = padded([self._responses[row][: self.max_length] for row in rows], IGNORED)
        return tensors(batch | {"row": rows})

    def marked(self, index: int) -> list[tuple[np.ndarray, bool]]:
        """Return the token ids of a prompt and of its response, which has the loss, to show the row."""
        row = int(self.rows[index])
        return [(self._prompt(row), False), (self._responses[row][: self.max_length], True)]

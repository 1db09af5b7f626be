"""Batches of prompts and responses: in one row for causal models, in two for those with an encoder, or packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a position that carries no loss, as in torch's cross_entropy
Layout = Literal["text", "pairs", "prompts"]


class InstructionRows(Dataset):
    """Rows of a tokenised table; indexing with a list gives a batch.

    Args:
        table: has columns `prompt` and `response`, lists of ids without the end of a text.
        rows: which rows of the table, in which order.
        tokenizer: whose special tokens end and pad texts.
        max_length: tokens that a row is cut to.
        layout: `text`, prompt and response in one row; `pairs`, in two; `prompts`, the prompts alone, padded on the
            left where a causal model is to go on from them.
        prompt_counts: whether the prompt's tokens carry loss as well.
        encoder: whether the prompts are for an encoder, which has them end in the end of a text.

    Attributes:
        bins: rows to be put together into one, by number; None where each stands alone.
        lengths: tokens of each row, or of each bin.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        rows: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        layout: Layout = "text",
        prompt_counts: bool = False,
        encoder: bool = False,
    ) -> None:
        self._prompts, self._responses = (_Lists(table, name) for name in ("prompt", "response"))
        self.pad_id, self.end_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.max_length, self.layout = max_length, layout
        self.prompt_counts, self.encoder = prompt_counts, encoder
        prompt = self._prompts.lengths[rows]
        kept = rows if layout != "text" else rows[prompt < max_length]  # else no token of the response is left
        self.rows = kept
        self.bins: list[np.ndarray] | None = None

    @property
    def lengths(self) -> np.ndarray:
        prompt, response = self._prompts.lengths[self.rows], self._responses.lengths[self.rows] + 1  # the end
        if self.layout == "text":
            each = np.minimum(prompt + response, self.max_length)
        elif self.layout == "pairs":
            each = np.minimum(prompt, self.max_length) + np.minimum(response, self.max_length)
        else:
            each = np.minimum(prompt, self.max_length)
        return each if self.bins is None else np.array([each[rows].sum() for rows in self.bins])

    def __len__(self) -> int:
        return len(self.rows) if self.bins is None else len(self.bins)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch, int64.

        Returns:
            `input_ids` and `attention_mask` (B, T), `row` (B,); of `text` also `labels` (B, T), the token's own id at
            each that carries loss, else -100; of `pairs` `labels` (B, U). Packed, `position_ids` (B, T) instead of a
            mask: they start anew with each row, and padding goes on from 0.
        """
        if self.bins is not None:
            return self._packed([self.bins[i] for i in indices])
        rows = self.rows[indices]
        if self.layout == "text":
            texts, labels = zip(*map(self._text, rows), strict=True)
            batch = {"input_ids": _padded(texts, self.pad_id), "labels": _padded(labels, IGNORED)}
        else:
            prompts = [self._prompt(row) for row in rows]
            batch = {"input_ids": _padded(prompts, self.pad_id, left=self.layout == "prompts" and not self.encoder)}
            texts = prompts
            if self.layout == "pairs":
                batch["labels"] = _padded([self._response(row) for row in rows], IGNORED)
        left = self.layout == "prompts" and not self.encoder
        batch["attention_mask"] = _padded([np.ones(len(text), dtype=np.int64) for text in texts], 0, left)
        return {name: torch.from_numpy(array) for name, array in batch.items()} | {"row": torch.from_numpy(rows)}

    def _prompt(self, row: int) -> np.ndarray:
        ids = self._prompts[row]
        ended = len(ids) and ids[-1] == self.end_id
        if self.encoder:
            return ids[: self.max_length]
        # a causal model's prompt must not end its text; the end of what is too long is what the answer follows from
        return (ids[:-1] if ended else ids)[-self.max_length :]

    def _response(self, row: int) -> np.ndarray:
        return np.append(self._responses[row], self.end_id)[: self.max_length]

    def _text(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels of prompt, response and end."""
        prompt, response = self._prompt(row), np.append(self._responses[row], self.end_id)
        ids = np.concatenate([prompt, response])[: self.max_length]
        labels = ids.copy()
        if not self.prompt_counts:
            labels[: len(prompt)] = IGNORED
        return ids, labels

    def _packed(self, bins: list[np.ndarray]) -> dict[str, Tensor]:
        ids, labels, positions, firsts = [], [], [], []
        for rows in bins:
            parts = [self._text(row) for row in self.rows[rows]]
            for _, label in parts:
                label[0] = IGNORED  # what comes first in a row is foretold by nothing, least of all by another row
            ids.append(np.concatenate([part for part, _ in parts]))
            labels.append(np.concatenate([label for _, label in parts]))
            positions.append(np.concatenate([np.arange(len(part)) for part, _ in parts]))
            firsts.append(self.rows[rows[0]])
        width = max(map(len, ids))
        places = np.stack([np.append(p, np.arange(width - len(p))) for p in positions])
        batch = {"input_ids": _padded(ids, self.pad_id), "labels": _padded(labels, IGNORED), "position_ids": places}
        tokens = sum(map(len, ids))
        counts = {"row": np.array(firsts), "real_tokens": np.array(tokens), "samples": np.array(sum(map(len, bins)))}
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in (batch | counts).items()}


class _Lists:
    """A column of lists of ids, as Arrow keeps it: one flat array, and the lists' borders."""

    def __init__(self, table: datasets.Dataset, name: str) -> None:
        column = table.data.column(name).combine_chunks()
        self._values, self._borders = column.values.to_numpy(), column.offsets.to_numpy()
        self.lengths = np.diff(self._borders)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._values[self._borders[row] : self._borders[row + 1]].astype(np.int64)


def _padded(rows: Sequence[np.ndarray], value: int, left: bool = False) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for place, row in enumerate(rows):
        out[place, out.shape[1] - len(row) if left else 0 : None if left else len(row)] = row
    return out

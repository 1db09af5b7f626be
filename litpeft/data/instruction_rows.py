"""Batches of prompts and responses: joined for causal models, separate for encoder-decoder models, or packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a position without loss, as in torch's cross_entropy
Layout = Literal["text", "pairs", "prompts"]


class InstructionRows(Dataset):
    """Rows of a tokenised table; indexing with a list gives a batch.

    Args:
        table: table with the columns `prompt` and `response`, lists of token ids; responses lack the end-of-text token.
        rows: row numbers in the table, in the order of this data set.
        tokenizer: the tokenizer, for its padding and end-of-text tokens.
        max_length: maximum sequence length in tokens; longer rows are truncated.
        layout: `text` (prompt and response in one row), `pairs` (two rows: encoder and decoder) or `prompts` (prompts
            only, padded on the left for a causal model).
        train_on_prompt: whether the tokens of the prompt have loss too.
        encoder: whether the model has an encoder; its prompts keep their end-of-text token.

    Attributes:
        bins: numbers of the rows that are packed into each row; None without packing.
        lengths: tokens of each row, or of each packed row.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        rows: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        layout: Layout = "text",
        train_on_prompt: bool = False,
        encoder: bool = False,
    ) -> None:
        self._prompts, self._responses = (_Lists(table, name) for name in ("prompt", "response"))
        self.pad_id, self.end_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.max_length, self.layout = max_length, layout
        self.train_on_prompt, self.encoder = train_on_prompt, encoder
        # a prompt that fills the row leaves no token of the response
        self.rows = rows if layout != "text" else rows[self._prompts.lengths[rows] < max_length]
        self.bins: list[np.ndarray] | None = None

    @property
    def lengths(self) -> np.ndarray:
        prompt, response = self._prompts.lengths[self.rows], self._responses.lengths[self.rows] + 1  # end of text
        if self.layout == "text":
            lengths = np.minimum(prompt + response, self.max_length)
        elif self.layout == "pairs":
            lengths = np.minimum(prompt, self.max_length) + np.minimum(response, self.max_length)
        else:
            lengths = np.minimum(prompt, self.max_length)
        return lengths if self.bins is None else np.array([lengths[rows].sum() for rows in self.bins])

    def __len__(self) -> int:
        return len(self.rows) if self.bins is None else len(self.bins)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch, int64 unless stated otherwise.

        Returns:
            `input_ids` and `attention_mask` (B, T), `row` (B,). `text` also has `labels` (B, T): the token id where a
            token has loss, else -100. `pairs` also has `labels` (B, U). Packed batches have `position_ids` (B, T)
            instead of a mask, which restart at 0 for each document: an example, or the padding of a row. `cu_seqlens`
            (documents + 1), int32: the first token of each document in the B T tokens, and B T. `max_seqlen` (L, 0):
            empty, its size is the number of tokens of the longest document, known without reading from a GPU.
        """
        if self.bins is not None:
            return self._packed([self.bins[i] for i in indices])
        rows = self.rows[indices]
        left = self.layout == "prompts" and not self.encoder  # the side of the padding
        if self.layout == "text":
            texts, labels = zip(*map(self._text, rows), strict=True)
            batch = {"input_ids": _padded(texts, self.pad_id), "labels": _padded(labels, IGNORED)}
        else:
            prompts = [self._prompt(row) for row in rows]
            batch = {"input_ids": _padded(prompts, self.pad_id, left)}
            texts = prompts
            if self.layout == "pairs":
                batch["labels"] = _padded([self._response(row) for row in rows], IGNORED)
        batch["attention_mask"] = _padded([np.ones(len(text), dtype=np.int64) for text in texts], 0, left)
        return {name: torch.from_numpy(array) for name, array in batch.items()} | {"row": torch.from_numpy(rows)}

    def _prompt(self, row: int) -> np.ndarray:
        ids = self._prompts[row]
        if self.encoder:
            return ids[: self.max_length]
        # for a causal model: no end-of-text token, and a long prompt keeps its end, which the response follows
        return (ids[:-1] if len(ids) and ids[-1] == self.end_id else ids)[-self.max_length :]

    def _response(self, row: int) -> np.ndarray:
        return np.append(self._responses[row], self.end_id)[: self.max_length]

    def _text(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and labels of prompt, response and end-of-text token."""
        prompt, response = self._prompt(row), np.append(self._responses[row], self.end_id)
        ids = np.concatenate([prompt, response])[: self.max_length]
        labels = ids.copy()
        if not self.train_on_prompt:
            labels[: len(prompt)] = IGNORED
        return ids, labels

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
        batch = {
            "input_ids": _padded(ids, self.pad_id),
            "labels": _padded(labels, IGNORED),
            "position_ids": position_ids,
        }
        starts = np.append(np.flatnonzero(position_ids == 0), position_ids.size)
        documents = {
            "cu_seqlens": torch.from_numpy(starts.astype(np.int32)),
            "max_seqlen": torch.empty(int(position_ids.max()) + 1, 0),
        }
        tokens = sum(map(len, ids))
        counts = {"row": np.array(firsts), "real_tokens": np.array(tokens), "samples": np.array(sum(map(len, bins)))}
        return documents | {name: torch.from_numpy(a.astype(np.int64)) for name, a in (batch | counts).items()}


class _Lists:
    """A column of lists of token ids as one flat array with offsets, as Arrow stores it."""

    def __init__(self, table: datasets.Dataset, name: str) -> None:
        column = table.data.column(name).combine_chunks()
        self._values, self._offsets = column.values.to_numpy(), column.offsets.to_numpy()
        self.lengths = np.diff(self._offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._values[self._offsets[row] : self._offsets[row + 1]].astype(np.int64)


def _padded(rows: Sequence[np.ndarray], value: int, left: bool = False) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, out.shape[1] - len(row) if left else 0 : None if left else len(row)] = row
    return out

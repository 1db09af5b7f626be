"""Base class of the data sets of language models: texts of which some tokens have loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

import datasets
import numpy as np
import pyarrow as pa
from torch import Tensor

from litpeft.data.base import FineTuneData, Split
from litpeft.data.packing import pack
from litpeft.data.token_rows import ANSWER, LAST_ANSWER, NO_LOSS, PairRows, TokenRows, TrainOn
from litpeft.errors import UserError, check_choices

BATCH = 1000  # texts per call of the tokenizer
IDS = pa.list_(pa.int32())
Span = tuple[int, int]
Item = TypeVar("Item")


class Sequences(FineTuneData):
    """Token sequences for causal models, or pairs of sequences for encoder-decoder models.

    Args:
        packing: put several examples into one row of `max_length` tokens; attention stays within each example. Causal
            models only. `batch_size` then counts packed rows.
        long_rows: rows with more than `max_length` tokens are truncated (`cut`) or left out (`drop`); both are counted.
        options: batch size, limits and the other options of `FineTuneData`.
    """

    train_on: TrainOn = "assistant"
    adds_specials = True  # whether the tokenizer adds its special tokens to a rendered text

    def __init__(self, packing: bool = False, long_rows: Literal["cut", "drop"] = "cut", **options: Any) -> None:
        check_choices("data", Sequences.__init__, locals())
        super().__init__(**options)
        if packing and self.batch_tokens is not None:
            raise UserError("data.batch_tokens: packed rows all have data.max_length tokens; give data.batch_size.")
        self.packing, self.long_rows = packing, long_rows
        self.dropped: dict[str, int] = {}
        self.truncated: dict[str, int] = {}
        self.cut_prompts: dict[str, int] = {}  # of encoder-decoder models
        self.packed_rows: dict[str, int] = {}

    @property
    def encoder(self) -> bool:
        """Whether the model has an encoder, which reads the prompt, and a decoder for the response."""
        task = self.trainer.lightning_module if self.trainer is not None else None
        return getattr(task, "encoder_decoder", False)

    def kept(self, split: Split, rows: np.ndarray) -> TokenRows | PairRows:
        """Return the rows that can be used, of these rows of the split's table; count the others."""
        table = self.table(split)[0]
        encoded = self._rows_of(table, rows, prompts=split == "predict")
        if self.long_rows == "drop" and split != "predict":
            whole = encoded.rows[encoded.whole_lengths <= self.max_length]
            encoded = self._rows_of(table, whole)
        self.dropped[split] = len(rows) - len(encoded)
        self.truncated[split] = encoded.truncated
        if self.encoder:
            self.cut_prompts[split] = encoded.cut_prompts
        return encoded

    def encoded(self, split: Split, rows: np.ndarray) -> TokenRows | PairRows:
        encoded = self.kept(split, rows)
        if not len(encoded):
            raise UserError(
                f"data.max_length {self.max_length} leaves no response in any of the {split} rows; give a larger one."
            )
        if self.packing and self.encoder:
            raise UserError("data.packing is for causal models; leave it out.")
        if self.packing and split == "train":
            encoded.bins = pack(encoded.lengths, self.max_length)
            self.packed_rows[split] = len(encoded)
        return encoded

    def _rows_of(self, table: datasets.Dataset, rows: np.ndarray, prompts: bool = False) -> TokenRows | PairRows:
        pad = self.tokenizer.pad_token_id
        if self.encoder:
            return PairRows(table, rows, pad, self.max_length, prompts, self.tokenizer.eos_token_id)
        return TokenRows(table, rows, pad, self.max_length, self.train_on, prompts)

    @property
    def opening(self) -> str:
        """Text that a prompt for generation has after the place where an answer starts."""
        return ""

    def describe(self) -> dict[str, Any]:
        """Return the base class's facts, the rows dropped and truncated, and with packing the packed rows."""
        packed = {"packed_rows": self.packed_rows} if self.packing else {}
        lost = {"dropped_without_response": self.dropped, "truncated_rows": self.truncated}
        lost |= {"truncated_prompts": self.cut_prompts} if self.cut_prompts else {}
        return super().describe() | lost | packed

    def prompts(self, split: Split, count: int) -> Iterator[tuple[dict[str, Tensor], list[str], list[str]]]:
        """Yield batches of the first `count` prompts of a split, with their texts and the expected responses."""
        table = self.table(split)[0]
        rows = self._rows_of(table, self._selected_rows(split)[:count], prompts=True)
        if self.opening and not self.encoder:
            rows.opening = np.array(self._call_tokenizer([self.opening], False)["input_ids"][0])
        for start in range(0, len(rows), self.batch_size):
            batch = rows[range(start, min(start + self.batch_size, len(rows)))]
            numbers = batch["row"].tolist()
            yield batch, [table["text"][row] for row in numbers], [table["answer"][row] for row in numbers]

    def prompt_tokens(self, prompts: list[str], encoder: bool = False) -> list[list[int]]:
        """Return the token ids of each prompt, not truncated, as the rows to predict have them.

        Args:
            prompts: rendered prompts.
            encoder: whether an encoder reads them.
        """
        if encoder:
            return self._call_tokenizer(prompts, self.adds_specials)["input_ids"]
        return self.tokenised(prompts, [[] for _ in prompts], self.adds_specials)["ids"].to_pylist()

    def tokenised(
        self, texts: list[str], answers: list[list[Span]], specials: bool, last_parts: list[int] | None = None
    ) -> dict[str, pa.Array]:
        """Tokenise texts whole; return the columns of `TokenRows` but `text` and `answer`.

        A token has loss if it has a character of an answer. Where a text has no answers, all of it is a prompt.

        Args:
            texts: the texts, one batch.
            answers: start and end of each answer in its text, in characters.
            specials: whether the tokenizer adds its special tokens.
            last_parts: number of the first part of the last answer of each text, where answers have several parts.
        """
        all_ids, all_loss, firsts, lasts = [], [], [], []
        encoded = self._call_tokenizer(texts, specials)
        for number, (text, spans) in enumerate(zip(texts, answers, strict=True)):
            if self.tokenizer.is_fast:
                ids = encoded["input_ids"][number]
                places = [_tokens_of(encoded, number, span, len(text), len(ids)) for span in spans]
            else:
                ids, places = self._in_parts(text, spans, encoded["input_ids"][number])
            if specials:
                ids = self._with_one_end(ids, bool(spans))
            loss = np.full(len(ids), NO_LOSS, dtype=np.int8)
            last = len(places) - 1 if last_parts is None or not places else last_parts[number]
            for part, place in enumerate(places):
                loss[slice(*place)] = LAST_ANSWER if part >= last else ANSWER
            all_ids.append(ids)
            all_loss.append(loss)
            firsts.append(places[0][0] if places else len(ids))
            lasts.append(places[last][0] if places else len(ids))
        loss_lists = pa.ListArray.from_arrays(
            np.cumsum([0, *map(len, all_loss)], dtype=np.int32), np.concatenate(all_loss)
        )
        numbers = {"first": pa.array(firsts, pa.int32()), "last": pa.array(lasts, pa.int32())}
        return {"ids": pa.array(all_ids, IDS), "loss": loss_lists} | numbers

    def _call_tokenizer(self, texts: list[str], specials: bool) -> Any:
        return self.tokenizer(texts, add_special_tokens=specials, return_attention_mask=False, verbose=False)

    def _in_parts(self, text: str, spans: list[Span], whole: list[int]) -> tuple[list[int], list[Span]]:
        """Tokenise the answers apart from what is between them, with a tokenizer that gives no offsets.

        Args:
            text: the text.
            spans: start and end of each answer.
            whole: token ids of the text, with the special tokens that stand before and after it.
        """
        bare = self._call_tokenizer([text], False)["input_ids"][0]
        begin = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        ids, places, at = whole[:begin], [], 0
        for start, end in spans:
            for part in (text[at:start], text[start:end]):
                first = len(ids)
                ids = ids + self._call_tokenizer([part], False)["input_ids"][0]
            places.append((first, len(ids)))
            at = end
        return ids + self._call_tokenizer([text[at:]], False)["input_ids"][0] + whole[begin + len(bare) :], places

    def _with_one_end(self, ids: list[int], answered: bool) -> list[int]:
        """Remove the end-of-text token that a tokenizer adds where it must not be: after a prompt, or a second one."""
        end = self.tokenizer.eos_token_id
        if len(ids) > 1 and ids[-1] == end and (not answered or ids[-2] == end):
            return ids[:-1]
        return ids


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, and of the rest."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def _tokens_of(encoded: Any, number: int, span: Span, length: int, tokens: int) -> Span:
    """Return the first token with a character of a span, and the one after the last; spaces may have no token."""
    start, end = span
    first = next((t for c in range(start, length) if (t := encoded.char_to_token(number, c)) is not None), tokens)
    last = next((t for c in range(end - 1, start - 1, -1) if (t := encoded.char_to_token(number, c)) is not None), None)
    if last is None:
        return first, first
    # several tokens may share a character, such as the bytes of an emoji
    while (place := encoded.token_to_chars(number, last + 1)) and start <= place.start < end:
        last += 1
    return first, last + 1

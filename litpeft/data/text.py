"""Raw text for continued pretraining, from local files or the hub."""

from __future__ import annotations

from typing import Any, Literal

import datasets
import pyarrow as pa

from litpeft.data.base import Split
from litpeft.data.sequences import Sequences
from litpeft.data.tabular import TabularData
from litpeft.errors import UserError


class Text(Sequences, TabularData):
    """Documents for causal models; all tokens have loss.

    A document ends with the end-of-text token. Documents with more than `max_length` tokens are cut into blocks; each
    block after the first starts with the last token of the block before it, so that each token is predicted once. For
    training, blocks are packed into rows of `max_length` tokens; attention stays within a block. Validation and test
    do not pack, so the perplexity is that of documents by themselves.

    Args:
        text_column: name of the column with the text, in files other than .txt.
        documents: what a document is in a .txt file: the whole `file`, a `paragraph` (between empty lines) or a `line`.
        packing: as for `Sequences`.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    train_on = "all"

    def __init__(
        self,
        text_column: str = "text",
        documents: Literal["file", "paragraph", "line"] = "file",
        packing: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(packing=packing, **options)
        self.text_column, self.documents = text_column, documents

    def source(self, split: Split) -> dict[str, Any] | None:
        if self.encoder:
            raise UserError("data Text is for causal models; give --model CausalLM.")
        source = self.source_of_rows(self.split_to_read(split))
        rules = {"kind": "text", "text": self.text_column, "end": self.tokenizer.eos_token}
        return source and source | rules

    def layout(self, path: str) -> dict[str, Any]:
        """Return how to read a file, with `documents`."""
        return super().layout(path) | {"documents": self.documents}

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        read_split = self.split_to_read(split)
        bad, texts, rows = self.bad_rows(split), [], 0
        for place, row in self.read(read_split, {self.text_column: "data.text_column"}):
            rows += 1
            text = row[self.text_column]
            if not isinstance(text, str) or not text.strip():
                kind = "is empty" if text is None or isinstance(text, str) else f"holds {type(text).__name__}, not text"
                bad.add(place, f"column {self.text_column!r} {kind}")
            else:
                texts.append(text)
        bad.check(rows)
        end = self.tokenizer.eos_token or ""
        if split == "predict":
            columns, blocks = self.tokenised(texts, [[] for _ in texts], True), texts
        else:
            whole = [text.removesuffix(end) + end for text in texts]
            tokens = self.tokenised(whole, [[(0, len(text))] for text in whole], True)["ids"]
            columns, blocks = self._in_blocks(tokens, texts)
        facts = {"total_rows": len(blocks), "documents": len(texts)}
        facts |= {"unused_columns": self.unused_columns.get(read_split, [])}
        facts |= {"skipped_rows": len(bad.reasons)} if bad.reasons else {}
        table = pa.table(columns | {"text": blocks, "answer": [""] * len(blocks)})
        return datasets.Dataset(table), facts

    def _in_blocks(self, documents: pa.Array, texts: list[str]) -> tuple[dict[str, pa.Array], list[str]]:
        """Cut the token ids of documents into blocks; return the columns of `TokenRows` and the text of each block."""
        if self.max_length < 2:
            raise UserError("data.max_length must be at least 2: one token predicts the next one.")
        blocks, shown = [], []
        for ids, text in zip(documents, texts, strict=True):
            values, step = ids.values.to_numpy(), self.max_length - 1
            starts = range(0, max(1, len(values) - 1), step)
            blocks += [values[start : start + self.max_length] for start in starts]
            shown += [text if len(starts) == 1 else ""] * len(starts)
        ids = pa.array(blocks, pa.list_(pa.int32()))
        loss = pa.array([[1] * len(block) for block in blocks], pa.list_(pa.int8()))
        zeros = pa.array([0] * len(blocks), pa.int32())
        return {"ids": ids, "loss": loss, "first": zeros, "last": zeros}, shown

    @property
    def stops(self) -> tuple[list[int], list[str]]:
        """What ends a generated text: token ids, and no texts."""
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end], []

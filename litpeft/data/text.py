"""Raw text for continued pretraining, from local files or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa

from litpeft.data.base import Split
from litpeft.data.cache import dataset_of
from litpeft.data.sequences import BATCH, IDS, Sequences, batched
from litpeft.data.tabular import TabularData
from litpeft.data.token_rows import ANSWER
from litpeft.errors import UserError, check_choices


class Text(Sequences, TabularData):
    """Documents for causal models; all tokens have loss.

    A document ends with the end-of-text token. Documents with more than `max_length` tokens are cut into blocks; each
    block after the first starts with the last token of the block before it, so that each token is predicted once. For
    training, blocks are packed into rows of `max_length` tokens; attention stays within a block. Validation and test
    do not pack, so the perplexity is that of documents by themselves.

    Args:
        text_column: name of the column with the text, in files other than .txt.
        documents: what a document is in a .txt file: the whole `file`, a `paragraph` (between empty lines) or a `line`
            (only then is a file not read into memory whole).
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
        check_choices("data", Text.__init__, locals())
        super().__init__(packing=packing, **options)
        self.text_column, self.documents = text_column, documents

    def source(self, split: Split) -> dict[str, Any] | None:
        if self.encoder:
            raise UserError("data Text is for causal models; give --model CausalLM.")
        source = self.source_of_rows(self.split_to_read(split))
        rules = {"kind": "text", "text": self.text_column, "end": self.tokenizer.eos_token}
        # to predict, whole documents; tables of test rows of earlier versions may hold them too
        prompts = {"predict": {"prompts": True}, "test": {"prompts": False}}.get(split, {})
        return source and source | rules | prompts

    def layout(self, path: str) -> dict[str, Any]:
        """Return how to read a file, with `documents`."""
        return super().layout(path) | {"documents": self.documents}

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        if self.max_length < 2:
            raise UserError("data.max_length must be at least 2: one token predicts the next one.")
        facts = {"total_rows": 0, "documents": 0}
        columns = self._prompts if split == "predict" else self._blocks
        batches = (columns(texts) for texts in batched(self._documents(split, facts), BATCH))
        table = self.stored(batches)
        return dataset_of(table), facts | {"total_rows": len(table)}

    def _documents(self, split: Split, facts: dict[str, Any]) -> Iterator[str]:
        """Yield the documents of a split, and count them."""
        read_split = self.split_to_read(split)
        bad, rows = self.bad_rows(split), 0
        for place, row in self.read(read_split, {self.text_column: "data.text_column"}):
            rows += 1
            text = row[self.text_column]
            if isinstance(text, str) and text.strip():
                facts["documents"] += 1
                yield text
                continue
            kind = "is empty" if text is None or isinstance(text, str) else f"holds {type(text).__name__}, not text"
            bad.add(place, f"column {self.text_column!r} {kind}")
        bad.check(rows)
        facts["unused_columns"] = self.unused_columns[read_split]
        if bad.reasons:
            facts["skipped_rows"] = len(bad.reasons)

    def _prompts(self, texts: list[str]) -> dict[str, pa.Array]:
        shown = {"text": pa.array(texts), "answer": pa.array([""] * len(texts))}
        return self.tokenised(texts, [[] for _ in texts], self.adds_specials) | shown

    def _blocks(self, texts: list[str]) -> dict[str, pa.Array]:
        """Tokenise documents and cut them into blocks; the text of a document is kept if it is one block."""
        end = self.tokenizer.eos_token or ""
        whole = [text.removesuffix(end) + end for text in texts]
        blocks, shown = [], []
        tokens = self.tokenised(whole, [[(0, len(text))] for text in whole], self.adds_specials)["ids"]
        for ids, text in zip(tokens, texts, strict=True):
            values = ids.values.to_numpy()
            starts = range(0, max(1, len(values) - 1), self.max_length - 1)
            blocks += [values[start : start + self.max_length] for start in starts]
            shown += [text if len(starts) == 1 else ""] * len(starts)
        loss = pa.array([np.full(len(block), ANSWER, dtype=np.int8) for block in blocks], pa.list_(pa.int8()))
        zeros = pa.array([0] * len(blocks), pa.int32())
        columns = {"ids": pa.array(blocks, IDS), "loss": loss, "first": zeros, "last": zeros}
        return columns | {"text": pa.array(shown), "answer": pa.array([""] * len(blocks))}

    @property
    def stops(self) -> tuple[list[int], list[str]]:
        """What ends a generated text: token ids, and no texts."""
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end], []

"""Base class of the data sets of texts, or pairs of texts, with labels of any kind."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from litpeft.data.bad_rows import BadRows
from litpeft.data.base import Split
from litpeft.data.cache import dataset_of
from litpeft.data.label_kind import LabelledData
from litpeft.data.sequences import BATCH, IDS, batched
from litpeft.data.told import Part
from litpeft.errors import UserError


class LabelledTexts(LabelledData):
    """Texts, or pairs of texts, with labels; a subclass sets `self.labels`, which says of which kind.

    Args:
        text_column: name of the column with the text. Two columns are a pair, which the tokenizer joins with its
            separator; the longer text is truncated first.
        join_columns: join the columns with a space into one text, instead of a pair.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    def __init__(self, text_column: str | list[str] = "text", join_columns: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.text_columns = [text_column] if isinstance(text_column, str) else list(text_column)
        self.join_columns = join_columns
        if len(self.text_columns) > 2 and not join_columns:
            raise UserError(
                f"data.text_column names {len(self.text_columns)} columns; give one or two (a pair), or "
                "--data.join_columns true to join them with spaces."
            )

    def source(self, split: Split) -> dict[str, Any] | None:
        labelled, split = split != "predict", self.split_to_read(split)
        options: dict[str, Any] = {"text": self.text_columns, "labelled": labelled}
        if len(self.text_columns) > 1 and not self.join_columns:
            options["pair"] = True
        options |= self.labels.rules(split)
        rows = self.source_of_rows(split)
        return rows and options | rows

    def layout(self, path: str) -> dict[str, Any]:
        """Return how to read a file, with `text_column`; `label_column` too, where the file has other names."""
        return super().layout(path) | {"text_column": self.text_columns}

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        labelled, read_split = split != "predict", self.split_to_read(split)
        bad, truncated = self.bad_rows(split), [0]
        places, labels = [], []

        def texts() -> Iterator[tuple[str, ...]]:
            for place, text, label in self._read(read_split, labelled, bad):
                places.append(place), labels.append(label)
                yield text

        table = self.stored(self._encode(part, truncated) for part in batched(texts(), BATCH))
        if labelled:
            column, facts = self.labels.encode(read_split, labels, places, bad)
        else:
            column, facts = self.labels.blank(len(places))
        bad.check(len(places))
        table = table.append_column("label", column)
        if bad.reasons:
            table = table.filter(pa.array([place not in bad.reasons for place in places]))
        if "token_type_ids" in table.column_names and not pc.max(pc.list_flatten(table["token_type_ids"])).as_py():
            table = table.drop_columns("token_type_ids")  # a model assumes zeros
        facts |= {"total_rows": len(places), "truncated_rows": truncated[0]}
        facts |= {"unused_columns": self.unused_columns.get(read_split, [])}
        return dataset_of(table), facts | ({"skipped_rows": len(bad.reasons)} if bad.reasons else {})

    def _encode(self, texts: list[tuple[str, ...]], truncated: list[int]) -> dict[str, pa.Array]:
        """Return the columns of a batch of texts or pairs; add to `truncated[0]` how many were truncated."""
        given = list(map(list, zip(*texts, strict=True)))
        columns = self.tokenizer(*given, return_attention_mask=False, verbose=False)
        long = [i for i, row in enumerate(columns["input_ids"]) if len(row) > self.max_length]
        if long:  # only the tokenizer keeps the special tokens, and the start of both texts, when it truncates
            given = map(list, zip(*(texts[i] for i in long), strict=True))
            again = self.tokenizer(*given, truncation=True, max_length=self.max_length, return_attention_mask=False)
            for name, rows in columns.items():
                for i, row in zip(long, again[name], strict=True):
                    rows[i] = row
        truncated[0] += len(long)
        kinds = {"input_ids": IDS, "token_type_ids": pa.list_(pa.int8())}
        encoded = {name: pa.array(columns[name], kind) for name, kind in kinds.items() if name in columns}
        cut = np.zeros(len(texts), dtype=bool)
        cut[long] = True
        return encoded | {"truncated": pa.array(cut), "text": pa.array(["\n".join(text) for text in texts])}

    def _read(
        self, split: Split, labelled: bool, bad: BadRows
    ) -> Iterator[tuple[str, tuple[str, ...], tuple[Any, ...]]]:
        """Yield (place, text or pair of texts, values of the label columns) of each row; the place is for messages."""
        path = self.files[split]
        layout = self.layout(path) if path else {}
        text_columns = layout.get("text_column", self.text_columns)
        label_columns = layout.get("label_column", self.labels.columns) if labelled else []
        required = dict.fromkeys(text_columns, "data.text_column") | dict.fromkeys(label_columns, "data.label_column")
        for place, row in self.read(split, required):
            parts = [row[name] for name in text_columns]
            for name, part in zip(text_columns, parts, strict=True):
                if part is None or (isinstance(part, float) and math.isnan(part)):
                    bad.add(place, f"column {name!r} is empty (see data.text_column)")
                elif not isinstance(part, str):
                    bad.add(place, f"column {name!r} holds {type(part).__name__}, not text (see data.text_column)")
            texts = [part if isinstance(part, str) else "" for part in parts]
            if self.join_columns:
                texts = [" ".join(texts)]
            if not all(text.strip() for text in texts):
                bad.add(place, "the text is empty (see data.text_column)")
            yield place, tuple(texts), tuple(row[name] for name in label_columns)

    def example(self, split: Split, index: int = 0) -> list[Part]:
        """Return the text of a row and its label, which has the loss."""
        label = self.stored_labels(split)[index]
        return [*super().example(split, index), (" -> ", False), (self.labels.shown(label), True)]

    def describe(self) -> dict[str, Any]:
        cut = {split: self._truncated(split) for split in self.rows if "truncated" in self.table(split)[0].column_names}
        return super().describe() | self.labels.describe() | {"truncated_rows": cut}

    def _truncated(self, split: Split) -> int:
        """Return how many of the used rows of a split are truncated; tables of version 0.1.0 do not know it."""
        return int(self.table(split)[0].data.column("truncated").to_numpy()[self.rows[split].rows].sum())

    def warn(self) -> None:
        super().warn()
        self._warn_of_missing_separator()

    def _warn_of_missing_separator(self) -> None:
        """Print a warning if the tokenizer adds nothing between the texts of a pair, as those of GPT-2 and Llama."""
        if len(self.text_columns) == 1 or self.join_columns:
            return
        tokenizer = self.tokenizer
        if tokenizer.num_special_tokens_to_add(pair=True) <= tokenizer.num_special_tokens_to_add(pair=False):
            print(
                "litpeft: warning: data.text_column: this tokenizer has no separator, so the second text of a pair "
                "follows the first directly; --data.join_columns true puts a space between them.",
                file=sys.stderr,
            )

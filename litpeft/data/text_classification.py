"""Text classification data from local files or the hub; SST2 and AGNews are presets of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from litpeft.data.bad_rows import BadRows
from litpeft.data.base import Split
from litpeft.data.cache import dataset_of
from litpeft.data.labels import class_numbers, classes_needed, warn_of_similar
from litpeft.data.sequences import BATCH, IDS, batched
from litpeft.data.tabular import TabularData
from litpeft.data.told import Part
from litpeft.errors import UserError


class TextClassification(TabularData):
    """Texts, or pairs of texts, with one class each, from local files or the hub.

    Labels are numbers (starting at `label_offset`, or -1 and 1) or names. The classes come from `label_names`, else
    from the data set's description on the hub, else from the training rows. Empty cells, NaN, NA and null are missing.

    Args:
        text_column: name of the column with the text. Two columns are a pair, which the tokenizer joins with its
            separator; the longer text is truncated first.
        join_columns: join the columns with a space into one text, instead of a pair.
        label_column: name of the column with the label; `predict_file` does not need it.
        label_names: names of the classes, in the order of their numbers.
        label_offset: number of the first class in the files: 0, or 1 if the files count from 1.
        val_cut: how validation rows are cut from the training rows if there is no validation split: `stratified` (each
            class in proportion) or `random`, as up to version 0.1.0.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    def __init__(
        self,
        text_column: str | list[str] = "text",
        label_column: str = "label",
        label_names: list[str] | None = None,
        label_offset: int = 0,
        join_columns: bool = False,
        val_cut: Literal["stratified", "random"] = "stratified",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.text_columns = [text_column] if isinstance(text_column, str) else list(text_column)
        self.join_columns, self.val_cut = join_columns, val_cut
        self.label_column, self.label_offset, self._label_names = label_column, label_offset, label_names
        if label_names is not None and len(set(label_names)) < max(2, len(label_names)):
            raise UserError(f"data.label_names needs two or more different names, got {label_names}.")
        if len(self.text_columns) > 2 and not join_columns:
            raise UserError(
                f"data.text_column names {len(self.text_columns)} columns; give one or two (a pair), or "
                "--data.join_columns true to join them with spaces."
            )

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        return self._label_names or self._hub_label_names() or self.table("train")[1]["label_names"]

    def source(self, split: Split) -> dict[str, Any] | None:
        labelled, split = split != "predict", self.split_to_read(split)
        options: dict[str, Any] = {"text": self.text_columns, "label": self.label_column, "labelled": labelled}
        if len(self.text_columns) > 1 and not self.join_columns:
            options["pair"] = True
        if split != "train":
            options["names"] = self.label_names  # labels were checked against these names
        elif self._label_names:
            options["names"] = self._label_names
        rows = self.source_of_rows(split)
        return rows and options | {"label_offset": self.label_offset} | rows

    def layout(self, path: str) -> dict[str, Any]:
        """Return how to read a file, with `text_column` and `label_offset`."""
        return super().layout(path) | {"text_column": self.text_columns, "label_offset": self.label_offset}

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        labelled, read_split = split != "predict", self.split_to_read(split)
        bad, truncated = self.bad_rows(split), [0]
        places, labels = [], []

        def texts() -> Iterator[tuple[str, ...]]:
            for place, text, label in self._read(read_split, labelled, bad):
                places.append(place), labels.append(label)
                yield text

        table = self.stored(self._encode(part, truncated) for part in batched(texts(), BATCH))
        names = self._label_names or self._hub_label_names()
        if split not in ("train", "predict"):
            names = self.label_names
        file = self.files[read_split]
        offset = self.layout(file)["label_offset"] if file else self.label_offset
        ids = [-1] * len(places)
        if labelled and names is None and self.streaming:
            raise classes_needed(labels)
        if labelled:
            ids, names = class_numbers(labels, places, names, offset, bad)
        bad.check(len(places))
        table = table.append_column("label", pa.array(ids, pa.int64()))
        if bad.reasons:
            table = table.filter(pa.array([place not in bad.reasons for place in places]))
        if "token_type_ids" in table.column_names and not pc.max(pc.list_flatten(table["token_type_ids"])).as_py():
            table = table.drop_columns("token_type_ids")  # a model assumes zeros
        facts = {"label_names": names, "total_rows": len(places), "truncated_rows": truncated[0]}
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
        encoded["truncated"] = pa.array(cut)
        return encoded | {"text": pa.array(["\n".join(text) for text in texts])}

    def _read(self, split: Split, labelled: bool, bad: BadRows) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        """Yield (place, text or pair of texts, label) of each row; the place is for error messages."""
        path = self.files[split]
        text_columns = self.layout(path)["text_column"] if path else self.text_columns
        required = dict.fromkeys(text_columns, "data.text_column")
        if labelled:
            required[self.label_column] = "data.label_column"
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
            yield place, tuple(texts), row[self.label_column] if labelled else None

    def _hub_label_names(self) -> list[str] | None:
        rows = self.hub_rows("train") if self.dataset else None
        feature = rows.features.get(self.label_column) if rows is not None else None
        return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def cut(self, order: np.ndarray, rows: int) -> np.ndarray:
        """Return `order` with the validation rows first; each class has its share of them, if `val_cut` is stratified.

        A class with one row stays in train. Shares are rounded so that the total is `rows` (largest remainders).
        """
        if self.val_cut == "random":
            return order
        labels = self._labels("train")[order]
        counts = np.bincount(labels, minlength=len(self.label_names))
        exact = counts * (rows / len(order))
        shares = np.minimum(np.floor(exact), np.maximum(counts - 1, 0)).astype(int)
        for number in np.argsort(shares - exact, kind="stable"):  # largest remainders first
            if shares.sum() < rows and shares[number] < counts[number] - 1:
                shares[number] += 1
        for number in np.argsort(-counts, kind="stable"):  # what small classes could not give
            shares[number] += max(0, min(rows - shares.sum(), counts[number] - 1 - shares[number]))
        place_in_class = np.empty(len(order), dtype=int)
        for number in range(len(counts)):
            mine = labels == number
            place_in_class[mine] = np.arange(counts[number])
        held_out = place_in_class < shares[labels]
        return np.concatenate([order[held_out], order[~held_out]])

    def class_counts(self, split: Split) -> dict[str, int]:
        """Return the number of used rows of each class of a split, after `setup`."""
        labels = self._labels(split)[self.rows[split].rows]
        return {name: int((labels == number).sum()) for number, name in enumerate(self.label_names)}

    def _labels(self, split: Split) -> np.ndarray:
        return self.table(split)[0].data.column("label").to_numpy()

    def example(self, split: Split, index: int = 0) -> list[Part]:
        """Return the text of a row and its class, which has the loss."""
        number = int(self._labels(split)[self.rows[split].rows[index]])
        return [*super().example(split, index), (" -> ", False), (self.label_names[number], True)]

    def describe(self) -> dict[str, Any]:
        names = self.label_names
        classes = {split: self.class_counts(split) for split in self.rows if split != "predict"}
        cut = {split: self._truncated(split) for split in self.rows if "truncated" in self.table(split)[0].column_names}
        return super().describe() | {"label_names": names, "classes": classes, "truncated_rows": cut}

    def _truncated(self, split: Split) -> int:
        """Return how many of the used rows of a split are truncated; tables of version 0.1.0 do not know it."""
        return int(self.table(split)[0].data.column("truncated").to_numpy()[self.rows[split].rows].sum())

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and getattr(self.trainer, "is_global_zero", True):  # the first process speaks
            warn_of_similar(self.label_names)
            self._warn_of_missing_separator()
            counts = {} if self.streaming else self.class_counts("train")
            if empty := [name for name, count in counts.items() if not count]:
                print(
                    f"litpeft: warning: no training row has the label {', '.join(map(repr, empty))}.", file=sys.stderr
                )

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

"""Text classification data from local files or the hub; SST2 and AGNews are presets of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import datasets
import pyarrow as pa

from litpeft.data.base import Split
from litpeft.data.tabular import TabularData
from litpeft.errors import UserError

BATCH = 1000  # texts per call of the tokenizer
ALWAYS_CLASSES = 20  # up to this many different labels are classes, even with few rows


class TextClassification(TabularData):
    """Texts with one class each, from local files or the hub.

    Labels are numbers (starting at `label_offset`) or names. The classes come from `label_names`, else from the data
    set's description on the hub, else from the training rows.

    Args:
        text_column: name of the column with the text; several columns are joined with a space.
        label_column: name of the column with the label; `predict_file` does not need it.
        label_names: names of the classes, in the order of their numbers.
        label_offset: number of the first class in the files: 0, or 1 if the files count from 1.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    def __init__(
        self,
        text_column: str | list[str] = "text",
        label_column: str = "label",
        label_names: list[str] | None = None,
        label_offset: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.text_columns = [text_column] if isinstance(text_column, str) else list(text_column)
        self.label_column, self.label_offset, self._label_names = label_column, label_offset, label_names
        if label_names is not None and len(set(label_names)) < max(2, len(label_names)):
            raise UserError(f"data.label_names needs two or more different names, got {label_names}.")

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        return self._label_names or self._hub_label_names() or self.table("train")[1]["label_names"]

    def source(self, split: Split) -> dict[str, Any] | None:
        labelled, split = split != "predict", self.split_to_read(split)
        options: dict[str, Any] = {"text": self.text_columns, "label": self.label_column, "labelled": labelled}
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
        places, texts, labels = [], [], []
        for place, text, label in self._read(read_split, labelled):
            places.append(place), texts.append(text), labels.append(label)
        names = self._label_names or self._hub_label_names()
        if split not in ("train", "predict"):
            names = self.label_names
        file = self.files[read_split]
        offset = self.layout(file)["label_offset"] if file else self.label_offset
        ids, names = _class_numbers(labels, places, names, offset) if labelled else ([-1] * len(texts), names)
        encoded, truncated = self._encode(texts)
        columns = {"input_ids": pa.array(encoded, pa.list_(pa.int32())), "label": ids, "text": texts}
        facts = {"label_names": names, "total_rows": len(texts), "truncated_rows": truncated}
        return datasets.Dataset(pa.table(columns)), facts

    def _encode(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each text, and the number of texts truncated to `max_length`."""
        encoded: list[list[int]] = []
        truncated = 0
        for start in range(0, len(texts), BATCH):
            ids = self.tokenizer(texts[start : start + BATCH], verbose=False)["input_ids"]
            long = [i for i, row in enumerate(ids) if len(row) > self.max_length]
            if long:  # only the tokenizer keeps the final special token when it truncates
                again = self.tokenizer([texts[start + i] for i in long], truncation=True, max_length=self.max_length)
                for i, row in zip(long, again["input_ids"], strict=True):
                    ids[i] = row
            truncated += len(long)
            encoded += ids
        return encoded, truncated

    def _read(self, split: Split, labelled: bool) -> Iterator[tuple[str, str, Any]]:
        """Yield (place, text, label) of each row; the place is for error messages."""
        path = self.files[split]
        text_columns = self.layout(path)["text_column"] if path else self.text_columns
        required = dict.fromkeys(text_columns, "data.text_column")
        if labelled:
            required[self.label_column] = "data.label_column"
        for place, row in self.read(split, required):
            parts = [row[name] for name in text_columns]
            for name, part in zip(text_columns, parts, strict=True):
                if not isinstance(part, str):
                    raise UserError(
                        f"{place}: column {name!r} holds {type(part).__name__}, not text (see data.text_column)."
                    )
            text = " ".join(parts)
            if not text.strip():
                raise UserError(f"{place}: the text is empty; remove the row, or see data.text_column.")
            yield place, text, row[self.label_column] if labelled else None

    def _hub_label_names(self) -> list[str] | None:
        rows = self.hub_rows("train") if self.dataset else None
        feature = rows.features.get(self.label_column) if rows is not None else None
        return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"label_names": self.label_names}


def _class_numbers(
    labels: list[Any], places: list[str], names: list[str] | None, offset: int
) -> tuple[list[int], list[str]]:
    """Return the class number of each row, from 0, and the class names; `names` of None are taken from the labels."""
    labels = [_as_text(label, place) for label, place in zip(labels, places, strict=True)]
    if names is None:
        names = _names_from_labels(labels, places, offset)
    by_name = {name: i for i, name in enumerate(names)}
    ids = []
    for place, label in zip(places, labels, strict=True):
        index = None if offset and label.removeprefix("-").isdecimal() else by_name.get(label)
        if index is None and label.removeprefix("-").isdecimal():
            index = int(label) - offset
        if index is None or not 0 <= index < len(names):
            raise UserError(
                f"{place}: label {label!r} is not one of {', '.join(names)} "
                f"(numbers {offset} to {offset + len(names) - 1}); "
                "see data.label_names, data.label_offset and data.label_column."
            )
        ids.append(index)
    return ids, names


def _names_from_labels(labels: list[str], places: list[str], offset: int) -> list[str]:
    """Return the classes of the training rows: the sorted names, or the numbers if all labels are numbers.

    Raises:
        UserError: all labels are equal, too many are different, or a number is missing or below the offset.
    """
    distinct = set(labels)
    if len(distinct) < 2:
        raise UserError(f"{places[0]} and all other rows have the same label, {labels[0]}; two classes are needed.")
    file = places[0].rpartition(" ")[0].rpartition(" ")[0]
    if len(distinct) > max(ALWAYS_CLASSES, len(labels) / 2):
        raise UserError(
            f"{file}: {len(distinct)} different labels in {len(labels)} rows, for example {labels[0]!r}, are too many "
            "for classes; see data.label_column."
        )
    if not all(label.removeprefix("-").isdecimal() for label in distinct):
        return sorted(distinct)
    numbers = sorted(int(label) for label in distinct)
    if numbers[0] < offset:
        place = places[labels.index(str(numbers[0]))]
        raise UserError(f"{place}: label {numbers[0]} is below data.label_offset {offset}.")
    if numbers != list(range(offset, offset + len(numbers))):
        if numbers[-1] - numbers[0] == len(numbers) - 1:
            raise UserError(
                f"{file}: labels go from {numbers[0]} to {numbers[-1]}; give data.label_offset {numbers[0]}."
            )
        absent = next(n for n, number in enumerate(numbers, offset) if n != number)
        raise UserError(
            f"{file}: labels go up to {numbers[-1]}, but no row has {absent}; "
            "give data.label_names if some classes have no rows, or see data.label_column."
        )
    return [str(number) for number in numbers]


def _as_text(label: Any, place: str) -> str:
    """Return a label as text: the digits of a number, or a name without surrounding spaces.

    Raises:
        UserError: the label is empty, or neither a number nor a name.
    """
    if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
        label = int(label)
    text = str(label).strip()
    if label is None or isinstance(label, (list, dict)) or not text:
        raise UserError(f"{place}: {label!r} is not a label; see data.label_column.")
    return text

"""Any number of labels per text: written as a list, as text with a separator, or as columns of 0 and 1."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from litpeft.data.bad_rows import BadRows
from litpeft.data.base import Split
from litpeft.data.class_labels import warn_of_empty
from litpeft.data.label_kind import NamedLabels
from litpeft.data.labels import (
    ALWAYS_CLASSES,
    MISSING,
    classes_needed,
    counted,
    is_number,
    label_text,
    warn_of_similar,
)
from litpeft.data.tabular import TabularData
from litpeft.errors import UserError

RULES = 2  # increase when lists are read otherwise, so that cached tables are not used
# NumPy writes arrays without commas: ['a' 'b'] and [1 2]
NUMBERS, ARRAY = re.compile(r"\[[\d\s.+-]+\]"), re.compile(r"(?<=[\d.])\s+(?=[\d+-])")
QUOTES = re.compile(r"""(['"])\s+(['"])""")
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")  # in columns of 0 and 1, in any case


class LabelSets(NamedLabels):
    """Any number of labels per text, stored as 1 and 0 for each label, (rows, labels) int8.

    Args:
        data: the data set.
        columns: one column with lists or separated text, or several columns of 0 and 1, which name the labels.
        names: names of the labels, in their order; None to take them from the columns or from the data.
        separator: what stands between labels in one text.

    Raises:
        UserError: the names are fewer than two or not different, or differ from the columns in number; or a column is
            named twice.
    """

    kind = "set"

    def __init__(
        self, data: TabularData, columns: list[str], names: list[str] | None = None, separator: str = ","
    ) -> None:
        super().__init__(data, columns)
        self.in_columns = len(columns) > 1
        if names is not None and len(set(names)) < max(2, len(names)):
            raise UserError(f"data.label_names needs two or more different names, got {names}.")
        if len(set(columns)) < len(columns):
            raise UserError(f"data.label_column needs one or several different columns, got {columns}.")
        if self.in_columns and len(names or columns) != len(columns):
            raise UserError(
                f"data.label_column names {len(columns)} different columns of 0 and 1, and data.label_names "
                f"{len(names or columns)} labels; give one name per column, or leave data.label_names out."
            )
        if not separator:
            raise UserError("data.label_separator must not be empty.")
        self.given = names or (columns if self.in_columns else None)
        self.separator = separator

    def rules(self, split: Split) -> dict[str, Any]:
        lists = {} if self.in_columns else {"lists": RULES}
        return self.rules_with_names(split, {"label_sets": self.columns, "separator": self.separator} | lists)

    def encode(
        self, split: Split, labels: list[tuple[Any, ...]], places: list[str], bad: BadRows
    ) -> tuple[pa.Array, dict[str, Any]]:
        read = self._flags if self.in_columns else self._listed
        sets = [read(row, place, bad) for row, place in zip(labels, places, strict=True)]
        bad.check(len(places))  # before labels are taken from what is left
        names = self.names if split != "train" else self.stated_names()
        coded = self.codes(split) is not None
        if not self.in_columns and not coded and (width := _flags_per_row(sets)):
            names = names or [str(number) for number in range(width)]
            sets = _of_flags(sets, names, width, places)
        if names is None and self.data.streaming:
            raise classes_needed([label for found in sets for label in found])
        names = names or _names_of(sets, places)
        by_name = {} if coded else {name: number for number, name in enumerate(names)}
        by_number = coded or counted(names)
        stored = np.zeros((len(sets), len(names)), dtype=np.int8)
        for row, (found, place) in enumerate(zip(sets, places, strict=True)):
            for label in found:
                number = by_name.get(label, int(label) if by_number and is_number(label) else -1)
                if 0 <= number < len(names):
                    stored[row, number] = 1
                else:
                    bad.add(place, f"label {label!r} is not one of {', '.join(names)}; see data.label_names")
        without = sum(not found and place not in bad.reasons for found, place in zip(sets, places, strict=True))
        return self._stored(stored), {"label_names": names, "rows_without_label": without}

    def blank(self, rows: int) -> tuple[pa.Array, dict[str, Any]]:
        return self._stored(np.zeros((rows, len(self.names)), dtype=np.int8)), {"label_names": self.names}

    def _stored(self, flags: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(flags.reshape(-1)), flags.shape[1])

    def codes(self, split: Split) -> datasets.ClassLabel | None:
        feature = getattr(self.feature(split), "feature", None)
        return feature if isinstance(feature, datasets.ClassLabel) else None

    def _flags(self, values: tuple[Any, ...], place: str, bad: BadRows) -> list[str]:
        """Return the names of the columns that are 1."""
        found = []
        for name, column, value in zip(self.given or (), self.columns, values, strict=True):
            text = (label_text(value) or "").lower()
            if text in TRUE:
                found.append(name)
            elif text not in FALSE:
                bad.add(place, f"column {column!r} holds {value!r}, neither 0 nor 1 (see data.label_column)")
        return found

    def _listed(self, values: tuple[Any, ...], place: str, bad: BadRows) -> list[str]:
        """Return the labels in a list, or in one text; an empty list or text has none."""
        (value,) = values
        if isinstance(value, str):
            value = _parsed(value, self.separator)
        if isinstance(value, (int, float)) and (one := label_text(value)) is not None:  # a single label as a number
            value = [one]
        if not isinstance(value, (list, tuple, np.ndarray)):
            bad.add(place, f"{value!r}: the labels are missing; an empty list is a row without labels")
            return []
        texts = [None if isinstance(item, (list, dict)) else label_text(item) for item in value]
        if any(text is None or text.lower() in MISSING for text in texts):
            bad.add(place, f"{value!r} holds something that is no label (see data.label_column)")
            return []
        return [text for text in texts if text is not None]

    def shown(self, label: np.ndarray) -> str:
        found = [name for name, has in zip(self.names, label, strict=True) if has]
        return ", ".join(found) or "no label"

    def counts(self, split: Split) -> dict[str, int]:
        """Return the number of used rows with each label of a split, after `setup`."""
        return dict(zip(self.names, self.data.stored_labels(split).sum(axis=0, dtype=int).tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """Return the names of the labels, the rows with each label, and the mean number of labels per row."""
        splits = [split for split in self.data.rows if split != "predict"]
        means = {split: float(self.data.stored_labels(split).sum(axis=1).mean()) for split in splits}
        classes = {split: self.counts(split) for split in splits}
        return {"label_names": self.names, "classes": classes, "labels_per_row": means}

    def warn(self) -> None:
        """Print a warning for similar label names, and for labels without training or validation rows."""
        warn_of_similar(self.names)
        if not self.data.streaming:
            warn_of_empty(self.counts("train"))
        if absent := [name for name, count in self.counts("val").items() if not count]:
            print(
                f"litpeft: warning: no validation row has the label {', '.join(map(repr, absent))}; the metrics map "
                "and auroc are means of the other labels.",
                file=sys.stderr,
            )


def _parsed(text: str, separator: str) -> list[Any] | None:
    """Return the labels in a text: a list as JSON or Python writes it, or separated; None if it says missing."""
    stripped = text.strip()
    if stripped.lower() in MISSING:
        return None if stripped else []
    if stripped.startswith("[") and stripped.endswith("]"):
        with_commas = ARRAY.sub(", ", stripped) if NUMBERS.fullmatch(stripped) else QUOTES.sub(r"\1, \2", stripped)
        for read, written in ((json.loads, stripped), (ast.literal_eval, with_commas)):
            try:
                found = read(written)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
        if not {"[", "]"} & set(stripped[1:-1]):  # names without quotes
            stripped = stripped[1:-1]
    parts = [part.strip() for part in stripped.split(separator)]
    return [part for part in parts if part]


def _flags_per_row(sets: Sequence[Sequence[str]]) -> int | None:
    """Return how many labels there are if the lists have 0 or 1 for each label; None if they list labels.

    Such lists have one length, and a list of labels does not name one twice.
    """
    given = [found for found in sets if found]
    lengths = {len(found) for found in given}
    if len(lengths) != 1 or not {label for found in given for label in found} <= {"0", "1"}:
        return None
    return lengths.pop() if any(list(found) != sorted(set(found)) for found in given) else None


def _of_flags(
    sets: Sequence[Sequence[str]], names: Sequence[str], width: int, places: Sequence[str]
) -> list[list[str]]:
    """Return the names of the labels whose flag is 1, of each row.

    Raises:
        UserError: there is not one flag for each label.
    """
    if width != len(names):
        raise UserError(
            f"{places[0]}: the labels are lists of {width} numbers 0 and 1, one for each label, and there are "
            f"{len(names)} labels ({', '.join(names)}); see data.label_names."
        )
    return [[name for name, flag in zip(names, found, strict=False) if flag == "1"] for found in sets]


def _names_of(sets: Sequence[Sequence[str]], places: Sequence[str]) -> list[str]:
    """Return the labels of the training rows: the sorted names, or all numbers up to the largest.

    Raises:
        UserError: there are fewer than two labels, or too many to be labels.
    """
    distinct = {label for found in sets for label in found}
    file = places[0].rpartition(" ")[0].rpartition(" ")[0]
    if len(distinct) < 2:
        raise UserError(f"{file}: the rows have {len(distinct)} different labels; two are needed (data.label_column).")
    if len(distinct) > max(ALWAYS_CLASSES, len(sets) / 2):
        raise UserError(
            f"{file}: {len(distinct)} different labels in {len(sets)} rows are too many; see data.label_column and "
            "data.label_separator."
        )
    if all(is_number(label) and int(label) >= 0 for label in distinct):
        return [str(number) for number in range(max(map(int, distinct)) + 1)]
    return sorted(distinct)

"""Labels that are one class per text."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from litpeft.data.bad_rows import BadRows
from litpeft.data.base import Split
from litpeft.data.label_kind import NamedLabels
from litpeft.data.labels import class_numbers, classes_needed, warn_of_similar
from litpeft.data.tabular import TabularData
from litpeft.errors import UserError, check_choices


class ClassLabels(NamedLabels):
    """One class per text, stored as its number, (rows,) int64.

    Args:
        data: the data set.
        column: name of the column with the label: a number or a name.
        names: names of the classes, in the order of their numbers; None to take them from the data.
        offset: number of the first class in the files.
        val_cut: how validation rows are cut from the training rows: `stratified` or `random`.

    Raises:
        UserError: fewer than two names, or a name twice.
    """

    kind = "class"

    def __init__(
        self,
        data: TabularData,
        column: str,
        names: list[str] | None,
        offset: int = 0,
        val_cut: Literal["stratified", "random"] = "stratified",
    ) -> None:
        check_choices("data", ClassLabels.__init__, locals())
        super().__init__(data, [column])
        self.given, self.offset, self.val_cut = names, offset, val_cut
        if names is not None and len(set(names)) < max(2, len(names)):
            raise UserError(f"data.label_names needs two or more different names, got {names}.")

    def rules(self, split: Split) -> dict[str, Any]:
        return self.rules_with_names(split, {"label": self.columns[0], "label_offset": self.offset})

    def encode(
        self, split: Split, labels: list[tuple[Any, ...]], places: list[str], bad: BadRows
    ) -> tuple[pa.Array, dict[str, Any]]:
        names = self.names if split != "train" else self.stated_names()
        file = self.data.files[split]
        offset = self.data.layout(file)["label_offset"] if file else self.offset
        given = [label for (label,) in labels]
        if names is None and self.data.streaming:
            raise classes_needed(given)
        ids, names = class_numbers(given, places, names, offset, bad, self.codes(split) is not None)
        return pa.array(ids, pa.int64()), {"label_names": names}

    def blank(self, rows: int) -> tuple[pa.Array, dict[str, Any]]:
        return pa.array([-1] * rows, pa.int64()), {"label_names": self.stated_names()}

    def shown(self, label: np.ndarray) -> str:
        return self.names[int(label)]

    def counts(self, split: Split) -> dict[str, int]:
        """Return the number of used rows of each class of a split, after `setup`."""
        labels = self.data.stored_labels(split)
        return {name: int((labels == number).sum()) for number, name in enumerate(self.names)}

    def describe(self) -> dict[str, Any]:
        classes = {split: self.counts(split) for split in self.data.rows if split != "predict"}
        return {"label_names": self.names, "classes": classes}

    def cut(self, order: np.ndarray, rows: int) -> np.ndarray:
        """Return `order` with the validation rows first; each class has its share of them, if `val_cut` is stratified.

        A class with one row stays in train. Shares are rounded so that the total is `rows` (largest remainders).
        """
        if self.val_cut == "random":
            return order
        labels = self.data.stored_labels("train", order)
        counts = np.bincount(labels, minlength=len(self.names))
        exact = counts * (rows / len(order))
        shares = np.floor(exact).astype(int)
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

    def warn(self) -> None:
        """Print a warning for similar class names, and for classes without training rows."""
        warn_of_similar(self.names)
        if not self.data.streaming:
            warn_of_empty(self.counts("train"))


def warn_of_empty(counts: dict[str, int]) -> None:
    """Print a warning that names the labels without a training row; `counts` is training rows by label."""
    if empty := [name for name, count in counts.items() if not count]:
        print(f"litpeft: warning: no training row has the label {', '.join(map(repr, empty))}.", file=sys.stderr)

"""Base class of the kinds of labels that a text can have: a class, numbers, or a set of labels."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa

from litpeft.data.bad_rows import BadRows
from litpeft.data.base import Split
from litpeft.data.labels import counted
from litpeft.data.tabular import TabularData


class Labels:
    """How the labels of a data set are read, stored in its tables, and described.

    Args:
        data: the data set.
        columns: names of the columns with the labels.

    Attributes:
        kind: which tasks can learn them: `class`, `number` or `set`.
        given: names of the model's outputs as given in the options; None to take them from the training rows.
    """

    kind: Literal["class", "number", "set"]
    given: list[str] | None = None

    def __init__(self, data: TabularData, columns: list[str]) -> None:
        self.data, self.columns = data, columns

    @property
    def names(self) -> list[str]:
        """Names of the model's outputs, in their order."""
        raise NotImplementedError

    def rules(self, split: Split) -> dict[str, Any]:
        """Return what the stored labels of a split depend on, for the cache key."""
        raise NotImplementedError

    def encode(
        self, split: Split, labels: list[tuple[Any, ...]], places: list[str], bad: BadRows
    ) -> tuple[pa.Array, dict[str, Any]]:
        """Return the labels as stored, one item per row, and facts about them.

        Args:
            split: the split that is read.
            labels: the values of the columns of each row, as read.
            places: the place of each row, for messages.
            bad: collects the rows without a usable label.
        """
        raise NotImplementedError

    def blank(self, rows: int) -> tuple[pa.Array, dict[str, Any]]:
        """Return placeholders for rows to predict, which have no labels, and facts about them."""
        raise NotImplementedError

    def shown(self, label: np.ndarray) -> str:
        """Return the stored label of a row as text."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return facts about the labels of the used rows, for the run record; known after `setup`."""
        raise NotImplementedError

    def counts(self, split: Split) -> dict[str, int]:
        """Return the number of used rows with each label of a split, after `setup`; empty for numbers."""
        return {}

    def cut(self, order: np.ndarray, rows: int) -> np.ndarray:
        """Return the row numbers in `order` with the `rows` validation rows first; the default takes the first."""
        return order

    def warn(self) -> None:
        """Print warnings about the labels of the training rows. The default prints none."""


class NamedLabels(Labels):
    """Labels with names: as given, as the source of the training rows states them, or found in the training rows."""

    @cached_property
    def names(self) -> list[str]:
        return self.stated_names() or self.data.table("train")[1]["label_names"]

    def stated_names(self) -> list[str] | None:
        """Return the names that are known without reading the labels; else None."""
        return self.given or self.names_in_source()

    def names_in_source(self) -> list[str] | None:
        """Return the names that the source of the training rows states, as some sets of the hub do; else None."""
        codes = self.codes("train")
        return list(codes.names) if codes else None

    def feature(self, split: Split) -> Any:
        """Return how the hub describes the first label column of a split; None for files, or if it does not."""
        rows = self.data.hub_rows(split) if self.data.dataset else None
        return (getattr(rows, "features", None) or {}).get(self.columns[0])

    def codes(self, split: Split) -> datasets.ClassLabel | None:
        """Return the names whose numbers the labels of a split are, as the hub says; None if it does not."""
        feature = self.feature(split)
        return feature if isinstance(feature, datasets.ClassLabel) else None

    def rules_with_names(self, split: Split, rules: dict[str, Any]) -> dict[str, Any]:
        """Return `rules` with the names that the labels of a split are checked against."""
        names = self.given if split == "train" else self.names
        known, first = names or self.names_in_source() or [], rules.get("label_offset", 0)
        # where names are numbers, tables of earlier versions may have rows in the wrong class
        other = not counted(known) and known != [str(first + place) for place in range(len(known))]
        return rules | ({"names": names} if names else {}) | ({"numbers": "names"} if other else {})


class LabelledData(TabularData):
    """A data set whose rows have labels; a subclass sets `self.labels`, which says of which kind."""

    labels: Labels

    @property
    def label_names(self) -> list[str]:
        """Names of the model's outputs, in their order: classes, labels, or target columns."""
        return self.labels.names

    @property
    def given_label_names(self) -> list[str] | None:
        """Names of the model's outputs that are known without reading the data; else None."""
        return self.labels.given

    def cut(self, order: np.ndarray, rows: int) -> np.ndarray:
        return self.labels.cut(order, rows)

    def class_counts(self, split: Split) -> dict[str, int]:
        """Return the number of used rows with each label of a split, after `setup`; empty for numbers."""
        return self.labels.counts(split)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and getattr(self.trainer, "is_global_zero", True):  # the first process speaks
            self.warn()

    def warn(self) -> None:
        """Print warnings about the training rows."""
        self.labels.warn()

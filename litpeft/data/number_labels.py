"""Labels that are numbers: the targets of a regression, one or several per text."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from litpeft.data.bad_rows import BadRows
from litpeft.data.base import Split
from litpeft.data.label_kind import Labels
from litpeft.data.labels import MISSING
from litpeft.data.tabular import TabularData
from litpeft.errors import UserError


class NumberLabels(Labels):
    """One or several numbers per text, stored in their own unit, (rows, targets) float64.

    Args:
        data: the data set.
        columns: names of the columns with the targets.
        mean: mean of each target, in its unit, to subtract; None: that of the used training rows.
        deviation: standard deviation of each target, in its unit, to divide by; None: that of the used training rows.
        limits: smallest and largest value that a target can have; None without limits.

    Raises:
        UserError: a column is named twice, or the numbers of means and deviations are not those of the columns.
    """

    kind = "number"

    def __init__(
        self,
        data: TabularData,
        columns: list[str],
        mean: float | list[float] | None = None,
        deviation: float | list[float] | None = None,
        limits: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(data, columns)
        self.given = columns
        if len(set(columns)) < max(1, len(columns)):
            raise UserError(f"data.label_column needs one or several different columns, got {columns}.")
        self._mean, self._deviation = self._checked("mean", mean), self._checked("deviation", deviation)
        if self._deviation is not None and min(self._deviation) <= 0:
            raise UserError(f"data.target_deviation must be positive, got {deviation}.")
        self.limits = limits

    def _checked(self, name: str, value: float | list[float] | None) -> list[float] | None:
        values = value if isinstance(value, list) else None if value is None else [value]
        if values is not None and len(values) != len(self.columns):
            raise UserError(
                f"data.target_{name} has {len(values)} numbers for {len(self.columns)} targets "
                f"({', '.join(self.columns)})."
            )
        return values

    @property
    def names(self) -> list[str]:
        return self.columns

    @cached_property
    def mean(self) -> list[float]:
        """Mean of each target, in its unit: as given, or of the used training rows; known after `setup`."""
        return self._mean or self.data.stored_labels("train").mean(axis=0).tolist()

    @cached_property
    def deviation(self) -> list[float]:
        """Standard deviation of each target (denominator n), in its unit: as given, or of the used training rows.

        Raises:
            UserError: all training rows have the same value.
        """
        if self._deviation is not None:
            return self._deviation
        rows = self.data.stored_labels("train")
        found, ranges = rows.std(axis=0).tolist(), np.ptp(rows, axis=0).tolist()
        for column, deviation, width in zip(self.columns, found, ranges, strict=True):
            if not (deviation > 0 and width > 0):  # the mean of equal numbers is rounded, so they seem to deviate
                raise UserError(
                    f"data.label_column: all training rows have the same {column}; there is nothing to learn."
                )
        return found

    def rules(self, split: Split) -> dict[str, Any]:
        return {"targets": self.columns} | ({"limits": self.limits} if self.limits else {})

    def encode(
        self, split: Split, labels: list[tuple[Any, ...]], places: list[str], bad: BadRows
    ) -> tuple[pa.Array, dict[str, Any]]:
        if self.data.streaming and not (self._mean and self._deviation):
            raise UserError(
                "data.target_mean and data.target_deviation are needed with data.streaming, because the targets are "
                "not read before training."
            )
        rows = [self._row(row, place, bad) for row, place in zip(labels, places, strict=True)]
        return self._stored([number for row in rows for number in row]), {}

    def blank(self, rows: int) -> tuple[pa.Array, dict[str, Any]]:
        return self._stored([math.nan] * rows * len(self.columns)), {}

    def _stored(self, numbers: list[float]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers, pa.float64(), from_pandas=False), len(self.columns))

    def _row(self, values: tuple[Any, ...], place: str, bad: BadRows) -> list[float]:
        return [self._number(column, value, place, bad) for column, value in zip(self.columns, values, strict=True)]

    def _number(self, column: str, value: Any, place: str, bad: BadRows) -> float:
        """Return a target as a number; NaN for one that cannot be used, which is added to `bad`."""
        try:
            found = math.nan if isinstance(value, (list, dict)) or value is None else float(value)
        except (ValueError, TypeError, OverflowError):  # a date, or digits without end
            found = math.nan
        if not math.isfinite(found):
            empty = value is None or str(value).strip().lower() in MISSING
            bad.add(place, f"target {column!r} is missing" if empty else f"target {column!r} is {value!r}, no number")
        elif self.limits and not self.limits[0] <= found <= self.limits[1]:
            bad.add(place, f"target {column!r} is {found:g}, not from {self.limits[0]:g} to {self.limits[1]:g}")
        return found

    def shown(self, label: np.ndarray) -> str:
        return ", ".join(f"{column} {value:.6g}" for column, value in zip(self.columns, label, strict=True))

    def describe(self) -> dict[str, Any]:
        """Return the targets' names, the mean and deviation that they are standardised with, and their ranges."""
        ranges = {}
        for split in self.data.rows:
            if split != "predict":
                values = self.data.stored_labels(split)
                ends = zip(self.columns, values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True)
                ranges[split] = {column: {"lowest": low, "highest": high} for column, low, high in ends}
        facts = {"label_names": self.columns, "target_ranges": ranges}
        if self._mean is not None or "train" in self.data.rows:
            facts |= {"target_mean": self.mean, "target_deviation": self.deviation}
        return facts

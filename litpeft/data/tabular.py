"""Rows from local tables or from a set on the hub, split by split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from litpeft.data.base import FineTuneData, Split
from litpeft.data.files import read_rows
from litpeft.errors import UserError
from litpeft.hub.demo_assets import PREFIX, asset
from litpeft.hub.hub import asking_hub
from litpeft.runs.atomic_write import file_hash

HUB_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


class TabularData(FineTuneData):
    """A data set whose rows stand in local files or on the hub.

    Args:
        train_file: .tsv, .csv, .jsonl, .json or .parquet, or `demo:NAME`; the hub is not asked where a file is given.
        val_file: likewise; without it, validation rows are cut from the training rows.
        test_file: likewise.
        predict_file: rows to predict; without it the test rows, else the validation rows.
        dataset: hub id of a set, used where no `train_file`, `val_file` or `test_file` is given.
        columns: names of the columns of .tsv and .csv files that have no header.
        delimiter: between columns, one character; a tab in .tsv (which is never quoted), a comma in .csv.
        encoding: of text files.
        options: batch size, limits and the rest, as in `FineTuneData`.
    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        predict_file: str | None = None,
        dataset: str | None = None,
        columns: list[str] | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        files = {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file}
        self.files = {
            split: str(asset(path, f"data.{split}_file")) if path and path.startswith(PREFIX) else path
            for split, path in files.items()
        }
        self.dataset = None if any((train_file, val_file, test_file)) else dataset
        self.columns, self.delimiter, self.encoding = columns, delimiter, encoding
        if delimiter is not None and len(delimiter) != 1:
            raise UserError(f"data.delimiter must be one character, got {delimiter!r} (a tab is typed $'\\t').")
        if not any(self.files.values()) and dataset is None:
            raise UserError(f"{type(self).__name__} needs data.train_file (a local file) or data.dataset (a hub id).")

    def origin(self, split: Split) -> Split:
        """The split whose rows are read: `predict` falls back to the test rows, then to those of validation."""
        if split != "predict" or self.files["predict"]:
            return split
        for other in ("test", "val"):
            if self.files[other] or (self.dataset and self.hub_rows(other) is not None):
                return other
        return split

    def layout(self, path: str) -> dict[str, Any]:
        """How to read a file: what `source` is told of it beside its bytes."""
        return {"columns": self.columns, "delimiter": self.delimiter, "encoding": self.encoding}

    def where(self, split: Split) -> dict[str, Any] | None:
        """The file or the hub's rows of a split, by what is in them; None where there is no such split."""
        if path := self.files[split]:
            try:
                digest = file_hash(Path(path))
            except OSError as error:
                raise UserError(f"data.{split}_file {path}: {error.strerror or error}.") from error
            return self.layout(path) | {"split": split, "file": digest, "suffix": Path(path).suffix}
        if self.dataset and split != "predict" and (rows := self.hub_rows(split)) is not None:
            return {"split": split, "hub": rows._fingerprint}
        return None

    def read(self, split: Split, required: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, row) of each row; the place is what an error message names.

        Args:
            split: whose rows.
            required: names of columns that there must be, and the option that each is given by.
        """
        path = self.files[split]
        if path:
            layout = self.layout(path)
            try:
                yield from read_rows(path, required, layout["columns"], layout["delimiter"], layout["encoding"])
            except UserError as error:
                whole = str(error).startswith(f"{path}: ")  # and not one of its lines
                raise UserError(f"data.{split}_file {error}" if whole else str(error)) from error
            return
        hub = self.hub_rows(split)
        for name in required:
            if name not in hub.column_names:
                raise UserError(
                    f"data.dataset {self.dataset}: no column {name!r}; it has: {', '.join(hub.column_names)} "
                    f"(see {required[name]})."
                )
        yield from ((f"{self.dataset} {split} row {i}", row) for i, row in enumerate(hub, 1))

    @cached_property
    def _hub_set(self) -> datasets.DatasetDict:
        assert self.dataset is not None
        with asking_hub(self.dataset, "data.dataset", "local files (data.train_file, data.val_file)"):
            return datasets.load_dataset(self.dataset)

    def hub_rows(self, split: Split) -> datasets.Dataset | None:
        """The hub's rows of a split."""
        return next((self._hub_set[name] for name in HUB_SPLITS[split] if name in self._hub_set), None)

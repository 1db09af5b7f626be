"""Data sets whose rows come from local tables or from the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets

from litpeft.data.bad_rows import BadRows
from litpeft.data.base import Split
from litpeft.data.files import add_field, is_json_lines, read_rows
from litpeft.data.raw_files import expand, kind_of, sampled_hash
from litpeft.data.streaming import StreamedData
from litpeft.errors import UserError, check_choices
from litpeft.hub.demo_assets import PREFIX, asset
from litpeft.hub.hub import explaining_hub_errors
from litpeft.runs.atomic_write import file_hash

READING = ("columns", "delimiter", "encoding", "documents")  # options of `read_rows`
Row = tuple[str, dict[str, Any]]  # place for error messages, and the cells by column
LOCAL = "local files (data.train_file, data.val_file)"
HUB_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


class TabularData(StreamedData):
    """A data set with rows from local files or from the hub.

    Args:
        train_file: training rows: a .tsv, .csv, .jsonl, .json, .parquet or .txt file, a pattern such as
            `part-*.csv.gz`, a folder of such files, or `demo:NAME`.
        val_file: validation rows; by default validation rows are cut from the training rows.
        test_file: test rows.
        predict_file: rows to predict; by default the test rows, or the validation rows if there is no test split.
        dataset: hub id, or a folder laid out like a repository of the hub, used if none of `train_file`, `val_file` and
            `test_file` is given.
        subset: name of the subset of `dataset` (its configuration), such as `mrpc` of `glue`.
        train_split: name of the training split of `dataset`, such as `train_sft`; by default `train`.
        val_split: name of the validation split; by default `validation`, `valid`, `val` or `dev`.
        test_split: name of the test split; by default `test`.
        columns: column names of .tsv and .csv files without a header.
        delimiter: column delimiter, one character; by default a tab in .tsv files, a comma in .csv files.
        encoding: encoding of text files.
        on_bad_row: rows that cannot be used, for example without text: stop with an `error` that lists them, or `skip`
            and count them. Rows to predict are never skipped.
        options: streaming, batch size, limits and the other options of `StreamedData` and `FineTuneData`.
    """

    def __init__(
        self,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        predict_file: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        columns: list[str] | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        on_bad_row: Literal["error", "skip"] = "error",
        **options: Any,
    ) -> None:
        check_choices("data", TabularData.__init__, locals())
        super().__init__(**options)
        files = {"train": train_file, "val": val_file, "test": test_file, "predict": predict_file}
        self.files = {
            split: str(asset(path, f"data.{split}_file")) if path and path.startswith(PREFIX) else path
            for split, path in files.items()
        }
        self.dataset = None if any((train_file, val_file, test_file)) else dataset
        self.subset, self.splits = subset, {"train": train_split, "val": val_split, "test": test_split}
        self.columns, self.delimiter, self.encoding, self.on_bad_row = columns, delimiter, encoding, on_bad_row
        self.unused_columns: dict[str, list[str]] = {}  # split -> columns that are not read
        self._hub_version: str | None = None  # of a set that is streamed
        self.used_columns: dict[str, list[str]] = {}  # split -> columns that are read
        if delimiter is not None and len(delimiter) != 1:
            raise UserError(f"data.delimiter must be one character, got {delimiter!r} (a tab is typed $'\\t').")
        if not any(self.files.values()) and dataset is None:
            raise UserError(f"{type(self).__name__} needs data.train_file (a local file) or data.dataset (a hub id).")

    def split_to_read(self, split: Split) -> Split:
        """Return the split whose rows are read: without a file, `predict` reads the test or the validation rows."""
        if split != "predict" or self.files["predict"]:
            return split
        for other in ("test", "val"):
            if self.files[other] or (self.dataset and self.hub_rows(other) is not None):
                return other
        return split

    def has_rows(self, split: Split) -> bool:
        return bool(self.files[split] or (self.dataset and self.hub_rows(split) is not None))

    def layout(self, path: str) -> dict[str, Any]:
        """Return how to read a file; part of the cache key."""
        return {"columns": self.columns, "delimiter": self.delimiter, "encoding": self.encoding}

    def source_of_rows(self, split: Split) -> dict[str, Any] | None:
        """Return the content hash of a split's rows and how to read them; None if there is no such split."""
        skip = {"skip": True} if self.on_bad_row == "skip" else {}
        if path := self.files[split]:
            try:
                files = expand(path)
                streamed = self.streaming and split == "train"  # too large to be read twice
                digests = [sampled_hash(file) if streamed else file_hash(file) for file in files]
            except UserError as error:
                raise UserError(f"data.{split}_file {error}") from error
            except OSError as error:
                raise UserError(f"data.{split}_file {path}: {error.strerror or error}.") from error
            content = digests[0] if len(digests) == 1 else digests
            kinds = [kind_of(file) for file in files]
            suffix = kinds[0] if len(set(kinds)) == 1 else kinds
            return self.layout(str(files[0])) | {"split": split, "file": content, "suffix": suffix} | skip
        if self.dataset and split != "predict" and (rows := self.hub_rows(split)) is not None:
            return {"split": split, "hub": getattr(rows, "_fingerprint", self._hub_version)} | skip
        return None

    def check_stream(self) -> None:
        for file in expand(self.files["train"]) if self.files["train"] else ():
            if kind_of(file) == ".json" and not is_json_lines(file, self.encoding):
                raise UserError(
                    f"data.train_file {file}: a .json file with a list must be read whole, so it cannot be streamed; "
                    "give JSON lines (.jsonl) or .parquet, or leave out data.streaming."
                )

    def bad_rows(self, split: Split) -> BadRows:
        """Return a new collection of a split's rows that cannot be used."""
        return BadRows(skip=self.on_bad_row == "skip" and split != "predict", may_skip=split != "predict")

    def read(
        self, split: Split, required: dict[str, str], optional: Sequence[str] = (), rows: Iterable[Row] | None = None
    ) -> Iterator[Row]:
        """Yield (place, row) of each row; the place is for error messages.

        Args:
            split: the split to read.
            required: required column -> option that names the column.
            optional: further columns that are used where they exist.
            rows: the rows, where they are being read already.
        """
        known = {name.partition(".")[0] for name in [*required, *optional]} | {*required, *optional}
        found: dict[str, None] = {}
        for place, row in self._rows(split, required) if rows is None else rows:
            for name in optional:
                if "." in name and name not in row:
                    add_field(row, name)
            if not row.keys() <= found.keys():
                found |= dict.fromkeys(row)
                self.used_columns[split] = [name for name in found if name in known]
                self.unused_columns[split] = [name for name in found if name not in known]
            yield place, row

    def _rows(self, split: Split, required: dict[str, str]) -> Iterator[Row]:
        path = self.files[split]
        if path:
            file: Path | str = path
            try:
                for file in expand(path):
                    layout = self.layout(str(file))
                    yield from read_rows(file, required, **{name: layout[name] for name in READING if name in layout})
            except UserError as error:
                about_file = str(error).startswith((f"{path}: ", f"{file}: "))  # not about one of its lines
                raise UserError(f"data.{split}_file {error}" if about_file else str(error)) from error
            return
        hub = self.hub_rows(split)
        with explaining_hub_errors(self.dataset, "data.dataset", LOCAL):  # a stream reads from the hub as it goes
            names = hub.column_names or list(next(iter(hub), {}))
            for name in required:
                if name not in names:
                    raise UserError(
                        f"data.dataset {self.dataset}: no column {name!r}; it has: {', '.join(names)} "
                        f"(see {required[name]})."
                    )
            yield from ((f"{self.dataset} {split} row {i}", row) for i, row in enumerate(hub, 1))

    @cached_property
    def _hub_dataset(self) -> datasets.DatasetDict | datasets.IterableDatasetDict:
        assert self.dataset is not None
        with explaining_hub_errors(self.dataset, "data.dataset", LOCAL):
            try:
                if not self.streaming:
                    return datasets.load_dataset(os.path.expanduser(self.dataset), self.subset)
                builder = datasets.load_dataset_builder(os.path.expanduser(self.dataset), self.subset)
                self._hub_version = f"{builder.config_id} {builder.hash}"
                return builder.as_streaming_dataset()
            except ValueError as error:  # the subset is unknown, or one must be chosen
                listed = re.search(r"(?:among the available configs|Available): \[(.*?)\]", str(error))
                if listed is None:
                    raise
                given = f" {self.subset}: there is no such subset" if self.subset else " is missing"
                names = listed[1].replace("'", "")
                raise UserError(f"data.subset{given}; {self.dataset} has {names}.") from error

    def why_cut(self) -> str:
        others = [name for name in self._hub_dataset if name not in HUB_SPLITS["train"]] if self.dataset else []
        named = f" (data.val_split may name another: {', '.join(others)})" if others else ""
        return super().why_cut() + named

    def hub_rows(self, split: Split) -> datasets.Dataset | datasets.IterableDataset | None:
        """Return the rows of a split on the hub; None if there is no such split.

        Raises:
            UserError: the named split does not exist, or the training split has another name.
        """
        found, named = self._hub_dataset, self.splits[split]
        if named is None and (usual := next((name for name in HUB_SPLITS[split] if name in found), None)):
            return found[usual]
        if named in found:
            return found[named]
        if named is None and split != "train":
            return None
        given = f" {named}: there is no such split" if named else " is missing"
        raise UserError(f"data.{split}_split{given}; {self.dataset} has {', '.join(found)}.")

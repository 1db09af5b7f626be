"""Read rows from a local table, and say which line of which file is wrong."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.runs.record_schema import is_utf8
from litpeft.runs.safe_read import of_python

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet")


def read_rows(
    path: str | Path,
    required: Mapping[str, str],
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with the words that name its place (`train.tsv line 7`).

    Args:
        path: a .tsv (never quoted), .csv (quoted where needed), .jsonl, .json (a list of objects) or .parquet file.
        required: names of columns that there must be, and the option that each is given by.
        columns: names for the columns of a .tsv or .csv file without a header. A first row that holds all `required`
            names is taken for a header all the same.
        delimiter: what separates the columns of a .tsv or .csv file; by default what the suffix says.
        encoding: of a text file. A byte-order mark is skipped.

    Raises:
        UserError: no such file, unknown suffix, broken encoding or syntax, a missing column, no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        rows = _parquet(path)
    elif suffix in (".tsv", ".csv"):
        rows = _separated(path, _reader(path, _text(path, encoding), delimiter), required, columns)
    else:
        rows = _json(path, _text(path, encoding), lines=suffix == ".jsonl")
    layout = ", data.delimiter and, for a file without a header, data.columns" if suffix in (".tsv", ".csv") else ""
    place = None
    for place, row in rows:
        for name in required:
            if name not in row:
                raise UserError(
                    f"{place}: no column {name!r}; it has: {', '.join(map(str, row))} (see {required[name]}{layout})."
                )
        yield place, row
    if place is None:
        raise UserError(f"{path}: the file has no rows.")


def has_header(
    path: str | Path, required: Sequence[str], delimiter: str | None = None, encoding: str = "utf-8"
) -> bool:
    """Whether the first row of a .tsv or .csv file holds the `required` names; true for other files, which all do."""
    path = Path(path)
    if not path.is_file() or path.suffix.lower() not in (".tsv", ".csv"):
        return True
    try:
        first = next(iter(_reader(path, _text(path, encoding), delimiter)), [])
    except csv.Error as error:
        raise UserError(f"{path} line 1: {error}.") from error
    return set(required) <= set(first)


def _reader(path: Path, text: str, delimiter: str | None) -> Any:
    """The fields of each row; .tsv is never quoted."""
    csv.field_size_limit(sys.maxsize)
    tab = path.suffix.lower() == ".tsv"
    quoting = csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
    separator = delimiter or ("\t" if tab else ",")
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True)


def _skipping_mark(encoding: str) -> str:
    return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding


def _text(path: Path, encoding: str) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode(_skipping_mark(encoding))
    except LookupError as error:
        raise UserError(f"data.encoding {encoding}: Python knows no such encoding.") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line}: not {encoding}; give data.encoding (latin-1, say).") from error


def _separated(
    path: Path, reader: Any, required: Iterable[str], columns: Sequence[str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    names: Sequence[str] | None = None
    start = 1
    try:
        for fields in reader:
            place, start = f"{path} line {start}", reader.line_num + 1
            if not fields:
                continue
            if names is None:
                header = columns is None or set(required) <= set(fields)
                names = fields if header else columns
                if twice := [name for name in required if list(names).count(name) > 1]:
                    raise UserError(f"{place}: two columns are called {twice[0]!r}.")
                if header:
                    continue
            if len(fields) != len(names):
                raise UserError(
                    f"{place}: {len(fields)} columns where there should be {len(names)} ({', '.join(names)}); "
                    "see data.delimiter."
                )
            yield place, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}.") from error


def _json(path: Path, text: str, lines: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    place = f"{path}"
    try:
        if lines:
            for number, line in enumerate(text.split("\n"), 1):
                place = f"{path} line {number}"
                if line.strip():
                    yield place, _object(place, json.loads(line))
        else:
            items = json.loads(text) if text.strip() else []
            if not isinstance(items, list):
                raise UserError(f"{path}: a .json file must hold a list of objects (one object a line is .jsonl).")
            for number, item in enumerate(items, 1):
                yield f"{path} item {number}", _object(f"{path} item {number}", item)
    except (ValueError, RecursionError) as error:  # without its kind, of a number with thousands of digits
        where = place if lines else f"{path} line {getattr(error, 'lineno', 1)}"
        raise UserError(f"{where}: not valid JSON: {getattr(error, 'msg', None) or of_python(error)}.") from error


def _object(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: an object with named columns is needed, not {type(value).__name__}.")
    for text in (*value, *value.values()):
        if isinstance(text, str) and not is_utf8(text):
            raise UserError(f"{place}: an escape such as \\ud800 is half a character; remove it.")
    return value


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}.") from error

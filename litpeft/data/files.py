"""Read rows from local tables, with file and line in each error message."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from litpeft.data.raw_files import SUFFIXES, kind_of, lines_of, text_of
from litpeft.errors import UserError
from litpeft.runs.record_schema import is_utf8
from litpeft.runs.safe_read import parse_error_reason


def read_rows(
    path: str | Path,
    required: Mapping[str, str],
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    documents: str = "line",
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file, each with its place for error messages (`train.tsv line 7`).

    Args:
        path: a .tsv (without quotes), .csv (with quotes), .jsonl, .json (a list of objects, an object that holds one
            list of objects, or one object per line), .parquet or .txt file; text files may be compressed (.gz .bz2 .xz
            .zst .zip).
        required: required column -> option that names the column. `a.b` is field b of the object in column a.
        columns: column names of a .tsv or .csv file without a header. A first row with all `required` names (or, if
            there are none, all of these names) is still read as a header.
        delimiter: column delimiter of a .tsv or .csv file; a tab or a comma by default.
        encoding: encoding of a text file. A byte-order mark is skipped.
        documents: what a row of a .txt file is, with the column `text`: a `line`, a `paragraph` or the `file`.

    Raises:
        UserError: the file, its suffix, encoding or syntax is wrong, a column is missing, or there are no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    suffix = kind_of(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        rows = _parquet(path)
    elif suffix in (".tsv", ".csv"):
        rows = _separated(path, _reader(path, lines_of(path, encoding, newline=""), delimiter), required, columns)
    elif suffix == ".txt":
        rows = _lines(path, encoding) if documents == "line" else _texts(path, text_of(path, encoding), documents)
    else:
        rows = _json(path, encoding)
    layout = ", data.delimiter and, for a file without a header, data.columns" if suffix in (".tsv", ".csv") else ""
    place = None
    for place, row in rows:
        check_columns(place, row, required, layout)
        yield place, row
    if place is None:
        raise UserError(f"{path}: the file has no rows.")


def check_columns(place: str, row: dict[str, Any], required: Mapping[str, str], layout: str = "") -> None:
    """Raise a UserError if a row lacks a required column; add the field that a dotted name means."""
    for name in required:
        if name not in row and "." in name:
            add_field(row, name)
        if name not in row:
            raise UserError(
                f"{place}: no column {name!r}; it has: {', '.join(map(str, row))} (see {required[name]}{layout})."
            )


def has_header(
    path: str | Path, required: Sequence[str], delimiter: str | None = None, encoding: str = "utf-8"
) -> bool:
    """Return whether the first row of a .tsv or .csv file has the `required` names; true for other file types."""
    path = Path(path)
    if not path.is_file() or kind_of(path) not in (".tsv", ".csv"):
        return True
    try:
        first = next(iter(_reader(path, lines_of(path, encoding, newline=""), delimiter)), [])
    except csv.Error as error:
        raise UserError(f"{path} line 1: {error}.") from error
    return set(required) <= set(first)


def _reader(path: Path, lines: Iterator[str], delimiter: str | None) -> Any:
    """Return a csv reader; quotes have no meaning in .tsv files."""
    csv.field_size_limit(sys.maxsize)
    tab = kind_of(path) == ".tsv"
    quoting = csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
    separator = delimiter or ("\t" if tab else ",")
    return csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)


def add_field(row: dict[str, Any], name: str) -> None:
    """Add the field that a dotted name means, if the row has it: `input.text` is `text` in the object `input`."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return
        value = value[part]
    row[name] = value


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
                header = columns is None or set(required or columns) <= set(fields)
                names = fields if header else columns
                used = list(required) or [name for name in names if name]  # without options any column may be used
                if duplicates := [name for name in used if list(names).count(name) > 1]:
                    raise UserError(f"{place}: two columns are called {duplicates[0]!r}; rename one of them.")
                if header:
                    continue
            if len(fields) != len(names):
                raise UserError(
                    f"{place}: {len(fields)} columns, expected {len(names)} ({', '.join(names)}); see data.delimiter."
                )
            yield place, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise UserError(f"{path} line {start}: a quote is opened in this row and never closed.") from error
        raise UserError(f"{path} line {reader.line_num}: {error}.") from error


def _lines(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a text without those that are empty; reads as it goes."""
    for number, line in enumerate(lines_of(path, encoding), 1):
        if line.strip():
            yield f"{path} line {number}", {"text": line.removesuffix("\n").removesuffix("\r")}


def _texts(path: Path, text: str, documents: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the paragraphs or the whole of a text, without those that are empty."""
    if documents == "file":
        if text.strip():
            yield f"{path}", {"text": text.replace("\r\n", "\n")}
        return
    line = 1
    for part in re.split(r"(\n[ \t\r]*\n\s*)", text):
        if part.strip():
            yield f"{path} line {line}", {"text": part.removesuffix("\r").replace("\r\n", "\n")}
        line += part.count("\n")


def _json(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield objects: one per line, read as it goes, or those of a list."""
    place, lines = f"{path}", kind_of(path) == ".jsonl" or is_json_lines(path, encoding)
    try:
        if lines:
            for number, line in enumerate(lines_of(path, encoding), 1):
                place = f"{path} line {number}"
                if line.strip():
                    yield place, _object(place, json.loads(line))
            return
        text = text_of(path, encoding)
        items = json.loads(text) if text.strip() else []
        if isinstance(items, dict) and {"messages", "conversations"} & items.keys():
            items = [items]  # one conversation
        if isinstance(items, dict):
            lists = [value for value in items.values() if isinstance(value, list) and value]
            items = lists[0] if len(lists) == 1 else items
        if not isinstance(items, list):
            raise UserError(
                f"{path}: a .json file must contain a list of objects, an object with one such list, or one object "
                "per line."
            )
        for number, item in enumerate(items, 1):
            yield f"{path} item {number}", _object(f"{path} item {number}", item)
    except (ValueError, RecursionError) as error:  # an int with thousands of digits raises a plain ValueError
        where = place if lines else f"{path} line {getattr(error, 'lineno', 1)}"
        raise UserError(
            f"{where}: not valid JSON: {getattr(error, 'msg', None) or parse_error_reason(error)}."
        ) from error


def is_json_lines(path: Path, encoding: str) -> bool:
    """Return whether a JSON file has one object per line: the first line is an object, and more follows."""
    lines = (line for line in lines_of(path, encoding) if line.strip())
    first, second = next(lines, ""), next(lines, "")
    try:
        return bool(second) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _object(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected an object with named columns, got {type(value).__name__}.")
    for text in (*value, *value.values()):
        if isinstance(text, str) and not is_utf8(text):
            raise UserError(f"{place}: an escape such as \\ud800 is half a character; remove the escape.")
    return value


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import parquet

    try:
        number, file = 0, parquet.ParquetFile(path)
        if duplicates := [name for name in file.schema_arrow.names if file.schema_arrow.names.count(name) > 1]:
            raise UserError(f"{path}: two columns are called {duplicates[0]!r}; rename one of them.")
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}.") from error

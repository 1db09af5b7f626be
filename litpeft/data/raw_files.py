"""The bytes and the text of data files: patterns, folders, compression and encodings."""

from __future__ import annotations

import codecs
import glob
import hashlib
import io
import itertools
import lzma
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow

from litpeft.errors import UserError, first_sentence

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt")
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile, pyarrow.ArrowException)
SAMPLED = 1 << 20  # bytes
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")  # after one of the suffixes: train.csv.gz


def expand(path: str) -> list[Path]:
    """Return the files that a path names: itself, the matches of a pattern such as `part-*.csv`, or those in a folder.

    Raises:
        UserError: a pattern matches nothing, or a folder has no file of a known kind.
    """
    name = os.path.expanduser(path)
    if os.path.isdir(name):
        found = sorted(file for file in Path(name).iterdir() if file.is_file() and kind_of(file) in SUFFIXES)
        if len(kinds := {kind_of(file) for file in found}) > 1:
            raise UserError(
                f"{path}: the folder has files of several kinds ({', '.join(sorted(kinds))}); give a pattern."
            )
    elif os.path.exists(name) or not glob.has_magic(name):
        return [Path(name)]
    else:
        found = sorted(map(Path, glob.glob(name, recursive=True)))
    if not found:
        raise UserError(f"{path}: there is no file with one of the suffixes {', '.join(SUFFIXES)}.")
    return found


def sampled_hash(path: Path) -> str:
    """Return a hash of a file's size and of its first and last MiB, for files that are too large to be read twice."""
    digest = hashlib.sha256(str(size := path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(SAMPLED))
        file.seek(max(0, size - SAMPLED))
        digest.update(file.read(SAMPLED))
    return digest.hexdigest()


def kind_of(path: Path) -> str:
    """Return the suffix that says how a file is read: `.csv` for `train.csv.gz`."""
    compressed = path.suffix.lower() in COMPRESSED
    return Path(path.stem).suffix.lower() if compressed else path.suffix.lower()


def text_of(path: Path, encoding: str) -> str:
    """Return the text of a file, decompressed and without a byte-order mark.

    Raises:
        UserError: the file is damaged or has another encoding.
    """
    return "".join(lines_of(path, encoding))


def lines_of(path: Path, encoding: str, newline: str = "\n") -> Iterator[str]:
    """Yield the lines of a file with their ends, decompressed and without a byte-order mark; reads as it goes.

    Args:
        path: the file.
        encoding: its encoding.
        newline: what ends a line, as in `open`; "" for each of the usual ends.

    Raises:
        UserError: the file is damaged or has another encoding.
    """
    is_utf_8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        "".encode(encoding)  # not codecs.lookup, which also knows encodings of bytes, such as hex
    except (LookupError, UnicodeError) as error:
        raise UserError(f"data.encoding {encoding}: Python has no such encoding.") from error
    try:
        with _opened(path) as stream:
            # "-sig" skips a byte-order mark
            lines = iter(io.TextIOWrapper(stream, "utf-8-sig" if is_utf_8 else encoding, newline=newline))
            yield from (line.removeprefix("\ufeff") for line in itertools.islice(lines, 1))  # utf-16-le keeps it
            yield from lines
    except UnicodeDecodeError as error:
        raw = _bytes(path)
        line = _first_undecodable(raw, encoding)
        raise UserError(
            f"{path} line {line}: not {encoding}; give data.encoding, for example {_likely_encoding(raw)}."
        ) from error
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _first_undecodable(raw: bytes, encoding: str) -> int:
    """Return the line of the first bytes that are not in this encoding."""
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as error:
        return raw[: error.start].count(b"\n") + 1
    return 1


def _likely_encoding(raw: bytes) -> str:
    """Return the encoding that a file probably has which is not UTF-8."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or raw[:200].count(0) > 50:
        return "utf-16"
    windows = any(0x80 <= byte < 0xA0 for byte in raw)  # control characters in latin-1, curly quotes in cp1252
    return "cp1252" if windows else "latin-1"


def _bytes(path: Path) -> bytes:
    with _opened(path) as stream:
        return stream.read()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read its bytes, decompressed.

    Raises:
        UserError: an archive holds several files.
    """
    suffix = path.suffix.lower()
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if len(names) != 1:
                raise UserError(f"{path}: the archive holds {len(names)} files; give an archive of one, or unpack it.")
            with archive.open(names[0]) as stream:
                yield stream
    elif suffix == ".xz":
        with lzma.open(path) as stream:
            yield stream
    elif suffix in COMPRESSED:
        kind = {".zst": "zstd", ".bz2": "bz2"}.get(suffix, "gzip")
        with pyarrow.input_stream(str(path), compression=kind) as stream:
            yield stream
    else:
        with path.open("rb") as stream:
            yield stream


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a readable {path.suffix.lower()} file: {first_sentence(error)}.")

"""The bytes and the text of data files: patterns, folders, compression and encodings."""

from __future__ import annotations

import codecs
import glob
import lzma
import os
import zipfile
from pathlib import Path

import pyarrow

from litpeft.errors import UserError

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")  # after one of the suffixes: train.csv.gz


def expand(path: str) -> list[Path]:
    """Return the files that a path names: itself, the matches of a pattern such as `part-*.csv`, or those in a folder.

    Raises:
        UserError: a pattern matches nothing, or a folder has no file of a known kind.
    """
    name = os.path.expanduser(path)
    if os.path.isdir(name):
        found = sorted(file for file in Path(name).iterdir() if file.is_file() and kind_of(file) in SUFFIXES)
    elif os.path.exists(name) or not glob.has_magic(name):
        return [Path(name)]
    else:
        found = sorted(map(Path, glob.glob(name, recursive=True)))
    if not found:
        raise UserError(f"{path}: there is no file with one of the suffixes {', '.join(SUFFIXES)}.")
    return found


def kind_of(path: Path) -> str:
    """Return the suffix that says how a file is read: `.csv` for `train.csv.gz`."""
    compressed = path.suffix.lower() in COMPRESSED
    return Path(path.stem).suffix.lower() if compressed else path.suffix.lower()


def text_of(path: Path, encoding: str) -> str:
    """Return the text of a file, decompressed and without a byte-order mark.

    Raises:
        UserError: the file is damaged or has another encoding.
    """
    raw = _bytes(path)
    is_utf_8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        return raw.decode("utf-8-sig" if is_utf_8 else encoding)  # "-sig" skips a byte-order mark
    except LookupError as error:
        raise UserError(f"data.encoding {encoding}: Python has no such encoding.") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} line {line}: not {encoding}; give data.encoding, for example {_likely_encoding(raw)}."
        ) from error


def _likely_encoding(raw: bytes) -> str:
    """Return the encoding that a file probably has which is not UTF-8."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or raw[:200].count(0) > 50:
        return "utf-16"
    windows = any(0x80 <= byte < 0xA0 for byte in raw)  # control characters in latin-1, curly quotes in cp1252
    return "cp1252" if windows else "latin-1"


def _bytes(path: Path) -> bytes:
    """Return the bytes of a file, decompressed.

    Raises:
        UserError: the file is damaged, or an archive holds several files.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise UserError(
                        f"{path}: the archive holds {len(names)} files; give an archive of one, or unpack it."
                    )
                return archive.read(names[0])
        if suffix == ".xz":
            return lzma.decompress(path.read_bytes())
        if suffix in COMPRESSED:
            with pyarrow.input_stream(
                str(path), compression={".zst": "zstd", ".bz2": "bz2"}.get(suffix, "gzip")
            ) as stream:
                return stream.read()
    except (OSError, EOFError, ValueError, lzma.LZMAError, zipfile.BadZipFile, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable {suffix} file: {str(error).splitlines()[0]}.") from error
    return path.read_bytes()

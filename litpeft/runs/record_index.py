"""Find the records below a folder, and keep an index of many there, so that unchanged records are not read again.

The index is the file `.record_index` in that folder; it may be deleted at any time. A record is read again if its size,
its inode, or the time of its last modification or status change differs from the index, and folders are listed again by
the same rule. Without the right to write to the folder, or without space on the disk, there is no index.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
import time
import zlib
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from litpeft.runs.indexed_record import IndexedRecord
from litpeft.runs.record import FIELDS, FILE_NAME, read_record
from litpeft.runs.record_reader import NEVER, UNREAD, Signature, is_old, read_all
from litpeft.runs.record_schema import RECORD
from litpeft.runs.record_table import RecordTable

INDEX = ".record_index"
FEWEST = 1000  # fewer records are read in a tenth of a second
MAGIC = b"litpeft record index 1\n"
CONTENT = zlib.crc32(repr((sys.byteorder, list(FIELDS), RECORD)).encode())  # an index of other fields is not used
FOLDER = -1  # instead of the row of a record: a folder without a record
COLUMNS = "size", "modified", "changed", "inode"


class RecordFolder:
    """The run folders below a folder, and their records.

    Args:
        folder: the folder.
        skip: (name of a file, name of a folder beside that file that is not searched).

    Attributes:
        runs: paths of the run folders relative to the folder ("" is the folder), in order.
    """

    def __init__(self, folder: Path, skip: tuple[str, str]) -> None:
        self.root, self.skip, self.now = os.fspath(folder), skip, time.time_ns()
        self.table = RecordTable()
        self.known: dict[str, tuple[int, Signature]] = {}  # path -> (row, FOLDER or UNREAD; signature), from the index
        self.children: dict[str, list[str]] = {}  # path of a folder without a record -> paths of its folders
        self._load()
        self.entries: dict[str, tuple[int, Signature]] = {}  # as `known`, of what is there now, in order
        self.runs: list[str] = []
        self.changed = False
        self._find()
        if len(self.runs) >= FEWEST:
            self._read()

    def record(self, run: str, folder: Path) -> Mapping[str, Any]:
        """Return the record of a run folder.

        Args:
            run: one of `runs`.
            folder: path of the run folder.

        Raises:
            UserError: the record cannot be read or is invalid.
        """
        if len(self.runs) < FEWEST:
            return read_record(folder)
        row = self.entries[run][0]
        return read_record(folder) if row == UNREAD else IndexedRecord(self.table, row, folder)

    def save(self) -> None:
        """Write the index if there are many records and some are new or have changed, or are gone."""
        if len(self.runs) < FEWEST or not (self.changed or self.entries.keys() != self.known.keys()):
            return
        rows = [row for row, _ in self.entries.values() if row >= 0]
        places = iter(range(len(rows)))
        columns = zip(*(signature for _, signature in self.entries.values()), strict=True)
        parts = {
            "paths": b"\0".join(map(os.fsencode, self.entries)),
            "rows": array("q", [next(places) if row >= 0 else row for row, _ in self.entries.values()]).tobytes(),
            **{name: array("q", column).tobytes() for name, column in zip(COLUMNS, columns, strict=True)},
            **dict(self.table.take(rows).dump()),
        }
        sizes = {name: len(part) for name, part in parts.items()}
        header = json.dumps({"content": CONTENT, "rows": len(rows), "sizes": sizes}).encode() + b"\n"
        sum_ = zlib.crc32(header)
        for part in parts.values():
            sum_ = zlib.crc32(part, sum_)
        _replace(Path(self.root, INDEX), [MAGIC, b"%08x\n" % sum_, header, *parts.values()])

    def _load(self) -> None:
        """Read the index; without one, or with one that is damaged or of another version, nothing is known."""
        try:
            whole = Path(self.root, INDEX).read_bytes()
            content, start = memoryview(whole), len(MAGIC) + 9
            if not whole.startswith(MAGIC) or int(whole[len(MAGIC) : start], 16) != zlib.crc32(content[start:]):
                return
            at = whole.index(b"\n", start) + 1
            header = json.loads(whole[start:at])
            if header["content"] != CONTENT:
                return
            parts = {}
            for name, size in header["sizes"].items():
                parts[name], at = content[at : at + size], at + size
            signatures = zip(*(_whole_numbers(parts[name]) for name in COLUMNS), strict=True)
            paths = [os.fsdecode(path) for path in bytes(parts["paths"]).split(b"\0")]
            self.table = RecordTable.load(header["rows"], parts)
            self.known = dict(zip(paths, zip(_whole_numbers(parts["rows"]), signatures, strict=True), strict=True))
        except (OSError, ValueError, KeyError, TypeError):
            return
        for path in paths[1:]:
            self.children.setdefault(path.rpartition("/")[0], []).append(path)

    def _find(self) -> None:
        """Find the run folders, in the order of `os.walk` with sorted names; what is not in the index is listed."""
        waiting = [""]
        while waiting:
            path = waiting.pop()
            row, signature = self.known.get(path, (UNREAD, NEVER))
            if row >= 0 and (now := _signature(f"{self.root}/{path}/{FILE_NAME}")):
                self.entries[path] = (row, signature) if now == signature else (UNREAD, NEVER)
                self.runs.append(path)
            elif row == FOLDER and _signature(self._path(path), True) == signature:
                self.entries[path] = row, signature
                waiting += reversed(self.children.get(path, ()))
            else:
                waiting += reversed(self._list(path))

    def _list(self, path: str) -> list[str]:
        """Add a folder to the entries and return the paths of the folders in it; none for a run folder."""
        signature = _signature(self._path(path), True) or NEVER
        files, folders = set(), {}
        try:
            with os.scandir(self._path(path)) as found:
                for each in found:
                    if each.is_dir():
                        folders[each.name] = not each.is_symlink()
                    else:
                        files.add(each.name)
        except OSError:  # os.walk leaves out what cannot be listed, too
            files, folders, signature = set(), {}, NEVER
        if FILE_NAME in files:
            self.entries[path] = UNREAD, NEVER
            self.runs.append(path)
            return []
        if self.skip[0] in files:
            folders.pop(self.skip[1], None)
        children = [f"{path}/{name}".lstrip("/") for name in sorted(folders) if folders[name]]
        self.entries[path] = FOLDER, signature if is_old(signature, self.now) else NEVER
        if path:  # the index itself is in the folder, and changes it
            self.changed |= self.entries[path] != self.known.get(path)
        self.changed |= children != self.children.get(path, [])
        return children

    def _read(self) -> None:
        """Read the records that the index does not have."""
        runs = [run for run in self.runs if self.entries[run][0] == UNREAD]
        found = read_all([self._path(run, FILE_NAME) for run in runs], self.table, self.now)
        self.entries |= zip(runs, found, strict=True)
        self.changed |= any(row != self.known.get(run, NEVER)[0] for run, (row, _) in zip(runs, found, strict=True))

    def _path(self, *parts: str) -> str:
        return "/".join(filter(None, (self.root, *parts)))


def _signature(path: str, folder: bool = False) -> Signature | None:
    """Return the signature of a file or folder; None if it does not exist or is of the other kind."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(found.st_mode) != folder:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _whole_numbers(content: Any) -> list[int]:
    found = array("q")
    found.frombytes(content)
    return found.tolist()


def _replace(path: Path, parts: list[bytes]) -> None:
    """Replace the index in one step; keep the old one, or none, if the folder or the disk takes no new one."""
    scratch = None
    try:
        number, scratch = tempfile.mkstemp(prefix=f"{INDEX}.", dir=path.parent)
        with open(number, "wb") as file:
            file.writelines(parts)
        os.replace(scratch, path)
    except OSError:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)

"""Read many records into a table, also in processes of their own: python -m litpeft.runs.record_reader.

Such a process reads from its input the time in nanoseconds and the paths of the records, and writes what it found. A
process that fails leaves its records to the one that has started it.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from litpeft.runs.cores import available_cores
from litpeft.runs.record_table import RecordTable

UNREAD = -2  # instead of the row of a record that is not formed as runs write it
RECENT = 10 * 10**9  # nanoseconds; a file may change again within the resolution of its times, and clocks differ
FEWEST = 5000  # records of a process: reading fewer takes less than a second

Signature = tuple[int, int, int, int]  # size, times of modification and of status change, inode
NEVER: Signature = (-1, -1, -1, -1)  # of what is to be read again the next time
Found = list[tuple[int, Signature]]  # by record: its row in the table, or UNREAD, and its signature


def read(path: str, table: RecordTable, now: int) -> tuple[int, Signature]:
    """Add a record to a table; return its row, or UNREAD if it is not formed as runs write it, and its signature."""
    try:
        with open(path, "rb", buffering=0) as file:
            state = os.fstat(file.fileno())
            content = file.read()
        if not table.add(content.decode()):
            return UNREAD, NEVER
    except (OSError, ValueError):  # ValueError: not UTF-8
        return UNREAD, NEVER
    signature = state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
    return table.rows - 1, signature if is_old(signature, now) and len(content) == signature[0] else NEVER


def is_old(signature: Signature, now: int) -> bool:
    """Return whether a file would have other times if it changed from now on."""
    return max(signature[1:3]) < now - RECENT


def read_all(paths: Sequence[str], table: RecordTable, now: int) -> Found:
    """Add records to a table, in as many processes as there are cores if there are many records."""
    count = max(min(available_cores(), len(paths) // FEWEST), 1) if sys.executable else 1
    parts = [paths[len(paths) * n // count : len(paths) * (n + 1) // count] for n in range(count)]
    started = [_start(part, now) for part in parts[1:]]
    found = [read(path, table, now) for path in parts[0]]
    for part, process in zip(parts[1:], started, strict=True):
        found += _result(process, len(part), table)
    return found


def _start(paths: Sequence[str], now: int) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])  # litpeft need not be installed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "litpeft.runs.record_reader"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, **streams)
    with contextlib.suppress(BrokenPipeError), process.stdin:  # what was wrong with it is seen at its end
        process.stdin.write(b"\0".join(map(os.fsencode, (str(now), *paths))))
    return process


def _result(process: subprocess.Popen[bytes], count: int, table: RecordTable) -> Found:
    """Add what a process has read to the table and return its rows there; all are unread if the process failed."""
    content = process.stdout.read()
    process.stdout.close()
    if process.wait() != 0:
        return [(UNREAD, NEVER)] * count
    found, rows, columns = marshal.loads(content)
    before = table.rows
    table.extend(RecordTable.load(rows, columns))
    return [(row if row == UNREAD else before + row, signature) for row, signature in found]


def main() -> None:
    now, *paths = map(os.fsdecode, sys.stdin.buffer.read().split(b"\0"))
    table = RecordTable()
    found = [read(path, table, int(now)) for path in paths]
    sys.stdout.buffer.write(marshal.dumps((found, table.rows, dict(table.dump()))))


if __name__ == "__main__":
    main()

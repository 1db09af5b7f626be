"""Lock a folder for one process; the operating system releases the lock when the process ends, even if killed."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


class FolderInUse(Exception):
    """Another process holds the lock of a folder.

    Attributes:
        holder: the other process, such as "process 4711 on host".
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"in use by {holder}")
        self.holder = holder


def lock(folder: Path) -> FileLock:
    """Create a folder if needed and lock it for this process, until `release()` or the end of the process.

    Child processes do not keep the lock: dataloader workers may outlive a killed parent by seconds.

    Raises:
        FolderInUse: another process holds the lock.
        OSError: the folder cannot be created or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    held = FileLock(path, blocking=False)
    try:
        held.acquire()
    except Timeout:
        raise FolderInUse(_holder(path)) from None
    with suppress(OSError):  # a full disk, or Windows, where a locked file cannot be written: the lock holds anyway
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    return held


def wait_until_free(folder: Path) -> None:
    """Return once no process holds the lock of a folder; at once where the folder was never locked."""
    if (folder / LOCK).is_file():
        with FileLock(folder / LOCK, poll_interval=0.2):
            pass


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder."""
    if not (folder / LOCK).is_file():
        return False
    held = FileLock(folder / LOCK, blocking=False)
    try:
        held.acquire()
    except Timeout:
        return True
    held.release()
    return False


def _holder(path: Path) -> str:
    try:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"
    return f"process {holder}" if holder.isdecimal() else holder  # litpeft 0.1.0 wrote the process number only

"""What is on the disk whole or not at all, and whether it still is what was written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUMS = "SHA256SUMS"  # in the form that `sha256sum --check` reads


def flush(path: Path) -> None:
    """Ask the disk to keep a file, or of a folder which names are in it: a rename alone may be lost with the power."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_atomically(path: Path, text: str) -> None:
    """Write beside the file, flush to the disk, and put it in place by renaming."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        flush(scratch)
        os.replace(scratch, path)
        flush(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, replace: bool = True) -> Iterator[Path]:
    """A folder to write into that gets its name when all is in it, with its sums, and flushed.

    Args:
        folder: how it is going to be called.
        replace: what the name stood for before is moved aside, to `.NAME.old`, and removed afterwards: of the two at
            least one is whole at any time. Otherwise the first to have the name keeps it.
    """
    scratch, old = folder.with_name(f".{folder.name}.{os.getpid()}"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        files = [path for path in sorted(scratch.rglob("*")) if path.is_file()]
        sums = [f"{file_hash(path)}  {path.relative_to(scratch)}\n" for path in files]
        (scratch / SUMS).write_text("".join(sums), encoding="utf-8")
        for path in (*files, scratch / SUMS, scratch):
            flush(path)
        shutil.rmtree(old, ignore_errors=True)
        if replace and folder.exists():
            folder.rename(old)
        try:
            scratch.rename(folder)
        except OSError:
            if replace or not folder.is_dir():
                raise
        flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove it in one step for whoever looks: a killed process leaves no half of it under its name."""
    gone = folder.with_name(f".{folder.name}.gone{os.getpid()}")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process was first
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What of a `whole_folder` is not as it was written, in words; None where all is."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return f"it lacks {SUMS}"
    if not lines or any(line[64:66] != "  " for line in lines):
        return f"{SUMS} is damaged"
    for digest, name in ((line[:64], line[66:]) for line in lines):
        path = folder / name
        if not os.path.isfile(path):  # of a name that no file can have as well
            return f"it lacks {name}"
        if file_hash(path) != digest:
            return f"{name} is damaged, it is not what {SUMS} says"
    return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

"""Write files and folders atomically, and check folders against their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUMS = "SHA256SUMS"  # same format as the output of `sha256sum`


def flush(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk: without it a power failure may undo a rename."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no flush of its entries
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a temporary file in the same folder, force it to disk, and rename it to `path`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        flush(scratch)
        os.replace(scratch, path)
        flush(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, replace: bool = True, checksums: bool = True) -> Iterator[Path]:
    """Context manager: yield a temporary folder; on exit write its checksums, force it to disk and rename it.

    Args:
        folder: final path of the folder.
        replace: True moves an existing folder to `.NAME.old` and removes it afterwards, so that one of the two is
            complete at any time. False keeps an existing folder and discards the new one.
        checksums: write SHA256SUMS, for `damage`.
    """
    scratch, old = folder.with_name(f".{folder.name}.{os.getpid()}"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        files = [path for path in sorted(scratch.rglob("*")) if path.is_file()]
        if checksums:
            sums = [f"{file_hash(path)}  {path.relative_to(scratch)}\n" for path in files]
            (scratch / SUMS).write_text("".join(sums), encoding="utf-8")
            files.append(scratch / SUMS)
        for path in files:  # safetensors writes files that no other user can read
            path.chmod(scratch.stat().st_mode & 0o666)
        for path in (*files, scratch):
            flush(path)
        shutil.rmtree(old, ignore_errors=True)
        if replace and folder.exists():
            folder.rename(old)
        try:
            scratch.rename(folder)
        except OSError:
            if replace and old.exists() and not folder.exists():
                old.rename(folder)
            if replace or not folder.is_dir():
                raise
        flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically: rename it first, so that a killed process leaves no partial folder under its name."""
    gone = folder.with_name(f".{folder.name}.gone{os.getpid()}")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process was first
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """Return what is damaged in a folder written by `whole_folder`, as a phrase; None if every checksum matches."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return f"it lacks {SUMS}"
    if not lines or any(line[64:66] != "  " for line in lines):
        return f"{SUMS} is damaged"
    for digest, name in ((line[:64], line[66:]) for line in lines):
        path = folder / name
        if not os.path.isfile(path):  # False also for an invalid file name
            return f"it lacks {name}"
        if file_hash(path) != digest:
            return f"{name} is damaged: its checksum differs from {SUMS}"
    return None


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

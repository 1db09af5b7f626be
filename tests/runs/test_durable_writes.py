"""What survives a power failure: bytes reach the disk before a rename, and the rename before anything relies on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from litpeft.runs.atomic_write import SUMS, damage, file_hash, remove_folder, whole_folder, write_atomically
from litpeft.runs.record import as_json


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the flushes and renames of this process, with paths from `tmp_path`."""
    found: list[str] = []

    def shown(path: Any) -> str:
        return os.path.relpath(path, tmp_path)

    def spying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            paths = [os.readlink(f"/proc/self/fd/{arguments[0]}")] if name == "fsync" else arguments
            found.append(" ".join([name, *map(shown, paths)]).replace(f".{os.getpid()}", ".PID"))
            return real(*arguments)

        return call

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, spying(name, getattr(os, name)))
    return found


def test_a_file_is_flushed_before_its_rename_and_the_folder_after_it(calls: list[str], tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", "{}")
    assert calls == ["fsync .a.json.PID", "replace .a.json.PID a.json", "fsync ."]


@pytest.mark.parametrize("checksums", [True, False])
def test_the_files_of_a_folder_are_flushed_before_its_rename(calls: list[str], tmp_path: Path, checksums: bool) -> None:
    for _ in range(2):
        calls.clear()
        with whole_folder(tmp_path / "step", checksums=checksums) as scratch:
            (scratch / "inner").mkdir()
            (scratch / "inner" / "a").write_text("a")
            (scratch / "b").write_text("b")
    sums = [f"fsync .step.PID/{SUMS}"] if checksums else []
    flushed = ["fsync .step.PID/b", "fsync .step.PID/inner/a", *sums, "fsync .step.PID"]
    # the old folder is aside, complete, until the new one is in its place
    assert calls == [*flushed, "rename step .step.old", "rename .step.PID step", "fsync ."]
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_folder_that_exists_is_kept_on_request(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole_folder(tmp_path / "table", replace=False) as scratch:
            (scratch / "a").write_text(text)
    assert (tmp_path / "table" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize("place", [0, (1 << 20) - 1, 1 << 20, 3 << 19])
def test_a_changed_byte_anywhere_in_a_large_file_is_noticed(tmp_path: Path, place: int) -> None:
    with whole_folder(tmp_path / "step") as scratch:
        (scratch / "a").write_bytes(bytes(1 + (3 << 19)))
    assert damage(tmp_path / "step") is None
    content = bytearray((tmp_path / "step" / "a").read_bytes())
    content[place] = 1
    (tmp_path / "step" / "a").write_bytes(content)
    assert damage(tmp_path / "step") == f"a is damaged: its checksum differs from {SUMS}"


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        ("", f"{SUMS} is damaged"),
        ("\n", f"{SUMS} is damaged"),
        ("0" * 64 + " a\n", f"{SUMS} is damaged"),
        ("0" * 64 + "  missing\n", "it lacks missing"),
        (None, f"it lacks {SUMS}"),
    ],
)
def test_a_folder_with_other_checksums_is_damaged(tmp_path: Path, sums: str | None, reason: str) -> None:
    with whole_folder(tmp_path / "step") as scratch:
        (scratch / "a").write_text("a")
    path = tmp_path / "step" / SUMS
    path.unlink() if sums is None else path.write_text(sums)
    assert damage(tmp_path / "step") == reason


def test_a_hash_is_that_of_the_whole_file(tmp_path: Path) -> None:
    hashes = set()
    for size in (0, 1, 1 << 20, (1 << 20) + 1, 2 << 20):
        (tmp_path / "a").write_bytes(bytes(size))
        hashes.add(file_hash(tmp_path / "a"))
    assert len(hashes) == 5


def test_numbers_that_json_cannot_hold_are_null_at_every_depth() -> None:
    nan, inf = float("nan"), float("inf")
    text = as_json({"a": nan, "b": [1.0, (inf, 2)], "c": {"d": -inf, "e": {"f": [nan]}}})
    assert "NaN" not in text
    assert "Infinity" not in text
    assert text.count("null") == 4


@pytest.mark.parametrize("before", [True, False])
def test_a_folder_that_cannot_be_put_in_its_place_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    if before:
        with whole_folder(tmp_path / "step") as scratch:
            (scratch / "a").write_text("first")
    real = os.rename

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "step" and str(os.getpid()) in Path(source).name:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left on device"), whole_folder(tmp_path / "step") as scratch:
        (scratch / "a").write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == (["step"] if before else [])
    assert not before or ((tmp_path / "step" / "a").read_text() == "first" and damage(tmp_path / "step") is None)


def test_a_folder_that_cannot_be_written_and_is_not_there_is_an_error_also_where_the_old_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"), whole_folder(tmp_path / "table", replace=False) as scratch:
        (scratch / "a").write_text("a")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_not_part_of_a_folder(tmp_path: Path) -> None:
    for left in (f".step.{os.getpid()}", ".step.old", f".step.gone{os.getpid()}"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "left").touch()
    for _ in range(2):
        with whole_folder(tmp_path / "step") as scratch:
            (scratch / "a").write_text("a")
    assert sorted(path.name for path in (tmp_path / "step").iterdir()) == [SUMS, "a"]
    assert not (tmp_path / ".step.old").exists()
    remove_folder(tmp_path / "step")
    remove_folder(tmp_path / "step")  # another process was first
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_put_in_its_place_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "deep" / "step") as scratch:
        (scratch / "missing" / "a").write_text("a")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o000, 0o666), (0o022, 0o644), (0o077, 0o600), (0o333, 0o444)])
def test_files_get_the_rights_of_the_folder_but_are_no_programs(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask & ~0o300)  # a folder that its owner cannot write to holds no file
    try:
        with whole_folder(tmp_path / "step") as scratch:
            (scratch / "a").touch(0o700)
            scratch.chmod(0o777 & ~mask)
        assert (tmp_path / "step" / "a").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
        (tmp_path / "step").chmod(0o700)

"""Files and folders are complete or missing, whenever the writing process is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from litpeft.callbacks.checkpoint_io import LOOP, TENSORS, FolderCheckpointIO
from litpeft.runs.atomic_write import SUMS, damage, remove_folder, write_atomically
from litpeft.runs.folder import newest_checkpoint, remove_leftovers
from tests.resuming import SERVER, count_calls

STATE = {"state_dict": {"weight": torch.ones(3)}, "step": 1}


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where fsync is fast, if there is one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def _save_next(run_dir: Path, die_at: int | None, call_list: Path, step: int = 2) -> None:
    """Save a checkpoint, then remove the previous one, and write the list of system calls."""
    calls = count_calls(run_dir, die_at)
    path = run_dir / "checkpoints" / f"step-{step:06d}"
    FolderCheckpointIO().save_checkpoint(STATE | {"step": step}, path)
    if step == 2:
        remove_folder(path.with_name("step-000001"))
    call_list.write_text("\n".join(calls))


def _in_a_process(*arguments: object) -> int:
    process = SERVER.Process(target=_save_next, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def _step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, after checking that it is undamaged."""
    newest = newest_checkpoint(run_dir)
    assert damage(newest) is None
    return FolderCheckpointIO().load_checkpoint(newest)["step"]


@pytest.mark.parametrize("step", [2, 1])  # 1: step 1 is saved again
def test_a_kill_at_any_call_of_a_save_leaves_a_complete_checkpoint(in_memory: Path, step: int) -> None:
    first, call_list = in_memory / "first", in_memory / "call_list"
    FolderCheckpointIO().save_checkpoint(STATE, first / "checkpoints" / "step-000001")
    run_dir = in_memory / "run"
    shutil.copytree(first, run_dir)
    assert _in_a_process(run_dir, None, call_list, step) == 0
    calls = call_list.read_text().splitlines()
    assert sum(call.startswith("os.rename") for call in calls) >= 1
    seen = set()
    for at in range(1, len(calls) + 1):
        shutil.rmtree(run_dir)
        shutil.copytree(first, run_dir)
        assert _in_a_process(run_dir, at, call_list, step) == -9
        seen.add(_step(run_dir))
        remove_leftovers(run_dir)
        seen.add(_step(run_dir))
        assert not list((run_dir / "checkpoints").glob(".*")), calls[at - 1]
    assert seen == {1, step}


def test_files_are_flushed_before_the_rename_and_the_rename_before_the_old_checkpoint_is_removed(
    tmp_path: Path,
) -> None:
    """To survive a power cut, files are flushed first, then the new folder, then its parent."""
    call_list = tmp_path / "call_list"
    FolderCheckpointIO().save_checkpoint(STATE, tmp_path / "checkpoints" / "step-000001")
    assert _in_a_process(tmp_path, None, call_list) == 0
    calls = [call.replace(f"{tmp_path}/checkpoints", "") for call in call_list.read_text().splitlines()]
    renamed = next(i for i, call in enumerate(calls) if call.startswith("os.rename") and call.endswith(" /step-000002"))
    scratch = calls[renamed].split()[1]
    flushed = [call for call in calls[:renamed] if call.startswith("fsync")]
    assert set(flushed) == {f"fsync {scratch}{end}" for end in ("", f"/{TENSORS}", f"/{LOOP}", f"/{SUMS}")}
    assert flushed[-1] == f"fsync {scratch}"
    removed = next(i for i, call in enumerate(calls) if call.startswith("os.rename /step-000001"))
    assert "fsync " in calls[renamed + 1 : removed]


def test_the_checksums_match_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "step-000001"
    FolderCheckpointIO().save_checkpoint(STATE, path)
    done = subprocess.run(["sha256sum", "--check", SUMS], cwd=path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{LOOP}: OK\n{TENSORS}: OK\n")


def test_all_files_can_be_read_by_those_who_may_read_the_folder(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        FolderCheckpointIO().save_checkpoint(STATE, tmp_path / "step-000001")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "step-000001").iterdir()}
    assert modes == dict.fromkeys((TENSORS, LOOP, SUMS), 0o640)


@pytest.mark.parametrize("name", [TENSORS, LOOP, SUMS])
def test_a_flipped_bit_is_detected(tmp_path: Path, name: str) -> None:
    path = tmp_path / "step-000001"
    FolderCheckpointIO().save_checkpoint(STATE, path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    assert damage(path) is not None


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a.json", "first")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a.json", "second")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "first")]

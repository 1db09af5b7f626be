"""Folder locks: one holder, released after a kill, without POSIX-only modules."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from litpeft.runs.lock import FolderInUse, is_locked, lock, wait_until_free
from litpeft.runs.record import read_record
from tests.conftest import hold_lock


def test_a_second_process_is_refused_with_the_name_of_the_holder(tmp_path: Path) -> None:
    holder = hold_lock(tmp_path / "run", 60)
    try:
        with pytest.raises(FolderInUse) as refused:
            lock(tmp_path / "run")
        assert refused.value.holder.startswith(f"process {holder.pid} on ")
        assert is_locked(tmp_path / "run")
    finally:
        holder.kill()
        holder.wait()
    assert not is_locked(tmp_path / "run")
    lock(tmp_path / "run").release()


def test_waiting_ends_with_the_holder(tmp_path: Path) -> None:
    wait_until_free(tmp_path / "never locked")
    wait_until_free(tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing is made
    holder = hold_lock(tmp_path / "run", 1.0)
    wait_until_free(tmp_path / "run")
    assert not is_locked(tmp_path / "run")
    assert holder.wait(timeout=60) == 0


def test_a_lock_file_of_version_0_1_0_still_names_its_process(tmp_path: Path) -> None:
    held = lock(tmp_path)
    (tmp_path / ".lock").write_text("4711\n")  # litpeft 0.1.0
    with pytest.raises(FolderInUse, match="in use by process 4711$"):
        lock(tmp_path)
    held.release()


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff", None])
def test_a_lock_file_that_names_nobody_is_held_by_another_process(tmp_path: Path, content: bytes | None) -> None:
    held, path = lock(tmp_path), tmp_path / ".lock"
    if content is not None:
        path.write_bytes(content)
    expected = "another process" if content is not None else f"process {os.getpid()} on {socket.gethostname()}"
    with pytest.raises(FolderInUse, match=f"^in use by {expected}$") as refused:
        lock(tmp_path)
    assert refused.value.holder == expected
    assert is_locked(tmp_path)
    held.release()
    assert not is_locked(tmp_path)
    again = lock(tmp_path)  # asking does not keep the lock
    assert is_locked(tmp_path)
    again.release()


def test_fit_needs_no_posix_module(tmp_path: Path, fit_arguments: list[str]) -> None:
    code = (
        "import builtins, signal, sys\n"
        "real = builtins.__import__\n"
        "def limited(name, globals=None, *rest, **named):\n"
        "    ours = str((globals or {}).get('__name__')).startswith('litpeft')\n"  # other libraries may import them
        "    if ours and name in ('fcntl', 'resource', 'grp', 'pwd', 'termios'):\n"
        "        raise ImportError(name)\n"
        "    return real(name, globals, *rest, **named)\n"
        "builtins.__import__ = limited\n"
        "import lightning, torch\n"
        "usr1 = signal.SIGUSR1\n"
        "del signal.SIGUSR1\n"
        "import litpeft.callbacks.stop_signals\n"
        "signal.SIGUSR1 = usr1\n"  # Lightning asks for it on Linux
        "from litpeft.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [
        *(sys.executable, "-c", code),
        *fit_arguments,
        *("--run_dir", str(tmp_path / "run"), "--trainer.max_steps", "2"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run")["status"] == "ok"

"""Freed memory stays with the process while a model trains on a CPU, and is returned afterwards.

Each test asks a process of its own: in one that has trained before, the heap has holes that serve the next large tensor.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lightning import Callback

from tests.conftest import litpeft
from tests.training import host_memory_watcher
from tests.training.host_memory_watcher import BYTES, Pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux and GNU's C library")
ROOT = Path(__file__).parents[2]


def pages(device: str) -> Pages:
    """Return what a process sees that trains nothing, but enters and leaves the with block of a run on this device."""
    command = [sys.executable, "-m", host_memory_watcher.__name__, device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Pages.read(done.stdout)


def test_memory_is_asked_for_once_and_returned_at_the_end() -> None:
    found = pages("cpu")
    assert found.inside < found.before / 4
    assert found.after > found.before / 4
    assert found.returned_bytes > BYTES / 2


def test_with_a_gpu_nothing_changes() -> None:
    found = pages("cuda")
    assert found.inside > found.before / 4 > 0


def test_a_run_keeps_its_memory_while_it_trains(tmp_path: Path, fit_arguments: list[str]) -> None:
    watcher = ["--trainer.callbacks", f"{host_memory_watcher.__name__}.Watcher", "--trainer.callbacks.file"]
    arguments = [*fit_arguments, *watcher, str(tmp_path / "faults"), "--run_dir", str(tmp_path / "run")]
    assert issubclass(host_memory_watcher.Watcher, Callback)
    done = litpeft(*arguments, "--trainer.max_steps", "2", "--trainer.accelerator", "cpu", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "faults").read_text()) < pages("cpu").before / 4

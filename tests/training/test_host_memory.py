"""Freed memory stays with the process while a model trains on a CPU, and is returned afterwards.

Each test asks a process of its own: in one that has trained before, the heap has holes that serve the next large tensor.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning import Callback

from litpeft.training import host_memory
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


class Library:
    """The part of GNU's C library that hands out memory, as mallopt(3) and malloc_trim(3) describe it."""

    TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h

    def __init__(self) -> None:
        self.limits: dict[int, int] = {}
        self.trims: list[tuple[dict[int, int], int]] = []

    def mallopt(self, number: int, value: int) -> int:
        self.limits[number] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trims.append((dict(self.limits), pad))
        return 1


def test_limits_are_raised_and_end_as_high_as_the_library_would_raise_them(monkeypatch: pytest.MonkeyPatch) -> None:
    library, gibibyte, mebibyte = Library(), 1 << 30, 1 << 20
    monkeypatch.setattr(host_memory, "_gnu_library", lambda: library)
    # of its own accord the library raises the threshold for a mapping to 32 MiB, and the other to twice that
    ended = {library.MMAP_THRESHOLD: 32 * mebibyte, library.TRIM_THRESHOLD: 64 * mebibyte}
    for error in (False, True):
        with suppress(KeyError), host_memory.kept_from_step_to_step("cpu"):
            assert library.limits == {library.TRIM_THRESHOLD: gibibyte, library.MMAP_THRESHOLD: gibibyte}
            if error:
                raise KeyError
        assert library.limits == ended
        assert library.trims.pop() == (ended, 0)
    for device in ("cuda", "mps", "meta"):
        with host_memory.kept_from_step_to_step(device):
            assert library.limits == ended
    assert not library.trims


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        host_memory.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=None, malloc_trim=None)
    )  # musl
    with host_memory.kept_from_step_to_step("cpu"):
        pass
    monkeypatch.setattr(host_memory.sys, "platform", "darwin")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", None)
    with host_memory.kept_from_step_to_step("cpu"):
        pass


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

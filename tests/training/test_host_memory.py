"""Freed memory stays with the process while a model trains on a CPU, and is returned afterwards."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback

from litpeft.__main__ import main
from litpeft.training.host_memory import kept_from_step_to_step
from tests.training import host_memory_watcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux and GNU's C library")
BYTES = 96 << 20


def faults(times: int) -> int:
    """Allocate, fill and free a tensor some times; return the number of pages that the system had to give."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(BYTES, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_is_asked_for_once_and_returned_at_the_end() -> None:
    outside = faults(4)
    with kept_from_step_to_step("cpu"):
        faults(1)
        assert faults(4) < outside / 4
        held = resident_bytes()
    assert held - resident_bytes() > BYTES / 2
    assert faults(4) > outside / 4  # as before


def test_with_a_gpu_nothing_changes() -> None:
    outside = faults(4)
    with kept_from_step_to_step("cuda"):
        faults(1)
        assert faults(4) > outside / 4


def test_a_run_keeps_its_memory_while_it_trains(tmp_path: Path, fit_arguments: list[str]) -> None:
    watcher = ["--trainer.callbacks", f"{host_memory_watcher.__name__}.Watcher", "--trainer.callbacks.file"]
    arguments = [*fit_arguments, *watcher, str(tmp_path / "faults"), "--run_dir", str(tmp_path / "run")]
    assert issubclass(host_memory_watcher.Watcher, Callback)
    assert main([*arguments, "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]) == 0
    inside = int((tmp_path / "faults").read_text())
    assert inside < faults(4) / 4

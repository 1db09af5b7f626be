"""Peaks by phase: on a CPU what the host tells, and the borders of phases with a CUDA that is played."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from litpeft.callbacks import MemoryRecorder

PROBE = """
from litpeft.callbacks import MemoryRecorder
before = MemoryRecorder().measured()["peak_rss_bytes"]
held = bytearray(b"x" * 400_000_000)
del held
told = MemoryRecorder().measured()
print(told["peak_rss_bytes"] - before, told["peak_allocated_bytes"], told["peak_reserved_bytes"], told["memory_phases"])
"""


def test_on_a_cpu_the_hosts_peak_is_known_and_cudas_is_null() -> None:
    here = bytearray(b"x" * 900_000_000)  # what the process that starts a run has held must not count
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    del here
    grown, *cuda = done.stdout.split()
    assert 350_000_000 < int(grown) < 850_000_000  # the bytes, perhaps twice while they are copied
    assert cuda == ["None"] * 3


def test_each_peak_falls_into_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is played, since CI has none; `tests/gpu` has the real one."""
    peak = {"allocated": 0, "reserved": 0}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peak["reserved"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.update(allocated=1, reserved=2))
    module = SimpleNamespace(device=torch.device("cuda"))
    trainer = SimpleNamespace(global_step=0, sanity_checking=False)
    recorder = MemoryRecorder()

    def use(amount: int) -> None:
        peak.update(allocated=max(peak["allocated"], amount), reserved=max(peak["reserved"], 2 * amount))

    recorder.setup(trainer, module, "fit")
    use(100)  # loading
    recorder.on_sanity_check_start(trainer, module)
    use(30)
    recorder.on_train_start(trainer, module)
    use(70)
    recorder.on_train_batch_end(trainer, module)  # accumulating: no optimizer step yet
    use(90)
    trainer.global_step = 1
    recorder.on_train_batch_end(trainer, module)
    use(60)
    recorder.on_train_batch_end(trainer, module)
    recorder.on_validation_start(trainer, module)
    use(40)
    recorder.on_validation_end(trainer, module)
    use(65)
    recorder.on_train_end(trainer, module)
    phases = {name: told["allocated"] for name, told in recorder.phases.items()}
    assert phases == {"load": 100, "validate": 40, "first_step": 90, "train": 65}
    told = recorder.measured()
    assert (told["peak_allocated_bytes"], told["peak_reserved_bytes"]) == (100, 200)

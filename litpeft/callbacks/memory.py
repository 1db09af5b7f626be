"""Peaks of memory: CUDA's by phase where there is a GPU, the host's everywhere."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kibibytes elsewhere


class MemoryRecorder(Callback):
    """Record peaks of memory by phase: `load`, `first_step` (optimizer state is born in it), `train`, `validate`.

    At each border of phases the device is synchronised, its peaks are read and set back. Without a GPU the CUDA figures
    are null, and only the host's peak is known.
    """

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, int]] = {}
        self._phase: str | None = None
        self._steps_before = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._enter("load", pl_module.device)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("validate", pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps_before = trainer.global_step  # of a resumed run
        self._enter("first_step", pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._phase == "first_step" and trainer.global_step > self._steps_before:
            self._enter("train", pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._enter("validate", pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._enter("train", pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter(None, pl_module.device)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._enter(None, pl_module.device)

    def _enter(self, phase: str | None, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            if self._phase is not None:
                kept = self.phases.setdefault(self._phase, {"allocated": 0, "reserved": 0})
                kept["allocated"] = max(kept["allocated"], torch.cuda.max_memory_allocated(device))
                kept["reserved"] = max(kept["reserved"], torch.cuda.max_memory_reserved(device))
            torch.cuda.reset_peak_memory_stats(device)
        self._phase = phase

    def measured(self) -> dict[str, Any]:
        """Figures for the record."""
        return {
            "peak_allocated_bytes": max((p["allocated"] for p in self.phases.values()), default=None),
            "peak_reserved_bytes": max((p["reserved"] for p in self.phases.values()), default=None),
            "peak_rss_bytes": peak_rss_bytes(),
            "memory_phases": self.phases or None,
        }


def peak_rss_bytes() -> int:
    """Most host memory that the process has held since it started.

    Linux's own mark and not getrusage's, which a process takes over from the one that started it, large or not.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT

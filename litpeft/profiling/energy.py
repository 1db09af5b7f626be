"""Energy in joules, from processor counters (Linux powercap) and NVIDIA GPU counters (NVML).

The counters cover the whole processor package (without host memory) or the whole GPU board, whichever process uses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
READ_EVERY = 60.0  # seconds; a package counter wraps after about 2^18 J, a quarter of an hour at 300 W


class Counter:
    """An energy counter that wraps around.

    Args:
        read: returns joules since some moment in the past; raises if the counter cannot be read.
        range: joules after which the counter restarts at 0.
    """

    def __init__(self, read: Callable[[], float], range: float = math.inf) -> None:
        self._read, self._range, self._last = read, range, read()

    def used(self) -> float:
        """Return the joules since the last call, or since creation."""
        now = self._read()
        used, self._last = (now - self._last) % self._range, now
        return used


class EnergyMeter:
    """Count joules from its creation on, by source: `cpu_packages`, and `gpu` for a run on a GPU.

    Args:
        device: device of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self._counters = {"cpu_packages": _read_or_empty(_packages)}
        if device.type == "cuda":
            self._counters["gpu"] = _read_or_empty(_board, device)
        self._joules = {source: 0.0 if counters else None for source, counters in self._counters.items()}

    def read(self) -> dict[str, float | None]:
        """Return joules by source; None if unknown. Must be called at least every `READ_EVERY` seconds."""
        for source, joules in self._joules.items():
            if joules is not None:
                used = _read_or_empty(lambda source=source: [counter.used() for counter in self._counters[source]])
                self._joules[source] = (
                    joules + sum(used) if used else None
                )  # stays unknown: the missed energy cannot be recovered
        return dict(self._joules)


def _read_or_empty(read: Callable[..., list], *arguments: Any) -> list:
    """Return the result of `read`, or an empty list if it fails: no counter, no permission, no driver."""
    try:
        return read(*arguments)
    except Exception:  # NVML raises its own exception class
        return []


def _packages() -> list[Counter]:
    """Return one counter per processor package; subzones (core, dram) and the whole board (`psys`) are skipped."""
    zones = [zone for zone in POWERCAP.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", zone.name)]
    zones = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
    return [
        Counter(partial(_joules_in, zone / "energy_uj"), _joules_in(zone / "max_energy_range_uj")) for zone in zones
    ]


def _joules_in(path: Path) -> float:
    """Return joules from a file in microjoules."""
    return int(path.read_text()) / 1e6


def _board(device: torch.device) -> list[Counter]:
    """Return the counter of the GPU board; raises without pynvml, before Volta, and for a MIG slice."""
    import pynvml

    pynvml.nvmlInit()
    # by UUID, because NVML also numbers the boards that CUDA_VISIBLE_DEVICES hides
    board = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return [Counter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1e3)]  # millijoules

"""Joules, from the counters of processors (Linux's powercap) and of NVIDIA's GPUs (NVML).

They count all that the package or the board takes, whoever makes it work, memory of a GPU included, of a host not.
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
READ_EVERY = 60.0  # seconds: a package's counter starts again after some 2^18 J, a quarter of an hour at 300 W


class Counter:
    """One that has been counting for long.

    Args:
        read: joules since some moment in the past; raises where that is not told.
        range: joules after which it starts again at 0.
    """

    def __init__(self, read: Callable[[], float], range: float = math.inf) -> None:
        self._read, self._range, self._last = read, range, read()

    def used(self) -> float:
        """Joules since this was asked for the last time."""
        now = self._read()
        used, self._last = (now - self._last) % self._range, now
        return used


class EnergyMeter:
    """Joules since it was made, by source: `cpu_packages`, and `gpu` where the run is on one.

    Args:
        device: of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self._counters = {"cpu_packages": _told(_packages)}
        if device.type == "cuda":
            self._counters["gpu"] = _told(_board, device)
        self._joules = {source: 0.0 if counters else None for source, counters in self._counters.items()}

    def read(self) -> dict[str, float | None]:
        """By source; None where it is not told. To be called at least every `READ_EVERY` seconds."""
        for source, joules in self._joules.items():
            if joules is not None:
                used = _told(lambda source=source: [counter.used() for counter in self._counters[source]])
                self._joules[source] = joules + sum(used) if used else None  # for good: what was missed is not known
        return dict(self._joules)


def _told(ask: Callable[..., list], *about: Any) -> list:
    """What comes of asking; nothing if it fails: no such counter, one that only root may read, a missing driver."""
    try:
        return ask(*about)
    except Exception:  # NVML has its own
        return []


def _packages() -> list[Counter]:
    """One for each processor package. Its parts (core, dram) lie within; `psys`, the whole board, is around it."""
    zones = [zone for zone in POWERCAP.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", zone.name)]
    zones = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
    return [
        Counter(partial(_joules_in, zone / "energy_uj"), _joules_in(zone / "max_energy_range_uj")) for zone in zones
    ]


def _joules_in(path: Path) -> float:
    """Joules from a file of microjoules."""
    return int(path.read_text()) / 1e6


def _board(device: torch.device) -> list[Counter]:
    """The GPU's; fails without NVML's Python package, for boards before Volta, and for a part of a GPU."""
    import pynvml

    pynvml.nvmlInit()
    # by its own identity: NVML also counts the boards that CUDA_VISIBLE_DEVICES hides
    board = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return [Counter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1e3)]  # millijoules

"""The energy used by training, on machines that report it."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from litpeft.profiling.energy import READ_EVERY, EnergyMeter
from litpeft.training import processes


class EnergyRecorder(Callback):
    """Record the joules of training, including validation and checkpoints, without benchmarks.

    The counters cover whole processor packages and the whole GPU board (see `profiling.energy`), so other work on the
    machine is included.

    Attributes:
        clock: function that returns the time in seconds.
    """

    clock = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._meter: EnergyMeter | None = None  # None outside of training
        self._joules: dict[str, float | None] | None = None
        self._joules_before: dict[str, float | None] | None = (
            None  # up to the checkpoint that was resumed, or to the last benchmark
        )
        self._read_at = 0.0
        self._paused = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meter = EnergyMeter(pl_module.device)
        self._read()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.clock() - self._read_at >= READ_EVERY:
            self._read()

    on_validation_batch_end = on_train_batch_end

    def on_benchmark_start(self, *_: Any) -> None:
        self._paused = self._meter is not None
        if self._paused:
            self._read()
            self._joules_before, self._joules, self._meter = self._total(), None, None

    def on_benchmark_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._paused:
            self._meter = EnergyMeter(pl_module.device)
            self._read()

    def on_train_end(self, *_: Any) -> None:
        self._read()
        self._meter = None

    on_exception = on_train_end

    def _read(self) -> None:
        if self._meter is not None:
            self._joules, self._read_at = self._meter.read(), self.clock()

    def _total(self) -> dict[str, float | None] | None:
        if self._joules is None or self._joules_before is None:
            return self._joules or self._joules_before
        both = {source: (self._joules_before.get(source), joules) for source, joules in self._joules.items()}
        return {source: None if None in pair else sum(pair) for source, pair in both.items()}

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return processes.state_of_all_ranks({"energy_joules": self._total()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._joules_before = processes.state_of_this_rank(state_dict)["energy_joules"]

    def measured(self) -> dict[str, Any]:
        """Return record fields; the sum is null unless every source is known."""
        by_source = self._total()
        known = by_source and None not in by_source.values()
        return {
            "energy_joules": sum(by_source.values()) if known else None,
            "energy_joules_by_source": by_source,
        }

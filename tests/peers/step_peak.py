"""The callback that measures litpeft's side of `make bench-peers`; its figure goes into the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from tests.peers.live_bytes import StepPeak

STEP = 1  # the second: optimizer states are there, and it is within the warm-up


class Measure(Callback):
    """Writes `peak.json` with the peak of live tensor bytes of one step, and the loss of each."""

    def __init__(self) -> None:
        self.peak = StepPeak()
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == STEP:
            self.peak.start()

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
        """Nothing: gradients of the step before are freed within the step, as in Trainer."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == STEP + 1:
            self.peak.stop()
        self.losses.append(float(trainer.callback_metrics["train_loss"]))

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        told = {"peak_tensor_bytes": self.peak.bytes, "losses": self.losses}
        (Path(trainer.default_root_dir) / "peak.json").write_text(json.dumps(told))

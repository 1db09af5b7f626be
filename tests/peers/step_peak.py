"""The callback that measures litpeft's side of `make bench-peers`, and writes the results to the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tests.peers.live_bytes import StepPeak
from tests.peers.products import Products

STEPS = 3  # the longest batch is the first on both sides, and the optimizer states exist from the second step


class Measure(Callback):
    """Write `peak.json`: peak of live tensors in the first steps, lower bound of seconds per token, and all losses."""

    def __init__(self) -> None:
        self.peak = StepPeak()
        self.products = Products()
        self.padded = 0  # padded tokens of the step whose products are counted
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, _: int) -> None:
        if trainer.global_step == 0:
            self.peak.start()
        if trainer.global_step == STEPS:
            self.padded = int(module.token_counts(batch)["padded"])
            self.products.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == STEPS:
            self.peak.stop()
        if trainer.global_step == STEPS + 1:
            self.products.__exit__(None, None, None)
        self.losses.append(float(trainer.callback_metrics["train_loss"]))

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        floor = self.products.seconds() / self.padded
        results = {"peak_tensor_bytes": self.peak.bytes, "losses": self.losses, "floor_seconds_per_token": floor}
        (Path(trainer.default_root_dir) / "peak.json").write_text(json.dumps(results))

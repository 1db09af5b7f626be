"""How fast training goes: seconds an optimizer step, samples and tokens a second."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

COUNTS = ("samples", "tokens", "padded", "trained")


class ThroughputRecorder(Callback):
    """Record seconds an optimizer step and what was done in them.

    A step begins when its batch is asked for and ends when the optimizer has stepped; accumulated batches add up to one
    step. Validation, checkpoints and other callbacks lie between the steps and are not counted. On a GPU the device is
    synchronised at the end of each step.

    Args:
        warmup_steps: first optimizer steps that the rates leave out, while memory pools fill and kernels are chosen.
            Steps in which memory is followed are left out wherever they are.
    """

    def __init__(self, warmup_steps: int = 5) -> None:
        self.warmup_steps = warmup_steps
        self.step_seconds: list[float] = []
        self.step_counts: list[dict[str, int]] = []
        self.slowed_steps: set[int] = set()  # by a measurement that takes time, such as that of memory
        self._open_seconds = 0.0  # of the step that is being made
        self._open_counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
        self._begun = 0.0
        self._steps_before = 0
        self._seconds_before = 0.0  # of the parts of the run that ended in the checkpoint that it was resumed from

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps_before = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # a loader of ours tells when the batch was asked for; with another one, waiting for data is not seen
        self._begun = getattr(trainer.train_dataloader, "requested_at", None) or time.perf_counter()
        for name, count in pl_module.token_counts(batch).items():
            self._open_counts[name] = self._open_counts[name] + count  # a tensor on the device, read after the step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step > self._steps_before
        if stepped and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._open_seconds += time.perf_counter() - self._begun
        if not stepped:
            return
        counts = {name: int(count) for name, count in self._open_counts.items()}
        self.step_seconds.append(self._open_seconds)
        self.step_counts.append(counts)
        if any(getattr(callback, "tracker", None) is not None for callback in trainer.callbacks):
            self.slowed_steps.add(len(self.step_seconds) - 1)
        else:
            pl_module.log("train_tokens_per_second", counts["tokens"] / self._open_seconds, batch_size=1)
        self._steps_before = trainer.global_step
        self._open_seconds, self._open_counts = 0.0, dict.fromkeys(COUNTS, 0)

    def _train_seconds(self) -> float:
        return self._seconds_before + sum(self.step_seconds)

    def state_dict(self) -> dict[str, float]:
        return {"train_seconds": self._train_seconds()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._seconds_before = state_dict["train_seconds"]

    def measured(self) -> dict[str, Any]:
        """Figures for the record; rates are null where no step is left after warm-up."""
        taken = [i for i in range(self.warmup_steps, len(self.step_seconds)) if i not in self.slowed_steps]
        seconds = np.array([self.step_seconds[i] for i in taken])
        counted = [self.step_counts[i] for i in taken]
        rates = dict.fromkeys(COUNTS)
        if len(seconds):
            rates = {name: sum(step[name] for step in counted) / float(seconds.sum()) for name in COUNTS}
        return {
            "train_seconds": self._train_seconds() or None,
            "warmup_steps_left_out": self.warmup_steps,
            "step_seconds_p50": float(np.percentile(seconds, 50)) if len(seconds) else None,
            "step_seconds_p95": float(np.percentile(seconds, 95)) if len(seconds) else None,
            "train_samples_per_second": rates["samples"],
            "train_tokens_per_second": rates["tokens"],
            "padded_tokens_per_second": rates["padded"],
            "trained_tokens_per_second": rates["trained"],
        }

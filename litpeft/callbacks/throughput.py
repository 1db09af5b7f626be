"""How fast training goes: seconds a step and what they are spent on; samples, tokens and operations a second."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from litpeft.errors import UserError
from litpeft.profiling.flops import FlopCounter, measured_peak, settle
from litpeft.training import processes

COUNTS = ("samples", "tokens", "padded", "trained")
PARTS = ("data_wait", "forward", "backward", "optimizer")


@dataclass
class Step:
    """What an optimizer step took, and what was done in it.

    Attributes:
        seconds: of all its batches.
        counts: of all its batches, by name; tensors on the device while the step is open.
        parts: seconds by what they were spent on, which add up; None where it was not sampled.
        flops: what the model needed; None where they were not counted.
        slowed: by a measurement that takes time, such as that of memory.
    """

    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    parts: dict[str, float] | None = None
    flops: int | None = None
    slowed: bool = False


class ThroughputRecorder(Callback):
    """Record seconds an optimizer step and what was done in them.

    A step begins when its batch is asked for and ends when the optimizer has stepped; accumulated batches add up to one
    step. Validation, checkpoints and other callbacks lie between the steps and are not counted. On a GPU the device is
    synchronised at the end of each step. Of several processes it is the first whose seconds are told, and what all of
    them did in these.

    A sampled step is split into waiting for data (its move to the device included), forward (and setting gradients
    back), backward, and the optimizer (clipping and the schedule included); a GPU is synchronised at these borders, and
    the operations that the model needs are counted (not if blocks are compiled, or checkpointed in the reentrant way).
    Figures of sampled steps stand by themselves: all others leave them out.

    Args:
        warmup_steps: first optimizer steps that the figures leave out, while memory pools fill and kernels are chosen.
            Steps in which memory is followed are left out wherever they are.
        sample_every: every how many steps one is sampled, from the second after warm-up on; 0 for none.
        peak_flops: operations a second that a device can make, to tell which share of them is achieved.
        measure_peak: measure that before the model is loaded, by products of large matrices in the model's dtype.

    Attributes:
        clock: seconds; the one that the data loader uses.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        warmup_steps: int = 5,
        sample_every: int = 10,
        peak_flops: float | None = None,
        measure_peak: bool = False,
    ) -> None:
        if warmup_steps < 0:
            raise UserError(f"throughput.warmup_steps must not be negative, got {warmup_steps}.")
        if sample_every < 0 or sample_every == 1:  # of each step, there would be none to tell the rates by
            raise UserError(f"throughput.sample_every must be 0 or at least 2, got {sample_every}.")
        if peak_flops is not None and not 0 < peak_flops < math.inf:
            raise UserError(f"throughput.peak_flops must be above 0 and finite, got {peak_flops}.")
        if peak_flops is not None and measure_peak:
            raise UserError("give throughput.peak_flops or throughput.measure_peak, not both.")
        self.warmup_steps, self.sample_every = warmup_steps, sample_every
        self.peak_flops, self.measure_peak = peak_flops, measure_peak
        self.steps: list[Step] = []
        self._open = Step()  # the one that is being made
        self._begun = self._border = 0.0  # of its batch; of the part that ended last
        self._counter: FlopCounter | None = None  # while it is on
        self._steps_before = 0
        self._seconds_before = 0.0  # of the parts of the run that ended in the checkpoint that it was resumed from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.measure_peak:
            self.peak_flops = measured_peak(trainer.strategy.root_device, pl_module.compute_dtype, self.clock)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps_before = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # a loader of ours tells when the batch was asked for; with another one, waiting for data is not seen
        self._begun = self._border = getattr(trainer.train_dataloader, "requested_at", None) or self.clock()
        step, after = self._open, len(self.steps) - self.warmup_steps
        if step.parts is None and self.sample_every and after >= 0 and after % self.sample_every == 1:
            step.parts = dict.fromkeys(PARTS, 0.0)
        self._ends("data_wait", pl_module)
        for name, count in pl_module.token_counts(batch).items():
            step.counts[name] = step.counts[name] + count  # a tensor on the device, read after the step
        if step.parts is not None and pl_module.gradient_checkpointing != "reentrant" and not pl_module.compile_blocks:
            self._counter = FlopCounter()
            self._counter.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._stop_counting()
        self._ends("forward", pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ends("backward", pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        step, stepped = self._open, trainer.global_step > self._steps_before
        if stepped and step.parts is None:
            settle(pl_module.device)
        self._ends("optimizer", pl_module)
        step.seconds += (self._border if step.parts is not None else self.clock()) - self._begun
        if not stepped:
            return
        step.counts = {name: int(count) for name, count in step.counts.items()}
        if processes.count() > 1:
            own = [*step.counts.values(), step.flops or 0]
            *counts, flops = processes.total(torch.tensor(own, device=pl_module.device)).tolist()
            step.counts, step.flops = dict(zip(step.counts, counts, strict=True)), step.flops and flops
        step.slowed = any(getattr(callback, "tracker", None) is not None for callback in trainer.callbacks)
        if not step.slowed:
            pl_module.log("train_tokens_per_second", step.counts["tokens"] / step.seconds, batch_size=1)
            self._draw(trainer, step)
        self.steps.append(step)
        self._steps_before, self._open = trainer.global_step, Step()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_counting()

    def _ends(self, part: str, pl_module: LightningModule) -> None:
        """What lies between the last border and now, if this step is sampled, was spent on this."""
        if self._open.parts is not None:
            settle(pl_module.device)
            last, self._border = self._border, self.clock()
            self._open.parts[part] += self._border - last

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._open.flops = (self._open.flops or 0) + self._counter.flops
            self._counter = None

    def _draw(self, trainer: Trainer, step: Step) -> None:
        """The curves of a sampled step; Lightning would draw them only if it were about to draw its own."""
        if step.parts is None:
            return
        curves = {f"step_seconds/{part}": seconds for part, seconds in step.parts.items()}
        curves |= {} if step.flops is None else {"model_flops_per_second": step.flops / step.seconds}
        for logger in trainer.loggers:
            logger.log_metrics(curves, step=trainer.global_step - 1)  # counted from 0, as Lightning does

    def _train_seconds(self) -> float:
        return self._seconds_before + sum(step.seconds for step in self.steps)

    def state_dict(self) -> dict[str, float]:
        return {"train_seconds": self._train_seconds()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._seconds_before = state_dict["train_seconds"]

    def measured(self) -> dict[str, Any]:
        """Figures for the record; null where no step is left to take them from."""
        taken = [step for step in self.steps[self.warmup_steps :] if not step.slowed]
        plain = [step for step in taken if step.parts is None]
        seconds = [step.seconds for step in plain]
        rates = {name: _ratio(sum(step.counts[name] for step in plain), sum(seconds)) for name in COUNTS}
        return {
            "train_seconds": self._train_seconds() or None,
            "warmup_steps_left_out": self.warmup_steps,
            "step_seconds_p50": _percentile(seconds, 50),
            "step_seconds_p95": _percentile(seconds, 95),
            "train_samples_per_second": rates["samples"],
            "train_tokens_per_second": rates["tokens"],
            "padded_tokens_per_second": rates["padded"],
            "trained_tokens_per_second": rates["trained"],
        } | self._sampled([step for step in taken if step.parts is not None])

    def _sampled(self, steps: list[Step]) -> dict[str, Any]:
        """Figures of the sampled steps."""
        split = {
            f"step_split_seconds_p{q}": {part: _percentile([step.parts[part] for step in steps], q) for part in PARTS}
            for q in (50, 95)
        }
        counted = [step for step in steps if step.flops is not None]
        flops = sum(step.flops for step in counted)
        rate = _ratio(flops, sum(step.seconds for step in counted))
        return {
            "sampled_steps": len(steps),
            **(split if steps else dict.fromkeys(split)),
            "model_flops_per_step": _ratio(flops, len(counted)),
            "model_flops_per_second": rate,
            "peak_flops_per_second": self.peak_flops,
            "flops_utilisation": rate and self.peak_flops and rate / (self.peak_flops * processes.count()),
        }


def _percentile(values: list[float], q: int) -> float | None:
    return float(np.percentile(values, q)) if values else None


def _ratio(amount: float, by: float) -> float | None:
    return amount / by if by else None

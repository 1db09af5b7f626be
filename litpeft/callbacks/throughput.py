"""Training speed: seconds per step and their split; samples, tokens and operations per second."""

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
from litpeft.profiling.clock import HostClock, device_clock
from litpeft.profiling.flops import FlopCounter, measured_peak, settle
from litpeft.training import processes

COUNTS = ("samples", "tokens", "padded", "trained")
PARTS = ("data_wait", "forward", "backward", "optimizer")


@dataclass
class Step:
    """Time and work of one optimizer step.

    Attributes:
        seconds: total over the batches whose time has been read.
        counts: samples and tokens over all its batches, by name; tensors on the device until they are read.
        parts: seconds per part (PARTS), which add up to `seconds`; None if the step was not sampled.
        flops: operations that the model needs; None if they were not counted.
        slowed: whether another measurement, such as memory tracking, slowed the step.
        unread: start and end of each batch whose time has not been read, as marks of the device's clock.
    """

    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    parts: dict[str, float] | None = None
    flops: int | None = None
    slowed: bool = False
    unread: list[tuple[Any, Any]] = field(default_factory=list)


class ThroughputRecorder(Callback):
    """Record seconds per optimizer step, and samples, tokens and operations per second.

    A step starts with the request for its first batch and ends after the optimizer step; accumulated batches count as
    one step. Validation, checkpoints and other callbacks run between steps and are excluded. A GPU's steps are timed by
    events in its queue, which are read when a rate is logged, so that the host can queue the next step (and collate and
    copy its batch) while the GPU computes. With several processes, seconds are those of rank 0 and counts are summed
    over all ranks.

    A sampled step is split into data wait (including the move to the device), forward (including zero_grad), backward,
    and optimizer (including clipping and the schedule). A GPU is synchronised between the parts, and the operations
    that the model needs are counted (unless blocks are compiled or use reentrant gradient checkpointing). All other
    figures exclude sampled steps.

    Args:
        warmup_steps: number of optimizer steps at the start that all figures exclude. Steps with memory tracking are
            always excluded.
        sample_every: sample every n-th step, starting with the second after warm-up; 0: never.
        peak_flops: peak operations per second of the device, to report the utilisation.
        measure_peak: measure the peak before the model is loaded, with large matrix products in the model's dtype.

    Attributes:
        clock: function that returns the time in seconds; the data loader uses the same one.
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
        if sample_every < 0 or sample_every == 1:  # with 1, no step would be left for the rates
            raise UserError(f"throughput.sample_every must be 0 or at least 2, got {sample_every}.")
        if peak_flops is not None and not 0 < peak_flops < math.inf:
            raise UserError(f"throughput.peak_flops must be above 0 and finite, got {peak_flops}.")
        if peak_flops is not None and measure_peak:
            raise UserError("throughput.measure_peak: leave out throughput.peak_flops, which it would replace.")
        self.warmup_steps, self.sample_every = warmup_steps, sample_every
        self.peak_flops, self.measure_peak = peak_flops, measure_peak
        self.steps: list[Step] = []
        self._open = Step()  # the current step
        self._device_clock = HostClock(self.clock)
        self._request: tuple[float, Any] | None = None  # when the next batch was requested: host's time, device's mark
        self._part_start, self._batch_start = 0.0, None
        self._counter: FlopCounter | None = None  # active during the forward pass of a sampled step
        self._steps_before = 0
        self._seconds_before = 0.0  # training time up to the checkpoint that was resumed
        self._tokens_before = 0  # training tokens up to there
        self._rates_before: dict[str, Any] | None = None  # figures of the steps up to there, if there were any
        self._added = 0  # number of steps in `_progress`
        self._progress = (0, 0.0)  # tokens and seconds of these steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.measure_peak:
            self.peak_flops = measured_peak(trainer.strategy.root_device, pl_module.compute_dtype, self.clock)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps_before = trainer.global_step
        self._device_clock = device_clock(pl_module.device, self.clock)
        self.on_train_epoch_start(trainer)  # Lightning does not call it in a run that is resumed within an epoch
        settle(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Time the requests of this epoch's loader; with `reload_dataloaders_every_n_epochs` it is a new one."""
        if hasattr(trainer.train_dataloader, "on_request"):  # litpeft's loader
            trainer.train_dataloader.on_request = self._mark_request

    def _mark_request(self) -> None:
        """Note when a batch is requested: the start of its step."""
        self._request = self.clock(), self._device_clock.mark()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._request is None:  # another loader: the wait for data is unknown
            self._mark_request()
        (self._part_start, self._batch_start), self._request = self._request, None
        step = self._open
        if step.parts is None and self._is_sampled(len(self.steps)):
            step.parts = dict.fromkeys(PARTS, 0.0)
        self._end_part("data_wait", pl_module)
        for name, count in pl_module.token_counts(batch).items():
            step.counts[name] = step.counts[name] + count  # a tensor on the device; read with the time
        if step.parts is not None and pl_module.gradient_checkpointing != "reentrant" and not pl_module.compile_blocks:
            self._counter = FlopCounter()
            self._counter.__enter__()

    def _is_sampled(self, step: int) -> bool:
        after = step - self.warmup_steps
        return self.sample_every > 0 and after >= 0 and after % self.sample_every == 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._stop_counting()
        self._end_part("forward", pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_part("backward", pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._stop_counting()  # a batch without a loss has no backward pass
        step, stepped = self._open, trainer.global_step > self._steps_before
        self._end_part("optimizer", pl_module)
        if step.parts is None:
            step.unread.append((self._batch_start, self._device_clock.mark()))
        if not stepped:
            return
        step.seconds = sum((step.parts or {}).values())
        if processes.world_size() > 1:
            self._sum_over_ranks(step, pl_module.device)
        step.slowed = any(getattr(callback, "tracker", None) is not None for callback in trainer.callbacks)
        self.steps.append(step)
        self._steps_before, self._open = trainer.global_step, Step()
        if self._is_sampled(len(self.steps)):  # its parts are timed by the host: the GPU starts it without a backlog
            settle(pl_module.device)
        if not step.slowed:
            self._log(trainer, pl_module, step)

    @staticmethod
    def _sum_over_ranks(step: Step, device: torch.device) -> None:
        """Sum counts and operations over all processes, in the queue of the device."""
        values = [torch.as_tensor(value, device=device) for value in (*step.counts.values(), step.flops or 0)]
        *counts, flops = processes.sum_over_ranks(torch.stack(values)).unbind()
        step.counts, step.flops = dict(zip(step.counts, counts, strict=True)), step.flops and int(flops)

    def _read(self) -> None:
        """Read the times and counts of all finished steps; waits for a GPU."""
        for step in reversed(self.steps):
            if not step.unread and step.parts is None:
                return  # so are all steps before it
            step.seconds += sum(self._device_clock.seconds(*span) for span in step.unread)
            step.counts = {name: int(count) for name, count in step.counts.items()}
            step.unread = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_counting()

    def _end_part(self, part: str, pl_module: LightningModule) -> None:
        """Add the time since the last part ended to `part`, if this step is sampled."""
        if self._open.parts is not None:
            settle(pl_module.device)
            start, self._part_start = self._part_start, self.clock()
            self._open.parts[part] += self._part_start - start

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._open.flops = (self._open.flops or 0) + self._counter.flops
            self._counter = None

    def _log(self, trainer: Trainer, pl_module: LightningModule, step: Step) -> None:
        """Log the step's rate when Lightning logs, and the figures of a sampled step."""
        if trainer._logger_connector.should_update_logs:
            self._read()
            unit = "tokens" if step.counts["tokens"] else "samples"  # images have no tokens
            pl_module.log(f"train_{unit}_per_second", step.counts[unit] / step.seconds, batch_size=1)
        if step.parts is None:
            return
        # directly: through Lightning they would wait for log_every_n_steps
        curves = {f"step_seconds/{part}": seconds for part, seconds in step.parts.items()}
        if step.flops is not None:
            curves["model_flops_per_second"] = rate = step.flops / step.seconds
            if self.peak_flops:
                curves["speed/flops_utilisation"] = rate / (self.peak_flops * processes.world_size())
        for logger in trainer.loggers:
            logger.log_metrics(curves, step=trainer.global_step - 1)  # Lightning counts from 0

    def _train_seconds(self) -> float:
        self._read()
        return self._seconds_before + sum(step.seconds for step in self.steps)

    def progress(self) -> tuple[int, float]:
        """Return the training tokens, without padding, and the training seconds so far; waits for a GPU."""
        self._read()
        tokens, seconds = self._progress
        for step in self.steps[self._added :]:
            tokens, seconds = tokens + step.counts["tokens"], seconds + step.seconds
        self._added, self._progress = len(self.steps), (tokens, seconds)
        return self._tokens_before + tokens, self._seconds_before + seconds

    def state_dict(self) -> dict[str, Any]:
        seconds, rates = self._train_seconds(), self._rates()
        return {"train_seconds": seconds, "train_tokens": self.progress()[0], "rates": rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["train_seconds"]
        # absent in checkpoints of older versions
        self._tokens_before = state_dict.get("train_tokens", 0)
        self._rates_before = state_dict.get("rates")

    def measured(self) -> dict[str, Any]:
        """Return record fields; null if no step is left after the exclusions."""
        return {"train_seconds": self._train_seconds() or None} | self._rates()

    def _rates(self) -> dict[str, Any]:
        self._read()
        taken = [step for step in self.steps[self.warmup_steps :] if not step.slowed]
        plain = [step for step in taken if step.parts is None]
        if not plain and self._rates_before:  # too few steps after a resume say nothing of those before
            return self._rates_before
        seconds = [step.seconds for step in plain]
        # a task that counts no tokens has an unknown rate, not 0
        rates = {name: _ratio(sum(step.counts[name] for step in plain), sum(seconds)) or None for name in COUNTS}
        return {
            "warmup_steps_left_out": self.warmup_steps,
            "step_seconds_p50": _percentile(seconds, 50),
            "step_seconds_p95": _percentile(seconds, 95),
            "train_samples_per_second": rates["samples"],
            "train_tokens_per_second": rates["tokens"],
            "padded_tokens_per_second": rates["padded"],
            "trained_tokens_per_second": rates["trained"],
        } | self._sampled([step for step in taken if step.parts is not None])

    def _sampled(self, steps: list[Step]) -> dict[str, Any]:
        """Return the record fields of the sampled steps."""
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
            "flops_utilisation": rate and self.peak_flops and rate / (self.peak_flops * processes.world_size()),
        }


def _percentile(values: list[float], q: int) -> float | None:
    return float(np.percentile(values, q)) if values else None


def _ratio(amount: float, by: float) -> float | None:
    return amount / by if by else None

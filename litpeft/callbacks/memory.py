"""Peak memory by phase, and in a few steps the split of the peak by purpose."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from litpeft.callbacks.across_processes import most
from litpeft.data.sampler import LengthGroupedBatches
from litpeft.errors import UserError
from litpeft.profiling.memory import MemoryTracker, optimizer_tensors
from litpeft.profiling.memory.bar_chart import split_image
from litpeft.profiling.memory.host import peak_rss_bytes, reset_peak_rss, rss_bytes
from litpeft.training import processes
from litpeft.training.outlets import send
from litpeft.training.sharding import reshard

BUSY_BYTES = 2**30  # GPU memory in use before a run that triggers a warning; a CUDA context takes about half
CUDA = {  # record field -> key of torch.cuda.memory_stats
    "peak_allocated_bytes": "allocated_bytes.all.peak",
    "peak_reserved_bytes": "reserved_bytes.all.peak",
    "peak_active_bytes": "active_bytes.all.peak",
    "allocator_retries": "num_alloc_retries",
}


class MemoryRecorder(Callback):
    """Record peak memory by phase: load, first_step, train, validate, save, benchmark.

    Between phases CUDA is synchronised and the peaks of CUDA and of the host are read and reset. In a few training
    steps, the first validation batch and the first checkpoint, the storage of every tensor is tracked, so that the peak
    can be split by purpose. Tracking takes time, so throughput figures exclude these steps.

    Args:
        track_steps: optimizer steps to track, counted from 0 at the start or resume. Default: the first step (at
            the start of an epoch it has the longest batch), the step with the longest batch after it, when the
            optimizer state exists, and the first step of the second epoch. Compiled blocks cannot be tracked.
    """

    def __init__(self, track_steps: Sequence[int] | None = None) -> None:
        if any(step < 0 for step in track_steps or ()):
            raise UserError(f"memory.track_steps must not be negative, got {list(track_steps)}.")
        self.track_steps = None if track_steps is None else list(track_steps)
        self.tracked_steps: list[int] = []
        self.phases: dict[str, dict[str, Any]] = {}
        self.tracker: MemoryTracker | None = None  # active in tracked steps
        self._buffers: list[weakref.ref] = []  # of the collectives, as the last tracked step has found them
        self._phase: str | None = None
        self._interrupted: str | None = None  # the phase to return to after a benchmark
        self._others: int | None = None  # GPU bytes outside of torch's allocator, before the run
        self._steps_before = 0
        self._retries = 0
        self._host_peak: int | None = None
        self._host_known = True  # whether the kernel's peak counter was reset at the start of the phase

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._check_device_is_free(trainer.strategy.root_device)
            self._enter("load", pl_module.device)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("validate", pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps_before = trainer.global_step  # not 0 after a resume
        self._enter("first_step", pl_module.device)
        if self.track_steps is None:
            self.track_steps = _longest_steps(trainer, pl_module)
        if self.track_steps:  # loading cannot be tracked: transformers loads weights in other threads
            reshard(pl_module.backbone)  # after the first validation FSDP2 holds whole parameters in place of shards
            with MemoryTracker(pl_module.device) as tracker:
                tracker.follow(pl_module.backbone, pl_module.adapter.roles(pl_module.backbone))
            self.phases["load"]["tensor_bytes"] = tracker.peak().split

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._saved(trainer)
        step = trainer.global_step - self._steps_before
        phase = "train" if step else "first_step"
        if self._phase != phase:  # after a checkpoint, or a validation between the batches of the first step
            self._enter(phase, pl_module.device)
        if step in self.track_steps and self._track(trainer, pl_module) and step not in self.tracked_steps:
            self.tracked_steps.append(step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        done = trainer.global_step - self._steps_before
        if self.tracker is not None and done > self.tracked_steps[-1]:  # a step may have several batches
            self._tracked(trainer)
        if self._phase == "first_step" and done:
            self._enter("train", pl_module.device)
        if trainer._logger_connector.should_update_logs:
            self._log(pl_module)

    def _log(self, pl_module: LightningModule) -> None:
        """Log the memory in use now: by the process, and on a GPU by its tensors, with their peak in this phase."""
        found = {"rss_bytes": rss_bytes()}
        if pl_module.device.type == "cuda":  # counters of the host: no wait for the GPU
            found["allocated_bytes"] = torch.cuda.memory_allocated(pl_module.device)
            found["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(pl_module.device)
        for name, count in found.items():
            if count is not None:
                pl_module.log(f"memory/{name}", float(count), batch_size=1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.tracker is not None:  # of a checkpoint, or of a step of which batches follow the validation
            self._tracked(trainer)
        if not trainer.sanity_checking:
            self._enter("validate", pl_module.device)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._track_once(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.tracker is not None and self._phase == "validate":
            self._tracked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._enter("train", pl_module.device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._phase is not None:
            self._enter("save", pl_module.device)
            self._track_once(trainer, pl_module)

    def on_benchmark_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved(trainer)
        self._interrupted = self._phase
        self._enter("benchmark", pl_module.device)

    def on_benchmark_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._enter(self._interrupted, pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved(trainer)
        self._enter(None, pl_module.device)
        if _most(self.phases, "peak_tensor_bytes"):
            send(trainer.loggers, "image", "memory", split_image(self.phases), trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.tracker is not None:  # keep the split at an out-of-memory error
            self._tracked(trainer)
        self._enter(None, pl_module.device)

    def _check_device_is_free(self, device: torch.device) -> None:
        """Record the GPU memory that is already in use, and warn if it is large."""
        if device.type != "cuda":
            return
        free, total = torch.cuda.mem_get_info(device)
        self._others = total - free - torch.cuda.memory_reserved(device)
        if self._others > BUSY_BYTES:
            print(
                f"litpeft: warning: {self._others / 2**30:.1f} GiB of {device} are in use before the run starts; "
                "other work on the GPU may distort times and allocator_retries.",
                file=sys.stderr,
            )

    def _track(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Start tracking and return True; return False if tracking is active already or not possible."""
        if self.tracker is not None or pl_module.compile_blocks:
            return False
        reshard(pl_module.backbone)
        self.tracker = MemoryTracker(pl_module.device)
        self.tracker.follow(pl_module.backbone, pl_module.adapter.roles(pl_module.backbone))
        self.tracker.label(_states(trainer), "optimizer_state")
        self.tracker.adopt(self._buffers, "communication")
        self.tracker.__enter__()
        return True

    def _track_once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start tracking if this phase has not been tracked yet."""
        if self.track_steps and "peak_tensor_bytes" not in self.phases.get(self._phase, {}):
            self._track(trainer, pl_module)

    def _saved(self, trainer: Trainer) -> None:
        """End the tracking of a checkpoint, once the checkpoint is written."""
        if self.tracker is not None and self._phase == "save":
            self._tracked(trainer)

    def _tracked(self, trainer: Trainer) -> None:
        tracker, self.tracker = self.tracker, None
        tracker.__exit__(None, None, None)
        tracker.label(_states(trainer), "optimizer_state")  # the first step created it
        self._buffers = tracker.alive("communication")
        peak = tracker.peak()
        kept = self.phases.setdefault(self._phase, {})
        if peak.bytes > kept.get("peak_tensor_bytes", 0):
            kept |= {"peak_tensor_bytes": peak.bytes, "tensor_bytes": peak.split}
        if tracker.sent:
            kept["sent_bytes"] = tracker.sent_between(0, tracker.operations)

    def _enter(self, phase: str | None, device: torch.device) -> None:
        host = peak_rss_bytes()
        self._host_peak = most((self._host_peak, host))
        found: dict[str, int | None] = {"peak_rss_bytes": host if self._host_known else None}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            stats = torch.cuda.memory_stats(device)
            found |= {name: stats.get(key, 0) for name, key in CUDA.items()}
            found["allocator_retries"] -= self._retries  # counted from the start of the process
            self._retries += found["allocator_retries"]
            torch.cuda.reset_peak_memory_stats(device)
        if self._phase is not None:
            kept = self.phases.setdefault(self._phase, {})
            for name, value in found.items():
                both = [v for v in (kept.get(name), value) if v is not None]
                kept[name] = (sum if name == "allocator_retries" else max)(both) if both else None
        self._host_known = reset_peak_rss()
        self._phase = phase

    def state_dict(self) -> dict[str, Any]:
        """Return the peaks so far, so that a resumed run keeps them."""
        return processes.state_of_all_ranks({"phases": deepcopy(self.phases), "host_peak": self._host_peak})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the peaks of the run before the resume."""
        state_dict = processes.state_of_this_rank(state_dict)
        self.phases = state_dict["phases"]
        self._host_peak = most((self._host_peak, state_dict["host_peak"]))

    def measured(self) -> dict[str, Any]:
        """Return record fields."""
        peaks = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_tensor_bytes")
        return {name: _most(self.phases, name) for name in peaks} | {
            "peak_rss_bytes": most((self._host_peak, peak_rss_bytes())),
            "others_bytes": self._others,
            "tracked_steps": self.tracked_steps,
            "memory_phases": self.phases or None,
        }


def _most(phases: dict[str, dict[str, Any]], name: str) -> int | None:
    """Return the largest value of a field over all phases except benchmarks; None if unknown."""
    training = (phase for kind, phase in phases.items() if kind != "benchmark")
    return max((phase[name] for phase in training if phase.get(name) is not None), default=None)


def _longest_steps(trainer: Trainer, pl_module: LightningModule) -> list[int]:
    """Return the first step, the step with the longest batch after it, and the first step of the next epoch.

    Each epoch starts with its longest batch. The first one meets no optimizer state, which the first step makes, so the
    peak of a run of several epochs is in the next one.
    """
    sampler, accumulated = trainer.train_dataloader.sampler, trainer.accumulate_grad_batches
    if not isinstance(sampler, LengthGroupedBatches):  # a data set with another sampler: lengths unknown
        return [0, 1]
    total = pl_module.total_steps()
    start = getattr(trainer.train_dataloader, "served", 0)  # with workers the sampler is ahead of the run
    left = trainer.num_training_batches - start  # batches of this epoch
    steps = math.inf if total is None else total - trainer.global_step
    chosen = [0]
    if (longest := sampler.longest_later(left, steps, accumulated, start)) is not None:
        chosen.append(longest // accumulated)
    if (next_epoch := math.ceil(left / accumulated)) < steps:
        chosen.append(next_epoch)
    return chosen


def _states(trainer: Trainer) -> list[torch.Tensor]:
    return [tensor for optimizer in trainer.optimizers for tensor in optimizer_tensors(optimizer)]

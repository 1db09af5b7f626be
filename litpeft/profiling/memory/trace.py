"""Estimate the memory of a run by executing its training steps on meta tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch import distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from litpeft.profiling.memory.allocator import replay
from litpeft.profiling.memory.cuda import cuda_choices, prepare_bitsandbytes, workspaces
from litpeft.profiling.memory.devices import ONE, Devices, buckets, first_of, shard_model
from litpeft.profiling.memory.meta_tensors import MetaValues, materialise, meta_execution
from litpeft.profiling.memory.streams import Streams
from litpeft.profiling.memory.tracker import MemoryTracker, Peak, optimizer_tensors
from litpeft.tasks import FineTuner

Batch = Mapping[str, Tensor]


@dataclass
class PhasePeak:
    """Peak memory in one phase of a run.

    Attributes:
        tensors: peak bytes of tensors, by category.
        allocated_bytes: peak bytes allocated by the CUDA allocator; None on a CPU.
        reserved_bytes: bytes reserved by the CUDA allocator at the end of the phase; None on a CPU.
        sent_bytes: bytes that the device sends to others in the phase, that is per optimizer step or validation batch.
    """

    tensors: Peak
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    sent_bytes: int = 0


@dataclass
class Trace:
    """The result of an estimate.

    Attributes:
        counts: parameters and bytes, as in `Adapter.describe`.
        phases: peaks of `first_step` (starts without gradients and optimizer state), `train` (a later step) and
            `validate`.
        positions: maximum sequence length of the model in tokens; None if its config has none.
        has_experts: whether experts of a mixture are adapted or quantised; each is assumed to get the same tokens.
    """

    counts: dict[str, Any]
    phases: dict[str, PhasePeak]
    positions: int | None = None
    has_experts: bool = False


def trace(
    task: FineTuner,
    data: LightningDataModule,
    batch: Batch,
    held_out: Batch | None = None,
    later: Batch | None = None,
    device: str = "cpu",
    accumulate: int = 1,
    clip: float | None = None,
    first_step: bool = True,
    capability: int = 8,
    devices: Devices = ONE,
) -> Trace:
    """Trace two optimizer steps and one validation batch of a model without weights.

    Args:
        task: the task, not built yet; left unchanged.
        data: data module with what the task reads when it is built: `max_length`, labels, tokenizer.
        batch: training batch of the first step; the longest batch of the run.
        held_out: validation batch.
        later: training batch of the second step; None: that of the first.
        device: `cpu` or `cuda`; the device need not exist on this machine.
        accumulate: batches per optimizer step.
        clip: norm for gradient clipping.
        first_step: also trace the first step; with the same batch, later steps need more memory.
        capability: major compute capability of the GPU (8: Ampere and Ada, 9: Hopper).
        devices: all devices of the run; the batch and the peaks are those of one.
    """
    task = copy.deepcopy(task)
    place = torch.device("cpu" if device == "cpu" else "meta")
    trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate
    )  # the only trainer attribute that a training step reads
    task.trainer, task.log, task.log_train_loss = trainer, lambda *_, **__: None, lambda loss, weight: weight
    values = MetaValues()
    with meta_execution(values):
        task.build(data, torch.device(device), weights=False)
    batch, held_out, later = (
        each and task.on_before_batch_transfer(dict(each), 0) for each in (batch, held_out, later or batch)
    )
    batches = {"first_step": batch, "train": later} if first_step else {"train": later}
    facts = {phase: _batch_facts(task, each) for phase, each in (batches | {"validate": held_out or batch}).items()}
    fake = FakeTensorMode(allow_non_fake_inputs=True) if device == "cpu" else None
    if fake is not None:
        materialise(task.backbone, fake)
    counts, streams = task.adapter.describe(task.backbone), Streams()
    with first_of(devices, streams) as mesh:
        if devices.strategy == "fsdp2":
            task.adapter.check_sharding()
            with meta_execution(values, fake):
                shard_model(task.backbone, mesh, place)
        optimizer = task.new_optimizer()
        prepare_bitsandbytes(optimizer)
        tracker = MemoryTracker(place, streams)
        starts: dict[str, int] = {}  # phase -> number of its first operation
        with cuda_choices() if device == "cuda" else nullcontext(), meta_execution(values, fake):
            tracker.follow(task.backbone, task.adapter.roles(task.backbone))
            with tracker:
                averaged = buckets(task.backbone) if devices.strategy == "ddp" else []
                tracker.label(averaged, "communication")
                if not first_step:
                    for parameter in (p for p in task.backbone.parameters() if p.requires_grad):
                        parameter.grad = torch.empty_like(parameter)
                    optimizer.step()
                    optimizer.zero_grad()
                    tracker.label(optimizer_tensors(optimizer), "optimizer_state")
                for phase, each in batches.items():
                    inputs = {name: _without_data(tensor, fake) for name, tensor in each.items()}
                    values.answer, values.selected = facts[phase]
                    starts[phase] = tracker.operations + 1
                    _step(task, optimizer, inputs, min(accumulate, 2), clip, averaged)
                    tracker.label(optimizer_tensors(optimizer), "optimizer_state")
                del inputs
                if held_out is not None:
                    starts["validate"] = tracker.operations + 1
                    values.answer, values.selected = facts["validate"]
                    task.eval()
                    with torch.no_grad():
                        task.loss({name: _without_data(tensor, fake) for name, tensor in held_out.items()})
    firsts = list(starts.values())
    windows = dict(zip(starts, zip(firsts, [*firsts[1:], tracker.operations + 1], strict=True), strict=True))
    phases = {phase: PhasePeak(tracker.peak(first, end - 1)) for phase, (first, end) in windows.items()}
    for phase, (first, end) in windows.items():  # FSDP2 gathers and reduces in every batch of a step, DDP in the last
        again = accumulate / min(accumulate, 2) if devices.strategy == "fsdp2" and phase != "validate" else 1
        phases[phase].sent_bytes = round(again * tracker.sent_between(first, end - 1))
    if device == "cuda":
        levels = replay(tracker.events(), workspaces(capability), tracker.streams())
        for phase, (first, end) in windows.items():
            phases[phase].allocated_bytes = int(levels.allocated[first:end].max())
            phases[phase].reserved_bytes = int(levels.reserved[first:end].max())
    positions = getattr(task.backbone.config, "max_position_embeddings", None)
    has_experts = any(hasattr(module, "by_expert") for module in task.backbone.modules())
    return Trace(counts, phases, positions, has_experts)


def _step(
    task: FineTuner,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    batches: int,
    clip: float | None,
    averaged: Sequence[Tensor],
) -> None:
    """Make an optimizer step in the order of fit, and free the gradients."""
    for number in range(batches):
        loss = task.training_step(batch, number) / task.trainer.accumulate_grad_batches
        loss.backward()
    for bucket in averaged:  # DDP averages after the last batch only
        dist.all_reduce(bucket)
    task.scale_gradients()
    task.adapter.before_step(task.backbone)
    if clip:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()
    task.adapter.after_step(task.backbone, 1, None)
    optimizer.zero_grad()


def _batch_facts(task: FineTuner, batch: Batch) -> tuple[bool, int]:
    """Return whether a batch has neither padding nor packed rows, and how many positions carry a label."""
    fed = task.inputs(batch) if hasattr(task, "inputs") else batch
    plain = "position_ids" not in fed and ("attention_mask" not in fed or bool(fed["attention_mask"].all()))
    labels = batch["labels"]
    return plain, len(task.at_labels(labels[..., None], labels)[1]) if hasattr(task, "at_labels") else 1


def _without_data(tensor: Tensor, fake: FakeTensorMode | None) -> Tensor:
    return tensor.to("meta") if fake is None else fake.from_tensor(tensor)

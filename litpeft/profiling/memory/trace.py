"""Estimate the memory of a run by executing its training steps on meta tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from litpeft.profiling.memory.allocator import replay
from litpeft.profiling.memory.cuda import cuda_choices, prepare_bitsandbytes, workspaces
from litpeft.profiling.memory.meta_tensors import MetaValues, materialise, meta_execution
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
    """

    tensors: Peak
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


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
    device: str = "cpu",
    accumulate: int = 1,
    clip: float | None = None,
    first_step: bool = True,
    capability: int = 8,
) -> Trace:
    """Trace two optimizer steps and one validation batch of a model without weights.

    Args:
        task: the task, not built yet; left unchanged.
        data: data module with what the task reads when it is built: `max_length`, labels, tokenizer.
        batch: training batch; the longest batch of the run determines the peak.
        held_out: validation batch.
        device: `cpu` or `cuda`; the device need not exist on this machine.
        accumulate: batches per optimizer step.
        clip: norm for gradient clipping.
        first_step: also trace the first step, which needs less memory than later steps.
        capability: major compute capability of the GPU (8: Ampere and Ada, 9: Hopper).
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
    batch, held_out = (each and task.on_before_batch_transfer(dict(each), 0) for each in (batch, held_out))
    facts = _batch_facts(task, batch)
    held_out_facts = facts if held_out is None else _batch_facts(task, held_out)
    fake = FakeTensorMode(allow_non_fake_inputs=True) if device == "cpu" else None
    if fake is not None:
        materialise(task.backbone, fake)
    optimizer = task.new_optimizer()
    prepare_bitsandbytes(optimizer)
    tracker = MemoryTracker(place)
    starts: dict[str, int] = {}  # phase -> number of its first operation
    with cuda_choices() if device == "cuda" else nullcontext(), meta_execution(values, fake):
        inputs = {name: _without_data(tensor, fake) for name, tensor in batch.items()}
        tracker.follow(task.backbone, task.adapter.roles(task.backbone))
        with tracker:
            values.answer, values.selected = facts
            if not first_step:
                for parameter in (p for p in task.backbone.parameters() if p.requires_grad):
                    parameter.grad = torch.empty_like(parameter)
                optimizer.step()
                optimizer.zero_grad()
                tracker.label(optimizer_tensors(optimizer), "optimizer_state")
            for phase in ("first_step", "train") if first_step else ("train",):
                starts[phase] = tracker.operations + 1
                _step(task, optimizer, inputs, min(accumulate, 2), clip)
                tracker.label(optimizer_tensors(optimizer), "optimizer_state")
            del inputs
            if held_out is not None:
                starts["validate"] = tracker.operations + 1
                values.answer, values.selected = held_out_facts
                task.eval()
                with torch.no_grad():
                    task.loss({name: _without_data(tensor, fake) for name, tensor in held_out.items()})
    firsts = list(starts.values())
    windows = dict(zip(starts, zip(firsts, [*firsts[1:], tracker.operations + 1], strict=True), strict=True))
    phases = {phase: PhasePeak(tracker.peak(first, end - 1)) for phase, (first, end) in windows.items()}
    if device == "cuda":
        levels = replay(tracker.events(), workspaces(capability))
        for phase, (first, end) in windows.items():
            phases[phase].allocated_bytes = int(levels.allocated[first:end].max())
            phases[phase].reserved_bytes = int(levels.reserved[first:end].max())
    positions = getattr(task.backbone.config, "max_position_embeddings", None)
    has_experts = any(hasattr(module, "by_expert") for module in task.backbone.modules())
    return Trace(task.adapter.describe(task.backbone), phases, positions, has_experts)


def _step(task: FineTuner, optimizer: torch.optim.Optimizer, batch: Batch, batches: int, clip: float | None) -> None:
    """Make an optimizer step in the order of fit, and free the gradients."""
    for number in range(batches):
        loss = task.training_step(batch, number) / task.trainer.accumulate_grad_batches
        loss.backward()
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

"""What a run will hold at once, before it runs: its own steps, made with tensors that have shapes and no numbers."""

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

from litpeft.optim import build_optimizer
from litpeft.profiling.memory.allocator import replay
from litpeft.profiling.memory.cuda import cuda_choices, leave_to_driver, workspaces
from litpeft.profiling.memory.meta_tensors import Dataless, materialise, pretending
from litpeft.profiling.memory.tracker import MemoryTracker, Peak, optimizer_tensors
from litpeft.tasks import FineTuner

Batch = Mapping[str, Tensor]


@dataclass
class PhasePeak:
    """The most that is held within a phase of a run.

    Attributes:
        tensors: bytes of tensors, by category.
        allocated_bytes: what CUDA's allocator hands out for them; None on a CPU.
        reserved_bytes: what it has taken from the device for that by then; likewise.
    """

    tensors: Peak
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass
class Trace:
    """What was found.

    Attributes:
        counts: parameters and bytes, as `Adapter.describe` gives them.
        phases: `first_step` (no gradients before it, no optimizer state before its end), `train` (a later one),
            `validate`.
        positions: tokens that the model has positions for; None where it says nothing of it.
    """

    counts: dict[str, Any]
    phases: dict[str, PhasePeak]
    positions: int | None = None


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
    """Follow the tensors of two optimizer steps, and of a batch of validation, of a model without weights.

    Args:
        task: not built yet; it is left as it was.
        data: what the task asks of its data when it is built: `max_length`, labels, tokenizer.
        batch: what is trained on; the longest of the run has the peak.
        held_out: what is validated on.
        device: `cpu`, or `cuda`, whose choices are then made for it; neither needs to be there.
        accumulate: batches an optimizer step.
        clip: norm that gradients are clipped to.
        first_step: whether that is followed too; it needs less than a later one, and as long to find out.
        capability: major compute capability of the GPU: 8 is Ampere and Ada, 9 Hopper.
    """
    task = copy.deepcopy(task)
    place = torch.device("cpu" if device == "cpu" else "meta")
    trainer = SimpleNamespace(accumulate_grad_batches=accumulate)  # all that a training step asks for
    task.trainer, task.log, task.note_loss = trainer, lambda *_, **__: None, lambda loss, weight: weight
    dataless = Dataless()
    with pretending(dataless):
        task.build(data, torch.device(device), weights=False)
    facts = _known(task, batch)
    held_out_facts = facts if held_out is None else _known(task, held_out)
    fake = FakeTensorMode(allow_non_fake_inputs=True) if device == "cpu" else None
    if fake is not None:
        materialise(task.backbone, fake)
    optimizer = build_optimizer(task.optimizer, task.adapter.param_groups(task.backbone), task.adapter.default_lr)
    leave_to_driver(optimizer)
    tracker = MemoryTracker(place)
    begun: dict[str, int] = {}
    with cuda_choices() if device == "cuda" else nullcontext(), pretending(dataless, fake):
        given = {name: _pretended(tensor, fake) for name, tensor in batch.items()}
        tracker.follow(task.backbone, task.adapter.roles(task.backbone))
        with tracker:
            dataless.answer, dataless.selected = facts
            if not first_step:
                for parameter in (p for p in task.backbone.parameters() if p.requires_grad):
                    parameter.grad = torch.empty_like(parameter)
                optimizer.step()
                tracker.label(optimizer_tensors(optimizer), "optimizer_state")
            for phase in ("first_step", "train") if first_step else ("train",):
                begun[phase] = tracker.operations + 1
                _step(task, optimizer, given, min(accumulate, 2), clip)
                tracker.label(optimizer_tensors(optimizer), "optimizer_state")
            del given
            if held_out is not None:
                begun["validate"] = tracker.operations + 1
                dataless.answer, dataless.selected = held_out_facts
                task.eval().zero_grad()  # as Lightning does
                with torch.no_grad():
                    task.loss({name: _pretended(tensor, fake) for name, tensor in held_out.items()})
    firsts = list(begun.values())
    windows = dict(zip(begun, zip(firsts, [*firsts[1:], tracker.operations + 1], strict=True), strict=True))
    phases = {phase: PhasePeak(tracker.peak(first, end - 1)) for phase, (first, end) in windows.items()}
    if device == "cuda":
        levels = replay(tracker.events(), workspaces(capability))
        for phase, (first, end) in windows.items():
            phases[phase].allocated_bytes = int(levels.allocated[first:end].max())
            phases[phase].reserved_bytes = int(levels.reserved[first:end].max())
    positions = getattr(task.backbone.config, "max_position_embeddings", None)
    return Trace(task.adapter.describe(task.backbone), phases, positions)


def _step(task: FineTuner, optimizer: torch.optim.Optimizer, batch: Batch, batches: int, clip: float | None) -> None:
    """An optimizer step in Lightning's order: gradients of the last one are held until the new loss is known."""
    for number in range(batches):
        loss = task.training_step(batch, number) / task.trainer.accumulate_grad_batches
        if number == 0:
            optimizer.zero_grad()
        loss.backward()
    task.scale_gradients()
    if clip:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


def _known(task: FineTuner, batch: Batch) -> tuple[bool, int]:
    """Whether no row of a batch has padding or a second example, and how many of its positions carry a label."""
    fed = task.inputs(batch) if hasattr(task, "inputs") else batch
    plain = "position_ids" not in fed and ("attention_mask" not in fed or bool(fed["attention_mask"].all()))
    labels = batch["labels"]
    return plain, len(task.at_labels(labels[..., None], labels)[1]) if hasattr(task, "at_labels") else 1


def _pretended(tensor: Tensor, fake: FakeTensorMode | None) -> Tensor:
    return tensor.to("meta") if fake is None else fake.from_tensor(tensor)

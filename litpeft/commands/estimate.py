"""`litpeft estimate`: what a run will need, from the configuration that `fit` takes; no weights, no GPU."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from math import ceil
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from litpeft.adapters import Adapter
from litpeft.cli.console import quieten
from litpeft.cli.planned_run import UnstartedCLI
from litpeft.errors import UserError
from litpeft.profiling.memory import CATEGORIES
from litpeft.profiling.memory.cuda import context_bytes, workspaces
from litpeft.profiling.memory.trace import Trace, trace
from litpeft.tasks import FineTuner

MIB, GIB = 2**20, 2**30
USABLE = 0.985  # of a card's nominal memory: what torch finds on a 4090, an A100 or an H100
UNIT = 16  # tokens: the length of rows is looked for in multiples of it
TOKENS_MOST, ROWS_MOST = 1 << 17, 1 << 14  # longer rows and larger batches are not looked for


class EstimateCLI(UnstartedCLI):
    """What `estimate` takes beside the options of `fit`."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--device",
            type=str | int | None,
            help="cpu, or a GPU by a name that says its memory ('A100 40GB') or by its bytes; by default what is here",
        )
        parser.add_argument(
            "--tokens", type=int | None, help="tokens a row, in place of the data's longest batch; no data is read then"
        )


class Plan:
    """What is to be estimated.

    Attributes:
        task: as configured.
        rows: of a batch.
        tokens: of its longest row.
        limit: bytes of the device that a run may have, its context aside; None on a CPU.
    """

    def __init__(self, words: list[str]) -> None:
        cli = EstimateCLI("estimate", words)
        options = cli.config["estimate"]
        self.task: FineTuner = cli.model
        self.device, self.card, usable = _device(options.device)
        self.capability = _capability(options.device)
        self.context = context_bytes(self.capability)
        self.limit = None if usable is None else usable - self.context
        self.accumulate, self.clip = options.trainer.accumulate_grad_batches, options.trainer.gradient_clip_val
        self.adapters = cli.adapters()
        if self.task.compile_blocks:
            raise UserError("model.compile_blocks: what compiled blocks will hold cannot be estimated; leave it out.")
        self.classes_assumed = False
        self._read(cli.datamodule, options.tokens)

    def _read(self, data: Any, tokens: int | None) -> None:
        """The longest batch of the run, which it begins with; or one that is made up."""
        self.rows, self.tokens = data.batch_size, tokens
        if tokens is not None:
            if tokens < 1:
                raise UserError(f"--tokens must be at least 1, got {tokens}.")
            names = getattr(data, "_label_names", None)  # of a data set with classes; the rest of it is not asked
            self.classes_assumed = names is None and hasattr(data, "_label_names")
            names = names or ["0", "1"]
            self.data: Any = SimpleNamespace(
                max_length=tokens, label_names=names, tokenizer=SimpleNamespace(pad_token_id=0)
            )
            self.batch = self.held_out = self.task.example(self.rows, tokens)
            self.source = "made up"
            return
        place = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            lightning_module=self.task,
            global_rank=0,
            world_size=1,
            strategy=place,
            state=SimpleNamespace(fn=TrainerFn.FITTING),
        )
        try:
            data.prepare_data()
            data.setup("fit")
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; or give --tokens to estimate without the data.") from error
        self.data = data
        self.batch, self.held_out = (next(iter(loader)) for loader in (data.train_dataloader(), data.val_dataloader()))
        self.rows, self.tokens = self.batch["input_ids"].shape
        self.source = "the longest batch of the data, which a run begins with"

    def trace(self, adapter: Adapter, batch: Any = None, first_step: bool = True) -> Trace:
        """The steps with this adapter; with another batch, without validation."""
        task = copy.copy(self.task)
        task.adapter = adapter
        batches = (self.batch, self.held_out) if batch is None else (batch, None)
        return trace(task, self.data, *batches, self.device, self.accumulate, self.clip, first_step, self.capability)

    def needed(self, found: Trace) -> int:
        """Bytes at the peak of a run: of tensors on a CPU, as reserved by the allocator on a GPU."""
        return max(phase.reserved_bytes or phase.tensors.bytes for phase in found.phases.values())

    def largest_batch(self, adapter: Adapter, found: Trace) -> int:
        """The most rows of these tokens that fit."""
        points = {0: self._always(found), self.rows: self.needed(found)}
        return largest(lambda rows: self._more(adapter, rows, self.tokens), self.limit, points, ROWS_MOST)

    def longest_rows(self, adapter: Adapter, found: Trace) -> int:
        """The most tokens a row that fit in a batch of this size, in multiples of `UNIT`."""
        points = {0: self._always(found), self.tokens / UNIT: self.needed(found)}
        most = (found.positions or TOKENS_MOST) // UNIT
        return UNIT * largest(lambda units: self._more(adapter, self.rows, units * UNIT), self.limit, points, most)

    def _always(self, found: Trace) -> int:
        """What a step has to hold however small its batch."""
        held = found.phases["train"].tensors.split
        return sum(size for name, size in held.items() if name not in ("activations", "temporaries", "other"))

    def _more(self, adapter: Adapter, rows: int, tokens: int) -> int:
        """Bytes at the peak with another batch."""
        kept, self.data.max_length = self.data.max_length, tokens
        try:
            return self.needed(self.trace(adapter, self.task.example(rows, tokens), first_step=False))
        finally:
            self.data.max_length = kept


def largest(bytes_at: Callable[[int], int], limit: int, points: dict[float, int], most: int) -> int:
    """The largest number from 0 to `most` of which the bytes are within the limit.

    They grow nearly in proportion: the line through the two points that are nearest to the limit tells where to look.
    An allocator's blocks make steps of the line; where a guess has cut off less than half, the next one is the middle.
    Until one is found that is too large, guesses grow step by step, as large ones take long to look at.

    Args:
        bytes_at: grows with its argument.
        limit: bytes.
        points: two numbers at least, and their bytes; they need not be whole.
        most: the largest that is looked at.
    """
    points = dict(points)
    low = int(max((x for x, y in points.items() if y <= limit), default=-1))
    high = min([most + 1, *(ceil(x) for x, y in points.items() if y > limit)])
    halve, step = False, 1
    while (width := high - low) > 1:
        (x0, y0), (x1, y1) = sorted(points.items(), key=lambda point: abs(point[1] - limit))[:2]
        guess = int(x0 + (limit - y0) * (x1 - x0) / ((y1 - y0) or 1))
        if all(y <= limit for y in points.values()):
            guess, step = max(low + step, min(guess, 4 * low)), 2 * step
        elif halve:
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        points[guess] = bytes_at(guess)
        low, high = (guess, high) if points[guess] <= limit else (low, guess)
        halve = not halve and high - low > width / 2
    return max(0, min(low, most))


def main(words: list[str]) -> int:
    quieten()
    begun = time.perf_counter()
    plan = Plan(words)
    console = Console()
    found = [plan.trace(adapter) for adapter in plan.adapters]
    shape = f"batches of {plan.rows} x {plan.tokens} tokens ({plan.source})"
    print(f"{type(plan.task).__name__}, {plan.task.model_name}, {plan.task.dtype_name}, {shape}")
    if len(found) == 1:
        console.print(_split(plan, found[0]))
    console.print(_summary(plan, found))
    for line in _assumed(plan):
        print(f"- {line}")
    print(f"estimated in {time.perf_counter() - begun:.1f} s")
    return 0


def _split(plan: Plan, found: Trace) -> Table:
    """What the bytes are for, by phase."""
    table = Table(title=f"peak of {plan.adapters[0].name}, MiB", title_justify="left")
    table.add_column("")
    for phase in found.phases:
        table.add_column(phase.replace("_", " "), justify="right")
    peaks = list(found.phases.values())
    rows = {name.replace("_", " "): [p.tensors.split[name] for p in peaks] for name in CATEGORIES}
    rows |= {"all tensors": [p.tensors.bytes for p in peaks]}
    if plan.device == "cuda":
        rows |= {"allocated": [p.allocated_bytes for p in peaks], "reserved by then": [p.reserved_bytes for p in peaks]}
    for name, sizes in rows.items():
        if any(sizes):
            table.add_row(name, *(f"{size / MIB:,.1f}" for size in sizes))
    return table


def _summary(plan: Plan, found: list[Trace]) -> Table:
    """One row an adapter: what it trains, what it needs, and whether that fits."""
    table = Table()
    columns = ["adapter", "trained", "of parameters", "checkpoint MiB", "model MiB", "peak of tensors MiB"]
    if plan.limit is not None:
        columns += ["reserved MiB", "with context MiB", f"of {plan.card / GIB:,.1f} GiB"]
        columns += [f"largest batch at {plan.tokens} tokens"]
        columns += [f"longest rows at {plan.rows}"] if len(found) == 1 else []
    for column in columns:
        table.add_column(column, justify="left" if column == "adapter" else "right")
    for adapter, each in zip(plan.adapters, found, strict=True):
        counts = each.counts
        peak = max(phase.tensors.bytes for phase in each.phases.values())
        cells = [adapter.name, f"{counts['trainable_params']:,}", f"{counts['total_params']:,}"]
        cells += [f"{size / MIB:,.1f}" for size in (counts["adapter_bytes"], counts["model_bytes"], peak)]
        if plan.limit is not None:
            needed = plan.needed(each)
            cells += [f"{size / MIB:,.1f}" for size in (needed, needed + plan.context)]
            cells += ["fits" if needed <= plan.limit else "does not fit"]
            cells += [f"{plan.largest_batch(adapter, each):,}"]
            cells += [f"{plan.longest_rows(adapter, each):,}"] if len(found) == 1 else []
        table.add_row(*cells)
    return table


def _assumed(plan: Plan) -> list[str]:
    """What the figures rest on."""
    told = ["followed: two optimizer steps and a batch of validation of fit's own code, on tensors without numbers"]
    told += ["assumed: two classes, as --data.label_names names none"] if plan.classes_assumed else []
    if plan.device == "cpu":
        return [*told, "not counted: Python and the libraries, and what kernels take within themselves"]
    context, cublas = plan.context // MIB, sum(workspaces(plan.capability)) / MIB
    told += [
        "4-bit weights are dequantised whole for each product, one at a time; logits are made a chunk at a time",
        f"modelled: torch's caching allocator, and {cublas:.1f} MiB that cuBLAS takes from it",
        f"assumed: a CUDA context of {context} MiB, flash attention where there is no mask",
        "not modelled: fragmentation by batches of other shapes, which adds a few per cent to what is reserved",
    ]
    if plan.limit is not None:
        usable = (plan.limit + plan.context) / GIB
        told += [f"fits: reserved and context are within {usable:,.2f} GiB, what torch finds of {plan.card / GIB:,.1f}"]
    return told


def _device(given: str | int | None) -> tuple[str, int | None, int | None]:
    """`cpu` or `cuda`; the bytes of its memory where they are looked at, and those that torch can have of them."""
    text = "cpu" if given is None and not torch.cuda.is_available() else str(given).strip()
    if text == "cpu":
        return "cpu", None, None
    if given is None or text.isdecimal():
        size = int(text) if given is not None else torch.cuda.get_device_properties(0).total_memory
        return "cuda", size, size
    if match := re.search(r"(\d+(?:\.\d+)?) ?gi?b\b", text, re.IGNORECASE):
        size = round(float(match[1]) * GIB)
        return "cuda", size, int(size * USABLE)
    raise UserError(f"--device {text}: give cpu, a GPU with its memory ('{text} 40GB'), or bytes.")


def _capability(given: str | int | None) -> int:
    """The major compute capability of the GPU here, or of one that is named."""
    if given is None and torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0]
    return 9 if re.search(r"\b(g?h[12]\d\d|g?b[123]00)\b", str(given), re.IGNORECASE) else 8

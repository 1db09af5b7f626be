"""`litpeft estimate`: estimate the memory of a run from the options of `fit`, without weights and without a GPU."""

from __future__ import annotations

import copy
import csv
import json
import re
import sys
import time
from collections.abc import Callable
from math import ceil
from types import SimpleNamespace
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from torch import Tensor

from litpeft.adapters import Adapter
from litpeft.cli.console import quieten
from litpeft.cli.planned_run import PlannedRunCLI
from litpeft.commands.estimate_batches import later_batch
from litpeft.commands.estimate_devices import add_device_options, devices_of, use_short_names
from litpeft.commands.estimate_output import GIB, figures, show_tables
from litpeft.errors import UserError, first_sentence
from litpeft.hub.base_weights import weight_files
from litpeft.profiling.memory.cuda import context_bytes
from litpeft.profiling.memory.trace import Trace, trace
from litpeft.runs.strategy_names import shown_name
from litpeft.tasks import FineTuner
from litpeft.tasks.language_modelling import LanguageModelling

USABLE = 0.985  # share of a GPU's nominal memory that torch reports, on a 4090, A100 or H100
UNIT = 16  # tokens; the longest row is searched in multiples of this
MAX_TOKENS, MAX_ROWS = 1 << 17, 1 << 14  # limits of the search for the longest row and the largest batch


class EstimateCLI(PlannedRunCLI):
    """The options of `fit` plus those of `estimate`."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--format", type=Literal["table", "json", "csv"], default="table", help="tables, or raw numbers"
        )
        parser.add_argument(
            "--device",
            type=str | int | None,
            help="cpu, a GPU with its memory ('A100 40GB'), or bytes (default: the device of this machine)",
        )
        parser.add_argument(
            "--tokens",
            type=int | None,
            help="tokens per row, instead of the longest batch of the data; no data is read then",
        )
        parser.add_argument(
            "--no_data",
            "--no-data",
            action="store_true",
            help="read no data; rows have data.max_length tokens, or those of --tokens; images have the model's size",
        )
        parser.add_argument(
            "--no_search",
            "--no-search",
            action="store_true",
            help="do not search for the largest batch and the longest row, which takes minutes for a large model",
        )
        add_device_options(parser)

    def before_instantiate_classes(self) -> None:
        use_short_names(self.config[self.verb])
        super().before_instantiate_classes()


class NoData(UserError):
    """The data cannot be read, but an estimate does not need it."""


class Plan:
    """The run to estimate.

    Args:
        arguments: command line of `estimate`, without the verb.

    Attributes:
        task: the task as configured.
        rows: rows per batch.
        tokens: tokens of the longest row.
        later: the longest batch after the first step, in a run of one epoch; None: the longest of all.
        tensors_unknown: whether fit may train new parameters of the base, such as a pooler, that are not counted
            because the weight files are not on this machine.
        devices: all devices of the run; rows, tokens and bytes are those of one.
        search: whether to search for the largest batch and the longest row.
        limit: bytes of device memory that a run can use, without the CUDA context; None on a CPU.

    Raises:
        NoData: the data cannot be read.
        UserError: another option is wrong.
    """

    def __init__(self, arguments: list[str]) -> None:
        cli = EstimateCLI("estimate", arguments)
        options = cli.config["estimate"]
        self.task: FineTuner = cli.model
        self.tensors_unknown = not isinstance(self.task, LanguageModelling) and not weight_files(self.task.model_name)
        self.device, self.card, usable = _device(options.device)
        self.capability = _capability(options.device)
        self.context = context_bytes(self.capability)
        self.limit = None if usable is None else usable - self.context
        self.devices = devices_of(options.trainer)
        self.accumulate, self.clip = options.trainer.accumulate_grad_batches, options.trainer.gradient_clip_val
        self.adapters, self.format, self.search = cli.adapters(), options.format, not options.no_search
        if self.task.compile_blocks:
            raise UserError("model.compile_blocks: the memory of compiled blocks cannot be estimated; leave it out.")
        self.classes_assumed = False
        tokens = options.tokens
        if tokens is None and options.no_data:
            tokens = min(cli.datamodule.max_length, cli.datamodule.batch_tokens or cli.datamodule.max_length)
        self.later: dict[str, Tensor] | None = None
        self._read(cli.datamodule, tokens, options.trainer)

    def _read(self, data: Any, tokens: int | None, trainer: Any) -> None:
        """Set the batch: the longest of the data, with which a run starts, or a made-up one with `tokens` per row."""
        self.rows, self.tokens = data.batch_size, tokens
        if tokens and data.batch_tokens:
            self.rows = data.batch_tokens // tokens
            if not self.rows:
                raise UserError(f"--tokens {tokens}: batches have at most {data.batch_tokens} (data.batch_tokens).")
        if tokens is not None:
            if tokens < 1:
                raise UserError(f"--tokens must be at least 1, got {tokens}.")
            names = getattr(data, "given_label_names", None)  # None also for a data set whose classes are not known
            self.classes_assumed = names is None and hasattr(data, "given_label_names")
            names = names or ["0", "1"]
            tokenizer = data.tokenizer if self.task.resize_embeddings else SimpleNamespace(pad_token_id=0)
            self.data: Any = SimpleNamespace(max_length=tokens, label_names=names, tokenizer=tokenizer)
            self.task.outputs = len(names)
            self.batch = self.held_out = self.task.example(self.rows, tokens)
            self.source = "made-up batch"
            return
        place = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            lightning_module=self.task,
            global_rank=0,
            world_size=self.devices.count,
            strategy=place,
            state=SimpleNamespace(fn=TrainerFn.FITTING),
        )
        try:
            data.prepare_data()
            data.setup("fit")
        except UserError as error:
            raise NoData(str(error)) from error
        self.data = data
        self.task.outputs = len(getattr(data, "label_names", ()))
        loader = data.train_dataloader()
        self.batch, self.held_out = next(iter(loader)), next(iter(data.val_dataloader()))
        self.later = later_batch(loader, trainer)
        self.rows, self.tokens = len(self.batch["labels"]), self.batch.get("input_ids", self.batch["labels"]).shape[-1]
        of = "the first block of the stream" if getattr(data, "streaming", False) else "the data"
        self.source = f"the longest batch of {of}, with which a run starts"

    def trace(self, adapter: Adapter, batch: Any = None, first_step: bool = True) -> Trace:
        """Trace the training steps with this adapter; validation too, unless another batch is given."""
        task = copy.copy(self.task)
        task.adapter = adapter
        batches = (self.batch, self.held_out, self.later) if batch is None else (batch, None, None)
        options = self.device, self.accumulate, self.clip, first_step, self.capability, self.devices
        try:
            return trace(task, self.data, *batches, *options)
        except UserError:
            raise
        except Exception as error:  # operations whose result depends on values raise errors of many kinds
            raise UserError(
                f"model.model_name {task.model_name} with {shown_name(adapter.name)} cannot be estimated, because its "
                f"forward pass does not run on meta tensors ({first_sentence(error)[:200]}); run `litpeft fit` with "
                "--trainer.max_steps 3 and read the peaks in its record instead."
            ) from error

    def needed(self, found: Trace) -> int:
        """Return the peak bytes of a run: of tensors on a CPU, reserved by the allocator on a GPU."""
        return max(phase.reserved_bytes or phase.tensors.bytes for phase in found.phases.values())

    def largest_batch(self, adapter: Adapter, found: Trace) -> int:
        """Return the largest number of rows of `self.tokens` tokens that fits."""
        points = {0: self._always(found), self.rows: self.needed(found)}
        return largest(lambda rows: self._more(adapter, rows, self.tokens), self.limit, points, MAX_ROWS)

    def longest_rows(self, adapter: Adapter, found: Trace) -> int:
        """Return the longest row, in multiples of `UNIT` tokens, that fits in a batch of `self.rows` rows."""
        points = {0: self._always(found), self.tokens / UNIT: self.needed(found)}
        most = (found.positions or MAX_TOKENS) // UNIT
        return UNIT * largest(lambda units: self._more(adapter, self.rows, units * UNIT), self.limit, points, most)

    def _always(self, found: Trace) -> int:
        """Return the bytes that a step needs for any batch size."""
        held = found.phases["train"].tensors.split
        return sum(size for name, size in held.items() if name not in ("activations", "temporaries", "other"))

    def _more(self, adapter: Adapter, rows: int, tokens: int) -> int:
        """Return the peak bytes with another batch."""
        saved, self.data.max_length = self.data.max_length, tokens
        try:
            return self.needed(self.trace(adapter, self.task.example(rows, tokens), first_step=False))
        finally:
            self.data.max_length = saved


def largest(bytes_at: Callable[[int], int], limit: int, points: dict[float, int], most: int) -> int:
    """Return the largest n from 0 to `most` with `bytes_at(n) <= limit`.

    The search interpolates linearly between the two points nearest to the limit, because memory grows almost linearly.
    The allocator's blocks make steps, so the search bisects after a guess that removed less than half of the range.
    Until a point is too large, guesses grow step by step, because large batches take long to trace.

    Args:
        bytes_at: bytes for n; non-decreasing.
        limit: bytes.
        points: at least two known points, n -> bytes; n may be fractional.
        most: largest n to try.
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


def main(arguments: list[str]) -> int:
    quieten()
    started = time.perf_counter()
    try:
        plan = Plan(arguments)
    except NoData as error:
        raise UserError(f"{str(error).rstrip('.')}; or give --no_data to estimate without the data.") from error
    with Console(stderr=True, force_jupyter=False).status("") as status:  # shown on a terminal only
        traces = []
        for number, adapter in enumerate(plan.adapters, 1):
            status.update(f"estimating {shown_name(adapter.name)}, {number} of {len(plan.adapters)}")
            traces.append(plan.trace(adapter))
        status.update("searching for the largest batch" if plan.search and plan.limit is not None else "")
        rows = figures(plan, traces)
    if plan.format == "json":
        facts = {"rows": plan.rows, "tokens": plan.tokens, "tensors_unknown": plan.tensors_unknown}
        print(json.dumps(facts | {"strategies": rows}, indent=2))
    elif plan.format == "csv":
        writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        show_tables(plan, traces, rows)
        print(f"estimated in {time.perf_counter() - started:.1f} s")
    return 0


def _device(given: str | int | None) -> tuple[str, int | None, int | None]:
    """Return `cpu` or `cuda`, the bytes of GPU memory and the bytes that torch can use of them (None on a CPU)."""
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
    """Return the major compute capability of the named GPU, or of the GPU of this machine."""
    if given is None and torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0]
    return 9 if re.search(r"\b(g?h[12]\d\d|g?b[123]00)\b", str(given), re.IGNORECASE) else 8

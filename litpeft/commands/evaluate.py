"""`litpeft evaluate`: run benchmarks on a finished run and add the scores to its record."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError
from litpeft.runs.benchmark_results import benchmark_rows
from litpeft.runs.record import read_record, write_record

DESCRIPTION = """run benchmarks on finished runs, or validate them merged, and add the results to their records

Several runs are evaluated one after the other, with one base in memory if only the trained weights differ.
The model is evaluated as in training, with the adapter active and quantised weights as they are; nothing is exported.
`litpeft compare` and `litpeft report` show the scores like any other figure.

With --model and options of `litpeft fit` instead of folders, a model that is not trained is validated and evaluated as
it is, for example --model CausalLM --model.model_name NAME --data Alpaca --tasks ...; its record is a reference beside
trained runs.
"""
LINE_SECONDS = 5.0  # seconds between progress lines, where the output is no terminal


def main(arguments: list[str]) -> int:
    as_it_is = any(word.partition("=")[0] in ("--model", "--config") for word in arguments)
    parser = CommandParser("evaluate", description=DESCRIPTION)
    if not as_it_is:
        parser.add_argument(
            "run_dirs",
            type=Path,
            nargs="+",
            metavar="run_dir",
            help="folders of finished runs; those with the same model and adapter share one base in memory",
        )
    _add_options(parser)
    if as_it_is:
        options, others = parser.parse_known_args(arguments)
        return _evaluate_as_it_is(options, others)
    options = parser.parse_args(arguments)
    if not options.tasks and not options.merged:
        raise UserError("litpeft evaluate: give --tasks, the benchmarks to run, or --merged.")
    if options.checkpoint and options.merged:
        raise UserError("--merged validates the checkpoint that the record names; leave out --checkpoint.")
    if options.checkpoint and len(options.run_dirs) > 1:
        raise UserError("--checkpoint names a checkpoint of one run; give one run, or leave it out.")
    for run_dir in options.run_dirs:
        read_record(run_dir, to_write=True)  # report a folder without a run before torch is imported
    if options.merged:
        _validate_merged(options)
    return _evaluate(options) if options.tasks else 0


def _add_options(parser: CommandParser) -> None:
    parser.add_argument(
        "--tasks",
        default="",
        help="comma-separated: lm-eval tasks (litpeft_truthfulqa_mc1,litpeft_blimp_*), perplexity, held_out",
    )
    parser.add_argument("--limit", type=int, help="number of items per task, from the start (default: all)")
    parser.add_argument(
        "--num_fewshot", type=int, help="few-shot examples per item, for tasks that do not set the number"
    )
    parser.add_argument("--batch_size", type=int, help="batch size for tasks that lm-eval scores itself")
    parser.add_argument("--data_dir", help="folder with the data files of the litpeft_ tasks (default: the hub)")
    parser.add_argument("--text_file", help="text file for perplexity")
    parser.add_argument(
        "--max_seconds", type=float, help="time limit; tasks that are not reached are reported as skipped"
    )
    parser.add_argument("--keep_items", action="store_true", help="save the result of each item, for paired tests")
    parser.add_argument(
        "--checkpoint", type=Path, help="checkpoint folder of one run (default: the checkpoint that the record names)"
    )
    parser.add_argument(
        "--merged",
        action="store_true",
        help="validate each run as trained and with its adapter merged: metrics and rows per second of both",
    )
    parser.add_argument("--accelerator", default="auto", help="cpu or gpu (default: a GPU if there is one)")


def _evaluate_as_it_is(options: Any, others: list[str]) -> int:
    """Run `litpeft fit` with the adapter Untrained: it validates the model, runs the benchmarks, and writes a record.

    Args:
        options: options of `litpeft evaluate`.
        others: options of `litpeft fit`, which name model and data.
    """
    if options.merged or options.checkpoint:
        raise UserError(
            "--merged and --checkpoint are for finished runs; leave them out with --model, or give a folder."
        )
    if any(word.startswith("--model.adapter") for word in others):
        raise UserError("--model.adapter: a model is evaluated as it is; leave it out, or train it with litpeft fit.")
    words = [*others, "--model.adapter", "Untrained", "--trainer.accelerator", options.accelerator]
    for name in ("tasks", "limit", "num_fewshot", "batch_size", "data_dir", "text_file", "max_seconds", "keep_items"):
        value = getattr(options, name)
        if value is not None and value is not False and value != "":  # 0 is a value: of num_fewshot, or to be refused
            words += [f"--benchmarks.{name}", str(value)]
    return importlib.import_module("litpeft.commands.training").main(["fit", *words])


def _validate_merged(options: Any) -> None:
    """Validate each run with its adapter and merged, and print both."""
    from litpeft.cli.console import quieten, show  # slow imports
    from litpeft.cli.merged_evaluation import ValidatedBothWays
    from litpeft.runs.summary import metric_text

    quieten()
    for run_dir in options.run_dirs:
        found = ValidatedBothWays(run_dir, options.accelerator).found
        for way, title in (("adapter", "with its adapter"), ("merged", "merged")):
            texts = [(name.replace("_", " "), metric_text(name, value)) for name, value in sorted(found[way].items())]
            show(f"{run_dir}, {title}", texts)


def _evaluate(options: Any) -> int:
    from litpeft.benchmarks import Options, Suite, check_options  # slow imports
    from litpeft.callbacks.benchmark import write_items
    from litpeft.cli.console import quieten, show
    from litpeft.cli.finished_run import FinishedRun
    from litpeft.cli.shared_model import shares_model

    settings = Options(
        [name.strip() for name in options.tasks.split(",") if name.strip()],
        *(options.limit, options.num_fewshot, options.batch_size),
        *(options.data_dir, options.text_file, options.max_seconds),
    )
    check_options(settings)
    if not settings.tasks:
        raise UserError("litpeft evaluate: --tasks names no benchmark.")
    quieten()
    complete, earlier = True, None
    for run_dir in options.run_dirs:
        run = FinishedRun(run_dir, options.checkpoint, options.accelerator, "evaluated")
        suite = Suite(settings, run.model, run.datamodule)
        run.datamodule.prepare_data()
        run.datamodule.setup("validate")
        if earlier is not None and not shares_model(run, earlier):
            print(f"litpeft: {run_dir} has another model or adapter, so its base is read again.", file=sys.stderr)
            earlier.model.backbone = None  # frees the memory
        run.build(run.trainer.strategy.root_device, like=earlier)
        with _progress() as progress:
            evaluation = suite.evaluate(run.model, run.datamodule, progress, _warn)
        entry = {"step": run.step} | evaluation.as_entry()
        record = read_record(run.run_dir)  # again, because another process may have changed the record meanwhile
        write_record(run.run_dir, record | {"benchmarks": merged(record.get("benchmarks"), entry)})
        if options.keep_items:
            write_items(run.run_dir, run.step, evaluation)
        show(str(run.checkpoint), benchmark_rows(entry))
        complete, earlier = complete and bool(evaluation.results), run
    return 0 if complete else 1


def _warn(message: str) -> None:
    print(f"litpeft: warning: {message}", file=sys.stderr)


def merged(earlier: list[dict[str, Any]] | None, new: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the evaluations of a record with a new one added; results of the same step and benchmark are replaced."""
    same = next((each for each in earlier or () if each["step"] == new["step"]), None)
    if same is not None:
        skipped = {name: why for name, why in (same["skipped"] | new["skipped"]).items() if name not in new["results"]}
        results = same["results"] | new["results"]
        new = {
            "step": new["step"],
            "seconds": None if same["seconds"] is None else same["seconds"] + new["seconds"],
            "results": results,
            "skipped": {name: why for name, why in skipped.items() if name not in results},
        }
    others = [each for each in earlier or () if each["step"] != new["step"]]
    return sorted([*others, new], key=lambda each: each["step"])


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (name, done, total) that shows progress: bars on a terminal, else a line every few seconds."""
    from rich.progress import Progress

    bars_by_name: dict[str, Any] = {}
    last_line = time.monotonic()

    def line(name: str, done: int, total: int) -> None:
        nonlocal last_line
        if done and time.monotonic() - last_line >= LINE_SECONDS:
            last_line = time.monotonic()
            print(f"{name} {done}/{total}", flush=True)

    if not os.isatty(1):
        yield line
        return
    with Progress() as bars:

        def bar(name: str, done: int, total: int) -> None:
            if name not in bars_by_name:
                bars_by_name[name] = bars.add_task(name)
            bars.update(bars_by_name[name], completed=done, total=total)

        yield bar

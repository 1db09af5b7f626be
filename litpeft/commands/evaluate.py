"""`litpeft evaluate`: benchmarks of a finished run, put into its record."""

from __future__ import annotations

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

DESCRIPTION = """measure a finished run by benchmarks, and put the scores into its record

As `fit` with --benchmarks does while it trains: the adapter on, the weights as they are held, nothing exported.
`litpeft compare` and `litpeft report` show the scores like any other figure.
"""
EVERY = 5.0  # seconds between lines, where there is no terminal


def main(words: list[str]) -> int:
    parser = CommandParser("evaluate", description=DESCRIPTION)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--tasks",
        required=True,
        help="of lm-eval (litpeft_truthfulqa_mc1,litpeft_blimp_*), perplexity, held_out; with commas",
    )
    parser.add_argument("--limit", type=int, help="items of each task, the first ones (default: all)")
    parser.add_argument("--num_fewshot", type=int, help="examples before each item, where the task does not say")
    parser.add_argument("--batch_size", type=int, help="rows at once where lm-eval's own way is taken")
    parser.add_argument("--data_dir", help="released files of the litpeft_ tasks (default: from the hub)")
    parser.add_argument("--text_file", help="text of perplexity")
    parser.add_argument("--max_seconds", type=float, help="what is not reached by then is skipped, and said")
    parser.add_argument("--keep_items", action="store_true", help="keep what each item gave, for paired tests")
    parser.add_argument("--checkpoint", type=Path, help="of the run, other than the one that it stands for")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu (default: what there is)")
    options = parser.parse_args(words)
    read_record(options.run_dir, to_write=True)  # a folder that is no run's is told before torch is there
    return _evaluate(options)


def _evaluate(options: Any) -> int:
    from litpeft.benchmarks import Options, Suite, check_options  # with all that follows, seconds
    from litpeft.callbacks.benchmark import write_items
    from litpeft.cli.console import quieten, show
    from litpeft.cli.finished_run import FinishedRun

    how = Options(
        [name.strip() for name in options.tasks.split(",") if name.strip()],
        *(options.limit, options.num_fewshot, options.batch_size),
        *(options.data_dir, options.text_file, options.max_seconds),
    )
    check_options(how)
    if not how.tasks:
        raise UserError("litpeft evaluate: --tasks names no benchmark.")
    quieten()
    run = FinishedRun(options.run_dir, options.checkpoint, options.accelerator, "evaluated")
    suite = Suite(how, run.model, run.datamodule)
    run.datamodule.prepare_data()
    run.datamodule.setup("validate")
    run.build(run.trainer.strategy.root_device)
    with _live() as progress:
        found = suite.evaluate(
            run.model, run.datamodule, progress, lambda said: print(f"litpeft: warning: {said}", file=sys.stderr)
        )
    told = {"step": run.step} | found.told()
    record = read_record(run.run_dir)  # anew: it took a while
    write_record(run.run_dir, record | {"benchmarks": merged(record.get("benchmarks"), told)})
    if options.keep_items:
        write_items(run.run_dir, run.step, found)
    show(str(run.checkpoint), benchmark_rows(told))
    return 0 if found.results else 1


def merged(earlier: list[dict[str, Any]] | None, new: dict[str, Any]) -> list[dict[str, Any]]:
    """The evaluations of a record with a new one; of the same step, benchmarks that are measured again are replaced."""
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
def _live() -> Iterator[Callable[[str, int, int], None]]:
    """How far it is: a bar on a terminal, a line now and then in a log."""
    from rich.progress import Progress

    begun: dict[str, Any] = {}
    told = time.monotonic()

    def line(name: str, done: int, total: int) -> None:
        nonlocal told
        if done and time.monotonic() - told >= EVERY:
            told = time.monotonic()
            print(f"{name} {done}/{total}", flush=True)

    if not os.isatty(1):
        yield line
        return
    with Progress() as bars:

        def bar(name: str, done: int, total: int) -> None:
            if name not in begun:
                begun[name] = bars.add_task(name)
            bars.update(begun[name], completed=done, total=total)

        yield bar

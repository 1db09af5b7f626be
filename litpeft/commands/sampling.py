"""Options of `litpeft chat` and `litpeft generate`: the run, and how its answers are chosen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import FILE_NAME, read_record


def add_answering_options(parser: argparse.ArgumentParser) -> None:
    """Add the run, `--system`, and the options of sampling."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run of litpeft fit")
    parser.add_argument("--system", metavar="TEXT", help="system text that each conversation begins with")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 takes the most likely token at each step (default); a higher one samples",
    )
    parser.add_argument(
        "--top_p", type=float, help="sample from the most likely tokens whose probabilities add up to this"
    )
    parser.add_argument("--top_k", type=int, help="sample from this many of the most likely tokens")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer, in tokens (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of sampling (default: 0)")
    parser.add_argument("--accelerator", default="auto", help="cpu or gpu (default: a GPU if there is one)")


def check_answering_options(options: argparse.Namespace) -> dict[str, Any]:
    """Check the options before torch is imported; return the arguments of the model's `generate`.

    Raises:
        UserError: a value is out of range, or the folder holds no run with a checkpoint.
    """
    check_has_checkpoint(options.run_dir)
    if options.temperature < 0:
        raise UserError(f"--temperature must not be negative, got {options.temperature}.")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise UserError(f"--top_p must be above 0 and at most 1, got {options.top_p}.")
    for name, value in (("top_k", options.top_k), ("max_new_tokens", options.max_new_tokens)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be from 0 to {2**32 - 1}, got {options.seed}.")
    length = {"max_new_tokens": options.max_new_tokens}
    if not options.temperature:
        if given := [f"--{name}" for name in ("top_p", "top_k") if getattr(options, name) is not None]:
            raise UserError(f"{given[0]} applies to sampling; give --temperature too, such as --temperature 0.8.")
        return length
    sampling = {"temperature": options.temperature, "top_p": options.top_p or 1.0, "top_k": options.top_k or 0}
    return length | {"do_sample": True} | sampling


def check_has_checkpoint(run_dir: Path) -> None:
    """Raise a UserError if a folder holds no run, or a run without a checkpoint."""
    if not (run_dir / FILE_NAME).is_file():
        what = "holds no run: it has no " + FILE_NAME if run_dir.is_dir() else "does not exist"
        raise UserError(f"{run_dir} {what}; give the folder of a run of litpeft fit.")
    status = read_record(run_dir)["status"]
    if newest_checkpoint(run_dir) is None:
        raise UserError(
            f"{run_dir} has no checkpoint, so there is no trained model (status: {status}); run litpeft fit again."
        )

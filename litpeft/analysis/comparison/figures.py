"""The columns of a comparison: which figures there are, which are shown, and what a record says of one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from litpeft.analysis.comparison import benchmarks
from litpeft.analysis.comparison.number_format import number, unit
from litpeft.analysis.comparison.results import Figure, Run
from litpeft.errors import UserError

KNOWN = {  # name -> (title, which way is better, kind); the unit is added to the title
    "val_accuracy": ("val accuracy", "higher", "quality"),
    "val_f1": ("val F1", "higher", "quality"),
    "val_loss": ("val loss", "lower", "quality"),
    "test_accuracy": ("test accuracy", "higher", "quality"),
    "test_f1": ("test F1", "higher", "quality"),
    "test_loss": ("test loss", "lower", "quality"),
    "train_loss": ("train loss", "lower", "quality"),
    "peak_reserved_bytes": ("peak reserved", "lower", "memory"),
    "peak_allocated_bytes": ("peak allocated", "lower", "memory"),
    "peak_tensor_bytes": ("peak of tensors", "lower", "memory"),
    "peak_rss_bytes": ("peak of host", "lower", "memory"),
    "train_tokens_per_second": ("tokens a second", "higher", "speed"),
    "padded_tokens_per_second": ("padded tokens a second", "higher", "speed"),
    "trained_tokens_per_second": ("trained tokens a second", "higher", "speed"),
    "train_samples_per_second": ("samples a second", "higher", "speed"),
    "step_seconds_p50": ("median step", "lower", "speed"),
    "step_seconds_p95": ("95 % of steps", "lower", "speed"),
    "train_seconds": ("training", "lower", "speed"),
    "load_seconds": ("loading", "lower", "speed"),
    "wall_seconds": ("whole fit", "lower", "speed"),
    "energy_joules": ("energy", "lower", "speed"),
    "model_flops_per_second": ("model FLOP/s", "higher", "speed"),
    "flops_utilisation": ("share of peak FLOP/s", "higher", "speed"),
    "model_flops_per_step": ("model FLOP a step", None, "speed"),
    "epochs": ("epochs", None, "size"),
    "steps": ("steps", None, "size"),
    "trainable_params": ("trained", None, "size"),
    "total_params": ("params", None, "size"),
    "adapter_bytes": ("checkpoint", None, "size"),
    "model_bytes": ("model", None, "size"),
}
HIGHER = re.compile(
    r"(?<![a-z])acc(uracy)?(?![a-z])|f1|exact_match|bleu|rouge|chrf|recall|precision|auroc|mcc|matthews"
)
LOWER = re.compile(r"loss|perplexity|ppl|bits_per_byte|_ece|error|(?<![a-z])[wc]er(?![a-z])")
TARGET = re.compile(r"seconds_to_(?P<metric>.+)_(?P<value>[-+.\de]+)")
SHARE = re.compile(r"_(acc|exact_match)")  # of a benchmark's items
IN_STEPS = re.compile(r"(val|test)_accuracy")  # they come in steps of 1 / rows


def choose(
    runs: Sequence[Run], metric: str | None, names: Iterable[str] | None, targets: Iterable[tuple[str, float]]
) -> list[Figure]:
    """The columns, the quality that the experiment is about first.

    Args:
        runs: those that ended well.
        metric: what the experiment is about; by default val_accuracy if all have it, else val_loss.
        names: exactly these; by default those that say what was got and what it cost, as far as they are known.
        targets: (metric, value) pairs; each gives a column of the seconds of training until it was met.

    Raises:
        UserError: no run has a figure that was asked for.
    """
    reached = [target_name(*target) for target in targets]
    if names is not None:
        return [_asked(name, runs) for name in dict.fromkeys([*names, *reached])]
    known = {name for name in KNOWN if any(value(run.record, name) is not None for run in runs)}
    all_right = bool(runs) and all(value(run.record, "val_accuracy") is not None for run in runs)
    first = metric or ("val_accuracy" if all_right else "val_loss")
    peak = "peak_reserved_bytes" if "peak_reserved_bytes" in known else "peak_tensor_bytes"
    optional = [
        *("val_loss", "test_accuracy", peak, "peak_rss_bytes", "train_tokens_per_second", "step_seconds_p50"),
        *("train_seconds", "energy_joules"),
    ]
    shown = [name for name in optional if name in known]
    sizes = [name for name in ("trainable_params", "adapter_bytes", "model_bytes") if name in known]
    scored = benchmarks.columns(runs)
    chosen = [figure(name) for name in dict.fromkeys([first, *scored, *shown, *reached, *sizes])]
    return [replace(each, kind="benchmark") if each.name in scored and each.name != first else each for each in chosen]


def figure(name: str) -> Figure:
    """The column of this name, with the unit in its title; a name not listed here tells its direction, if it does."""
    if match := TARGET.fullmatch(name):
        metric, goal = match["metric"], float(match["value"])
        sign = "≥" if direction(metric) == "higher" else "≤"
        return Figure(name, f"to {figure(metric).title.split(',')[0]} {sign} {goal:g}, s", "lower", "speed")
    plain = name.removeprefix("litpeft_").replace("_", " ")
    title, better, kind = KNOWN.get(name) or (plain, direction(name), "quality")
    suffix = unit(name)[1]
    return Figure(name, f"{title}, {suffix}" if suffix else title, better, kind)


def direction(name: str) -> str | None:
    """Which way is better; None where the name does not tell."""
    if name in KNOWN:
        return KNOWN[name][1]
    if name.endswith(benchmarks.BEFORE):  # nothing that training could be praised for
        return None
    return "higher" if HIGHER.search(name) else "lower" if LOWER.search(name) else None


def target_name(metric: str, goal: float) -> str:
    """The figure that says when `metric` first met `goal`.

    Raises:
        UserError: nothing says whether more or less of it is better.
    """
    if direction(metric) is None:
        raise UserError(f"--target {metric}={goal:g}: whether more or less of {metric} is better is not known.")
    return f"seconds_to_{metric}_{goal!r}"


def value(record: dict[str, Any], name: str) -> float | None:
    """What a record says of a figure; None is not known, or that a target was never met."""
    if match := TARGET.fullmatch(name):
        return _seconds_to(record.get("validations"), match["metric"], float(match["value"]))
    found = record.get(name)
    if found is None:
        found = (record.get("other_metrics") or {}).get(name)
    if found is None and record.get("benchmarks"):
        found = benchmarks.all_figures(record).get(name)
    return number(found)


def resolution(run: Run, name: str) -> float:
    """The step in which a figure comes: 1 / rows for an accuracy, 0 where it is exact or of unknown step."""
    if result := benchmarks.result_of(run.record, name):
        return 1 / result["items"] if SHARE.search(name) and result["items"] else 0.0
    if not (match := IN_STEPS.fullmatch(name)):
        return 0.0
    rows = number(((run.record.get("data_summary") or {}).get("rows") or {}).get(match[1]))
    return 1 / rows if rows else 0.0


def _asked(name: str, runs: Sequence[Run]) -> Figure:
    """A column that was asked for; what no run knows is refused, but for a target, which may never be met."""
    if not TARGET.fullmatch(name) and all(value(run.record, name) is None for run in runs):
        names = {
            key
            for run in runs
            for key in (*run.record, *(run.record.get("other_metrics") or ()), *benchmarks.all_figures(run.record))
        }
        there = sorted(key for key in names if any(value(run.record, key) is not None for run in runs))
        close = difflib.get_close_matches(name, there, n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"--figures {name}: no run has it{guess}; known of these runs: {', '.join(there)}.")
    return figure(name)


def _seconds_to(validations: Any, metric: str, goal: float) -> float | None:
    sign = 1 if direction(metric) == "higher" else -1
    for row in validations or ():
        reached = number(row.get(metric))
        if reached is not None and sign * reached >= sign * goal:
            return number(row.get("train_seconds"))
    return None

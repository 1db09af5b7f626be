"""Figures of a comparison (table columns): choose them, and read their values from records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from litpeft.analysis.comparison import benchmarks
from litpeft.analysis.comparison.number_format import number, unit
from litpeft.analysis.comparison.results import Figure, Group, Run
from litpeft.errors import UserError, did_you_mean
from litpeft.runs.indexed_record import column, known_fields

KNOWN = {  # name -> (title, better direction, kind); the unit is added to the title
    "val_accuracy": ("validation accuracy", "higher", "quality"),
    "val_f1": ("validation F1", "higher", "quality"),
    "val_loss": ("validation loss", "lower", "quality"),
    "test_accuracy": ("test accuracy", "higher", "quality"),
    "test_f1": ("test F1", "higher", "quality"),
    "test_loss": ("test loss", "lower", "quality"),
    "train_loss": ("training loss", "lower", "quality"),
    "peak_reserved_bytes": ("peak GPU memory", "lower", "memory"),
    "peak_allocated_bytes": ("peak allocated GPU memory", "lower", "memory"),
    "peak_tensor_bytes": ("peak tensor memory", "lower", "memory"),
    "peak_rss_bytes": ("peak host memory", "lower", "memory"),
    "train_tokens_per_second": ("tokens per second", "higher", "speed"),
    "padded_tokens_per_second": ("tokens per second with padding", "higher", "speed"),
    "trained_tokens_per_second": ("trained tokens per second", "higher", "speed"),
    "train_samples_per_second": ("rows per second", "higher", "speed"),
    "step_seconds_p50": ("median step", "lower", "speed"),
    "step_seconds_p95": ("95th percentile step", "lower", "speed"),
    "train_seconds": ("training time", "lower", "speed"),
    "load_seconds": ("load time", "lower", "speed"),
    "wall_seconds": ("total time", "lower", "speed"),
    "energy_joules": ("energy", "lower", "speed"),
    "model_flops_per_second": ("model FLOP/s", "higher", "speed"),
    "flops_utilisation": ("FLOP/s utilisation", "higher", "speed"),
    "model_flops_per_step": ("model FLOP per step", None, "speed"),
    "epochs": ("epochs", None, "size"),
    "steps": ("steps", None, "size"),
    "trainable_params": ("trainable parameters", None, "size"),
    "total_params": ("total parameters", None, "size"),
    "adapter_bytes": ("checkpoint size", None, "size"),
    "model_bytes": ("model size", None, "size"),
}
HIGHER = re.compile(
    r"(?<![a-z])acc(uracy)?(?![a-z])|f1|exact_match|bleu|rouge|chrf|recall|precision|auroc|mcc|matthews"
)
LOWER = re.compile(r"loss|perplexity|ppl|bits_per_byte|_ece|error|(?<![a-z])([wc]er|r?mse|mae)(?![a-z])")
TARGET = re.compile(r"seconds_to_(?P<metric>.+)_(?P<value>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)")
SHARE = re.compile(r"_(acc|exact_match)")  # benchmark metrics that are a share of the items
AVERAGE, SCORE = "score_average", "score_"  # figures of an average over tasks; the rest of the name is the task
EVALUATED = re.compile(r"(adapter|merged)_(?P<rest>(val_.+|rows_per_second))")  # from `litpeft evaluate --merged`
PARTS = {"val_": "validation ", "test_": "test "}  # start of a metric's name -> of its title
# values are multiples of 1 / rows, or have steps of about that size: one row more that is right
IN_STEPS = re.compile(
    r"(val|test)_((balanced_)?accuracy|exact_match|((binary|micro|macro)_)?f1|precision|recall|matthews|kappa)"
)


def choose(
    runs: Sequence[Run], metric: str | None, names: Iterable[str] | None, targets: Iterable[tuple[str, float]]
) -> list[Figure]:
    """Return the columns, with the main metric first.

    Args:
        runs: finished runs.
        metric: main metric; default: that of the runs if all have the same, else val_accuracy if all runs have it, else
            val_loss.
        names: names of the columns; default: quality, memory, speed and sizes that the records have.
        targets: (metric, value) pairs; each adds a column with the seconds of training until the metric reached value.

    Raises:
        UserError: no run has a requested figure.
    """
    directions = directions_in(runs)
    reached = [target_name(*target, directions) for target in targets]
    if names is not None:
        return [_requested(name, runs, directions) for name in dict.fromkeys([*names, *reached])]
    there = known_fields([run.record for run in runs])
    known = {name for name in KNOWN if name in there and any(value(run.record, name) is not None for run in runs)}
    classified = bool(runs) and None not in values(runs, "val_accuracy")
    main, *further = _main_metrics(runs) or ["val_accuracy" if classified else "val_loss"]
    others = [run.record.get("other_metrics") or {} for run in runs]
    further += [name for name in (others or [{}])[0] if name[:4] == "val_" and all(name in each for each in others)]
    first = metric or main
    peak = "peak_reserved_bytes" if "peak_reserved_bytes" in known else "peak_tensor_bytes"
    optional = [
        *("val_loss", "test_accuracy", peak, "peak_rss_bytes", "train_tokens_per_second", "step_seconds_p50"),
        *("train_seconds", "energy_joules"),
    ]
    if "train_tokens_per_second" not in known:  # images
        optional[optional.index("train_tokens_per_second")] = "train_samples_per_second"
    shown = [name for name in optional if name in known]
    sizes = [name for name in ("trainable_params", "adapter_bytes", "model_bytes") if name in known]
    scored = benchmarks.columns(runs)
    both = [record.get("merged_evaluation") for run in runs if (record := run.record)]
    merged = [f"merged_{first}", "adapter_rows_per_second", "merged_rows_per_second"] if both and all(both) else []
    names = dict.fromkeys([first, *([main] if metric else []), *further, *scored, *merged, *shown, *reached, *sizes])
    chosen = [figure(name, directions) for name in names]
    return [replace(each, kind="benchmark") if each.name in scored and each.name != first else each for each in chosen]


def directions_in(runs: Iterable[Run]) -> dict[str, str]:
    """Return the better direction of the metrics that the runs have recorded, by name without val_ or test_."""
    return {name: better for run in runs for name, better in (run.record.get("metric_directions") or {}).items()}


def _main_metrics(runs: Sequence[Run]) -> list[str]:
    """Return the main metrics of the runs if all have the same, else none."""
    found = {tuple(run.record.get("main_metrics") or ()) for run in runs}
    return list(found.pop()) if len(found) == 1 else []


def figure(name: str, directions: Mapping[str, str] | None = None) -> Figure:
    """Return the column of this name.

    Args:
        name: name of the figure.
        directions: better directions as `directions_in` returns them; others are guessed from the name.
    """
    if match := TARGET.fullmatch(name):
        metric, goal = match["metric"], float(match["value"])
        sign = "≥" if direction(metric, directions) == "higher" else "≤"
        return Figure(name, f"time to {figure(metric).title.split(',')[0]} {sign} {goal:g}, s", "lower", "speed")
    if match := EVALUATED.fullmatch(name):
        kind, rest = match[1], match["rest"]
        if rest == "rows_per_second":
            way = "merged" if kind == "merged" else "adapter unmerged"
            return Figure(name, f"rows per second in evaluation, {way}", "higher", "speed")
        return replace(figure(rest, directions), name=name, title=f"{kind}: {figure(rest, directions).title}")
    if name.startswith(SCORE):
        task = "average over tasks" if name == AVERAGE else name.removeprefix(SCORE)
        return Figure(name, f"{task}, points", "higher", "quality")
    plain = name.removeprefix("litpeft_")
    for part, long in PARTS.items():
        plain = long + plain.removeprefix(part) if plain.startswith(part) else plain
    title, better, kind = KNOWN.get(name) or (plain.replace("_", " "), direction(name, directions), "quality")
    suffix = unit(name)[1]
    return Figure(name, f"{title}, {suffix}" if suffix else title, better, kind)


def direction(name: str, directions: Mapping[str, str] | None = None) -> str | None:
    """Return whether higher or lower is better; None if neither `directions` nor the name says."""
    if name in KNOWN:
        return KNOWN[name][1]
    plain = name.removeprefix("val_").removeprefix("test_")
    if directions and plain in directions:
        return directions[plain]
    if name.endswith(benchmarks.BEFORE):  # a score before training is not a result of training
        return None
    return "higher" if HIGHER.search(name) else "lower" if LOWER.search(name) else None


def target_name(metric: str, goal: float, directions: Mapping[str, str] | None = None) -> str:
    """Return the name of the figure: seconds of training until `metric` first reached `goal`.

    Raises:
        UserError: it is unknown whether higher or lower values of the metric are better, or the goal is not finite.
    """
    if not isfinite(goal):
        raise UserError(f"--target {metric}={goal:g}: give a finite number, such as 0.85.")
    if direction(metric, directions) is None:
        raise UserError(f"--target {metric}={goal:g}: it is unknown whether higher or lower {metric} is better.")
    return f"seconds_to_{metric}_{goal!r}"


def values_in(group: Group, name: str) -> list[float | None]:
    """Return the value of a figure in each run of a group; the runs must not change any more."""
    if name not in group.known:
        group.known[name] = values(group.runs, name)
    return group.known[name]


def values(runs: Sequence[Run], name: str) -> list[float | None]:
    """Return the value of a figure in each run."""
    if TARGET.fullmatch(name) or EVALUATED.fullmatch(name):
        return [value(run.record, name) for run in runs]
    found = column([run.record for run in runs], name)
    return [
        each if type(each) is int or (type(each) is float and isfinite(each)) else _elsewhere(run.record, name, each)
        for run, each in zip(runs, found, strict=True)
    ]


def value(record: Mapping[str, Any], name: str) -> float | None:
    """Return the value of a figure in a record; None if unknown, or if a target was never reached."""
    if match := TARGET.fullmatch(name):
        sign = 1 if direction(match["metric"], record.get("metric_directions")) == "higher" else -1
        return _seconds_to(record.get("validations"), match["metric"], float(match["value"]), sign)
    if match := EVALUATED.fullmatch(name):
        return number(((record.get("merged_evaluation") or {}).get(match[1]) or {}).get(match["rest"]))
    return _elsewhere(record, name, record.get(name))


def _elsewhere(record: Mapping[str, Any], name: str, found: Any) -> float | None:
    """Return a number that was found in a record, or that it has among other metrics or benchmarks if it is None."""
    if found is None:
        found = (record.get("other_metrics") or {}).get(name)
    if found is None and record.get("benchmarks"):
        found = benchmarks.all_figures(record).get(name)
    return number(found)


def coarsest(groups: Iterable[Group], name: str) -> float:
    """Return the largest `resolution` of a figure in these groups."""
    return max(resolution(run, name) for group in groups for run in group.different)


def resolution(run: Run, name: str) -> float:
    """Return the step between values of a figure: 1 / rows for a share of rows, about that for F1; 0 if unknown."""
    if (step := (run.record.get("resolutions") or {}).get(name)) is not None:  # of a score over tasks
        return step
    if result := benchmarks.result_of(run.record, name):
        items = benchmarks.items(result, name)
        return 1 / items if SHARE.search(name) and items else 0.0
    if not (match := IN_STEPS.fullmatch(name.removeprefix("merged_"))):
        return 0.0
    rows = number(((run.record.get("data_summary") or {}).get("rows") or {}).get(match[1]))
    asked = number(run.options.get("model.init_args.generate_samples"))  # rows that a language model answers
    if asked and match[2] == "exact_match":
        rows = min(rows or asked, asked)
    return 1 / rows if rows else 0.0


def _requested(name: str, runs: Sequence[Run], directions: Mapping[str, str]) -> Figure:
    """Return a requested column; raise if no run has the figure, except for a target, which may never be reached."""
    if not TARGET.fullmatch(name) and all(value(run.record, name) is None for run in runs):
        names = {
            key
            for run in runs
            for key in (*run.record, *(run.record.get("other_metrics") or ()), *benchmarks.all_figures(run.record))
        }
        there = sorted(key for key in names if any(value(run.record, key) is not None for run in runs))
        guess = did_you_mean(name, there)
        raise UserError(f"--figures {name}: no run has it{guess}; the runs have {', '.join(there)}.")
    return figure(name, directions)


def _seconds_to(validations: Any, metric: str, goal: float, sign: int) -> float | None:
    for row in validations or ():
        reached = number(row.get(metric))
        if reached is not None and sign * reached >= sign * goal:
            return number(row.get("train_seconds"))
    return None

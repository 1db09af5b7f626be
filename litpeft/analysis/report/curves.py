"""Read the curves of a run (values by optimizer step) from its file of curves, or event files, and its record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from litpeft.analysis.comparison import Run
from litpeft.analysis.comparison.benchmarks import columns
from litpeft.runs.benchmark_results import scores
from litpeft.runs.curve_file import read_lines
from litpeft.runs.record import FIELDS

TAGS = "train_loss", "val_loss", "val_accuracy", "lr", "train_tokens_per_second", "train_samples_per_second"
MOST_POINTS, FEWEST_POINTS = 500, 20  # points drawn per line
MOST_DRAWN = 20_000  # points drawn per chart, as far as FEWEST_POINTS allow: a page of 500 runs stays below 8 MiB

Curve = dict[int, float]  # number of optimizer steps -> value


@dataclass(frozen=True)
class Band:
    """Mean and interval (from `low` to `high`) of several curves at their common steps."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def read_curves(run: Run) -> dict[str, Curve]:
    """Return the curves of a run by tag; validations and benchmarks come from its record if it has them.

    A run of an older version has TensorBoard's event files; if this version has resumed it, its file of curves replaces
    them from the first step in it. Values logged after the last step are left out.
    """
    curves, whole = _own_curves(run.folder)
    if not whole:
        first = min((step for curve in curves.values() for step in curve), default=math.inf)
        for tag, curve in _event_curves(run.folder).items():
            curves[tag] = {step: value for step, value in curve.items() if step < first} | curves[tag]
    ended = run.record.get("steps") or math.inf
    curves = {tag: {step: value for step, value in curve.items() if step <= ended} for tag, curve in curves.items()}
    return {tag: dict(sorted(curve.items())) for tag, curve in (curves | _recorded(run)).items() if curve}


def _own_curves(folder: Path) -> tuple[dict[str, Curve], bool]:
    """Return the curves in the run's own file, and whether it begins with the run."""
    curves: dict[str, Curve] = {tag: {} for tag in TAGS}
    whole = False
    for line in read_lines(folder):
        whole |= line["step"] == 0
        for tag, value in line["values"].items():
            if tag in curves and isinstance(value, (int, float)) and math.isfinite(value):
                curves[tag][line["step"]] = value
    return curves, whole


def _event_curves(folder: Path) -> dict[str, Curve]:
    """Return the curves in TensorBoard's event files.

    A resumed run has several: a later file replaces the earlier ones from its first training step.
    """
    curves: dict[str, Curve] = {tag: {} for tag in TAGS}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=_start_time):
        found: dict[str, Curve] = {}
        for tag, step, value in _scalars(path):
            found.setdefault(tag, {})[step + 1] = value  # Lightning counts from 0
        if resumed := found.get("train_loss"):
            for tag, curve in curves.items():
                curves[tag] = {step: value for step, value in curve.items() if step < min(resumed)}
        for tag, curve in found.items():
            curves[tag] |= curve
    return curves


def band(curves: Sequence[Curve], interval: Callable[[Sequence[float]], tuple[float, float]]) -> Band:
    """Return the mean and interval of curves at their common steps."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[step] for curve in curves] for step in steps]
    ends = [interval(at) if len(at) > 1 else (at[0], at[0]) for at in values]
    return Band(steps, [fmean(at) for at in values], [low for low, _ in ends], [high for _, high in ends])


def points_of_each(lines: int) -> int:
    """Return how many points of each of so many lines are drawn at most."""
    return max(FEWEST_POINTS, min(MOST_POINTS, MOST_DRAWN // max(1, lines)))


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Return the indices of the points to draw: all, or the minimum and maximum of each of `most / 2` segments.

    This keeps spikes and invents no values.
    """
    if len(values) <= most:
        return list(range(len(values)))
    drawn = {0, len(values) - 1}
    segments = most // 2 - 1
    for i in range(segments):
        segment = range(i * len(values) // segments, (i + 1) * len(values) // segments)
        drawn |= {min(segment, key=values.__getitem__), max(segment, key=values.__getitem__)}
    return sorted(drawn)


def _start_time(path: Path) -> tuple[int, str]:
    """Return the sort key of an event file: the start time in its name, then the name."""
    second = path.name.split(".")[3]
    return (int(second) if second.isdigit() else 0, path.name)


def _scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    """Yield (tag, step, value) for the finite values of `TAGS`; a truncated file is read up to its end."""
    # imported here because they take a third of a second and are only needed for curves
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for raw in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(raw)
        for value in event.summary.value:
            if value.tag in TAGS:
                number = (
                    value.simple_value if value.HasField("simple_value") else next(iter(value.tensor.float_val), None)
                )
                if number is not None and math.isfinite(number):
                    yield value.tag, event.step, number


def _recorded(run: Run) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for evaluation in run.record.get("benchmarks") or ():
        scored = scores(evaluation)
        for tag in columns([run]):
            if tag in scored:
                found.setdefault(tag, {})[evaluation["step"]] = scored[tag]
    for validation in run.record.get("validations") or ():
        for tag, value in validation.items():
            drawn = tag in TAGS or (tag.startswith("val_") and tag not in FIELDS)
            if drawn and value is not None:
                found.setdefault(tag, {})[validation["step"]] = value
    return found

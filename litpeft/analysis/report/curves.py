"""What a run logged on its way: scalars by step, from its TensorBoard event files and its record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from litpeft.analysis.comparison import Run
from litpeft.analysis.comparison.benchmarks import columns
from litpeft.runs.benchmark_results import scores

TAGS = "train_loss", "val_loss", "val_accuracy", "lr", "train_tokens_per_second"
MOST_POINTS = 500  # of a line: a screen has not many more columns

Curve = dict[int, float]  # optimizer steps done -> value


@dataclass(frozen=True)
class Band:
    """The mean of several curves, where all of them have a point.

    Attributes:
        steps: of the points.
        mean: at each.
        low: end of the interval at each; as `mean` where there is one curve.
        high: the other end.
    """

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def read_curves(run: Run) -> dict[str, Curve]:
    """The curves of a run by tag. Validations and benchmarks are taken from its record, where it has them.

    A run that was resumed has several files: from the first training step of a later one on, the earlier ones are of
    steps that were lost and do not count. What is logged once the run has ended is its record and no curve.
    """
    curves: dict[str, Curve] = {tag: {} for tag in TAGS}
    for path in sorted(run.folder.glob("events.out.tfevents.*"), key=_started):
        found: dict[str, Curve] = {}
        for tag, step, value in _scalars(path):
            found.setdefault(tag, {})[step + 1] = value  # Lightning counts from 0
        if begun := found.get("train_loss"):
            for tag, curve in curves.items():
                curves[tag] = {step: value for step, value in curve.items() if step < min(begun)}
        for tag, curve in found.items():
            curves[tag] |= curve
    ended = run.record.get("steps") or math.inf
    curves = {tag: {step: value for step, value in curve.items() if step <= ended} for tag, curve in curves.items()}
    return {tag: dict(sorted(curve.items())) for tag, curve in (curves | _measured(run)).items() if curve}


def band(curves: Sequence[Curve], interval: Callable[[Sequence[float]], tuple[float, float]]) -> Band:
    """Mean and interval of the curves at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[step] for curve in curves] for step in steps]
    ends = [interval(at) if len(at) > 1 else (at[0], at[0]) for at in values]
    return Band(steps, [fmean(at) for at in values], [low for low, _ in ends], [high for _, high in ends])


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Indices of the points to draw: all, or the lowest and the highest of each of `most / 2` stretches.

    So a spike is kept, and no value is shown that was not logged.
    """
    if len(values) <= most:
        return list(range(len(values)))
    kept = {0, len(values) - 1}
    stretches = most // 2 - 1
    for i in range(stretches):
        stretch = range(i * len(values) // stretches, (i + 1) * len(values) // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def _started(path: Path) -> tuple[int, str]:
    """Order of files by the second in their names; those of one second by the rest."""
    second = path.name.split(".")[3]
    return (int(second) if second.isdigit() else 0, path.name)


def _scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    """Finite (tag, step, value) of the wanted tags; a file that was cut short ends where it is cut."""
    # not at the head of the file: they take a third of a second, and a page without curves needs none of it
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for raw in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(raw)
        for value in event.summary.value:
            if value.tag in TAGS:
                one = value.simple_value if value.HasField("simple_value") else next(iter(value.tensor.float_val), None)
                if one is not None and math.isfinite(one):
                    yield value.tag, event.step, one


def _measured(run: Run) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for evaluation in run.record.get("benchmarks") or ():
        scored = scores(evaluation)
        for tag in columns([run]):
            if tag in scored:
                found.setdefault(tag, {})[evaluation["step"]] = scored[tag]
    for validation in run.record.get("validations") or ():
        for tag in ("val_loss", "val_accuracy"):
            if validation.get(tag) is not None:
                found.setdefault(tag, {})[validation["step"]] = validation[tag]
    return found

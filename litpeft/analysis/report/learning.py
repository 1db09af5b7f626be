"""Curves over the steps of training: a thin line a seed, the mean in bold, and a band for its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litpeft.analysis.comparison import Comparison
from litpeft.analysis.comparison.figures import figure
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.report.chart import Chart, layout, literal
from litpeft.analysis.report.curves import MOST_POINTS, Band, Curve, band, read_curves, thinned
from litpeft.analysis.report.sentences import UNKNOWN, counted, plain_title, told
from litpeft.analysis.report.style import look
from litpeft.analysis.stats import mean_interval

FULL = 2  # groups whose bands are drawn in full; those of more are fainter
FEW = 12  # points are marked in lines of so many
MOST_ROWS = 8  # of a group in a chart's table


@dataclass(frozen=True)
class Kind:
    """A chart of curves: the tag it shows, its title, how a hover shows a number, and what there is to know of it."""

    tag: str
    title: str
    form: str
    note: str = ""


KINDS = (
    Kind("train_loss", "Training loss", ".4f", "A point is the loss of one batch, dropout on; nothing is smoothed."),
    Kind("val_loss", "Validation loss", ".4f"),
    Kind("val_accuracy", "Validation accuracy", ".2f"),
    Kind("lr", "Learning rate", ".3g", "What the optimizer was given for its first group of parameters."),
    Kind(
        "train_tokens_per_second",
        "Tokens a second over time",
        ",.0f",
        "Real tokens, padding not counted, since the point before.",
    ),
)


@dataclass(frozen=True)
class Line:
    """A curve of one run: of which group, by which name, and whether the run ended well."""

    group: int
    label: str
    name: str
    finished: bool
    curve: Curve


def read_lines(comparison: Comparison) -> dict[str, list[Line]]:
    """All curves by tag, in the order of groups; unfinished runs have some too."""
    lines: dict[str, list[Line]] = {}
    for number, group in enumerate(comparison.groups):
        for run in [*group.runs, *group.failed]:
            name = "no seed" if run.seed is None else f"seed {run.seed}"
            finished = run in group.runs
            name += "" if finished else f" ({run.record['status']})"
            for tag, curve in read_curves(run).items():
                lines.setdefault(tag, []).append(Line(number, group.label, name, finished, curve))
    return lines


def curve_charts(lines: Mapping[str, Sequence[Line]]) -> dict[str, Chart]:
    """By tag; of tags that no run has logged, none. What has no kind of its own is a score of a benchmark."""
    named = {kind.tag: kind for kind in KINDS}
    kinds = [*KINDS, *(_benchmark(tag) for tag in lines if tag not in named)]
    return {kind.tag: _chart(kind, lines[kind.tag]) for kind in kinds if kind.tag in lines}


def _benchmark(tag: str) -> Kind:
    return Kind(
        tag,
        f"Benchmark {plain_title(figure(tag).title)}",
        ".2f" if unit(tag)[1] == "%" else ".4f",
        "Measured on the live model.",
    )


def _chart(kind: Kind, lines: Sequence[Line]) -> Chart:
    traces, rows, row_groups = [], [], []
    fade = min(1.0, FULL / len({line.group for line in lines}))
    for group in dict.fromkeys(line.group for line in lines):
        own = [line for line in lines if line.group == group]
        mean = _mean([line for line in own if line.finished])
        traces += _traces(kind, own, mean, fade)
        rows += _rows(kind.tag, own[0], mean)
        row_groups += [group] * (len(rows) - len(row_groups))
    shown = unit(kind.tag)[1]
    axis = {"title": kind.title.lower() + (f", {shown}" if shown else "")}
    axis |= {"exponentformat": "power"} if kind.tag == "lr" else {"range": _range(kind.tag, lines)}
    return Chart(
        f"curve-{kind.tag}",
        kind.title,
        _caption(kind, lines),
        traces,
        layout({"title": "optimizer steps", "rangemode": "tozero"}, axis),
        ["group", "optimizer steps", kind.title.lower(), "95 % interval"],
        rows,
        row_groups,
    )


def _range(tag: str, lines: Sequence[Line]) -> list[float]:
    """Of all lines; a band of few seeds may go beyond, and would press them flat."""
    low, high = (end(end(line.curve.values()) for line in lines) for end in (min, max))
    edge = (high - low) * 0.06 or abs(high) * 0.1
    return _scaled(tag, [low - edge, high + edge])


def _mean(lines: Sequence[Line]) -> Band | None:
    """Of a group; None where there are no two runs with a step in common."""
    found = band([line.curve for line in lines], lambda values: mean_interval(values)[1:])
    return found if len(lines) > 1 and found.steps else None


def _caption(kind: Kind, lines: Sequence[Line]) -> str:
    groups = [line.group for line in lines]
    longest = max(len(line.curve) for line in lines)
    words = [kind.note]
    if len(set(groups)) < len(groups):
        words.append(
            "Thin: a line a seed. Bold: their mean where all have a point; band: its 95 % interval, "
            "cut where it leaves the range of the lines."
        )
    if longest == 1:
        words.append("There was one validation a run, at its end.")
    if longest > MOST_POINTS:
        words.append(
            f"Of up to {longest:,} logged points a line at most {MOST_POINTS} are drawn: the lowest and the highest of "
            "each stretch; none is averaged."
        )
    return " ".join(filter(None, words))


def _traces(kind: Kind, lines: Sequence[Line], mean: Band | None, fade: float) -> list[dict[str, Any]]:
    """Band, thin lines, and the mean on top; without a mean the lines themselves are bold.

    Args:
        kind: of the chart.
        lines: of one group.
        mean: of them.
        fade: opacity of bands: many over each other would hide the lines.
    """
    first = lines[0]
    traces = [
        _trace(kind, line, list(line.curve), list(line.curve.values())) if mean is None else _thin(kind, line)
        for line in lines
    ]
    if mean is None:
        return traces
    runs = sum(line.finished for line in lines)
    bold = _trace(kind, first, mean.steps, mean.mean, f"mean of {counted(runs, 'seed')}")
    return [_band(kind, first, mean) | {"opacity": fade}, *traces, bold]


def _thin(kind: Kind, line: Line) -> dict[str, Any]:
    trace = _trace(kind, line, list(line.curve), list(line.curve.values()))
    return trace | {
        "opacity": 0.35,
        "line": trace["line"] | {"width": 1, "dash": "solid"},
        "marker": trace["marker"] | {"size": 4},
    }


def _trace(
    kind: Kind, line: Line, steps: Sequence[int], values: Sequence[float], name: str | None = None
) -> dict[str, Any]:
    seen, kept = look(line.group), thinned(values)
    about = f"<b>{literal(line.label)}</b><br>{literal(name or line.name)}"
    shown = unit(kind.tag)[1]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(kept) <= FEW else "lines",
        "name": literal(line.label),
        "x": [steps[i] for i in kept],
        "y": _scaled(kind.tag, [values[i] for i in kept]),
        "line": {"color": seen.colour, "width": 2.5, "dash": seen.dash},
        "marker": {"symbol": seen.marker, "size": 9, "color": seen.colour},
        "hovertemplate": f"{about}<br>step %{{x:,}}: %{{y:{kind.form}}} {shown}<extra></extra>",
        "meta": {"group": line.group},
    }


def _band(kind: Kind, line: Line, mean: Band) -> dict[str, Any]:
    """There along the upper end, and back along the lower. One step has no width: its band is a bar."""
    seen, kept = look(line.group), thinned(mean.mean)
    if len(kept) == 1:
        at = _scaled(kind.tag, [mean.mean[0], mean.high[0] - mean.mean[0], mean.mean[0] - mean.low[0]])
        error = {"type": "data", "symmetric": False, "array": at[1:2], "arrayminus": at[2:], "color": seen.colour}
        drawn = {"x": [mean.steps[0]], "y": at[:1], "error_y": error, "mode": "markers", "marker": {"size": 1}}
    else:
        there = [(mean.steps[i], mean.high[i]) for i in kept]
        back = [(mean.steps[i], mean.low[i]) for i in reversed(kept)]
        x, y = zip(*there, *back, strict=True)
        drawn = {"x": list(x), "y": _scaled(kind.tag, y), "fill": "toself", "fillcolor": seen.band, "mode": "none"}
    return {"type": "scatter", "name": literal(line.label), "hoverinfo": "skip", "meta": {"group": line.group}, **drawn}


def _rows(tag: str, first: Line, mean: Band | None) -> list[list[str]]:
    """A few steps of the mean, or of the first run where there is no mean."""
    shown = mean or band([first.curve], lambda values: (values[0], values[0]))
    at = range(len(shown.steps))
    kept = sorted({round(i * (len(at) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)})
    label = first.label if mean else f"{first.label}, {first.name}"
    return [
        [
            label,
            f"{shown.steps[i]:,}",
            told(tag, shown.mean[i]),
            f"{told(tag, shown.low[i])} to {told(tag, shown.high[i])}" if mean else UNKNOWN,
        ]
        for i in kept
    ]


def _scaled(tag: str, values: Sequence[float]) -> list[float]:
    """In the unit of the axis, with the digits that can be seen."""
    return [float(f"{value * unit(tag)[0]:.5g}") for value in values]

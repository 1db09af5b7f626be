"""Charts of curves over optimizer steps: thin lines for seeds, a bold line for their mean, a band for its 95 % CI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litpeft.analysis.comparison import Comparison
from litpeft.analysis.comparison.figures import figure, resolution
from litpeft.analysis.comparison.margins import possible, within
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.comparison.sentences import UNKNOWN, counted, plain_title, value_text
from litpeft.analysis.report.chart import Chart, group_trace, layout, literal, scaled
from litpeft.analysis.report.curves import Band, Curve, band, points_of_each, read_curves, thinned
from litpeft.analysis.report.style import look
from litpeft.analysis.stats import mean_interval

FULL = 2  # up to this number of groups, bands have full opacity
FEW = 12  # lines with at most this number of points have markers
MOST_ROWS = 8  # rows of a group in the table of a chart


@dataclass(frozen=True)
class Kind:
    """A chart of curves: tag, title, number format of the hover text, and a note for the caption."""

    tag: str
    title: str
    form: str
    note: str = ""


KINDS = (
    Kind("train_loss", "Training loss", ".4f", "Each point is the loss of one batch, with dropout, not smoothed."),
    Kind("val_loss", "Validation loss", ".4f"),
    Kind("val_accuracy", "Validation accuracy", ".2f"),
    Kind("lr", "Learning rate", ".3g", "Learning rate of the first parameter group."),
    Kind(
        "train_tokens_per_second",
        "Tokens per second over time",
        ",.0f",
        "Without padding, measured since the previous point.",
    ),
    Kind("train_samples_per_second", "Images per second over time", ",.0f", "Measured since the previous point."),
)


@dataclass(frozen=True)
class Line:
    """A curve of one run, with the group, the name of the run, and whether the run finished."""

    group: int
    label: str
    name: str
    finished: bool
    curve: Curve
    resolution: float = 0.0  # smallest difference between two values: 1 / rows for an accuracy


def read_lines(comparison: Comparison) -> dict[str, list[Line]]:
    """Return the curves of all runs, unfinished ones included, by tag."""
    lines: dict[str, list[Line]] = {}
    for number, group in enumerate(comparison.groups):
        # curves of different tasks have no common scale
        for run in [*(run for run in group.runs if not run.parts), *group.failed]:
            name = "no seed" if run.seed is None else f"seed {run.seed}"
            finished = run in group.runs
            name += "" if finished else f" ({run.record['status']})"
            for tag, curve in read_curves(run).items():
                line = Line(number, group.label, name, finished, curve, resolution(run, tag))
                lines.setdefault(tag, []).append(line)
    return lines


def curve_charts(lines: Mapping[str, Sequence[Line]]) -> dict[str, Chart]:
    """Return a chart for each tag; tags not in `KINDS` are validation metrics or benchmark scores."""
    named = {kind.tag: kind for kind in KINDS}
    others = [tag for tag in lines if tag not in named]
    kinds = [*KINDS, *(_metric(tag) if tag.startswith("val_") else _benchmark(tag) for tag in others)]
    return {kind.tag: _chart(kind, lines[kind.tag]) for kind in kinds if kind.tag in lines}


def _metric(tag: str) -> Kind:
    title = plain_title(figure(tag).title)
    return Kind(tag, title[:1].upper() + title[1:], ".2f" if unit(tag)[1] == "%" else ".4f")


def _benchmark(tag: str) -> Kind:
    return Kind(
        tag,
        f"Benchmark {plain_title(figure(tag).title)}",
        ".2f" if unit(tag)[1] == "%" else ".4f",
        "Measured during training.",
    )


def _chart(kind: Kind, lines: Sequence[Line]) -> Chart:
    traces, rows, row_groups = [], [], []
    fade = min(1.0, FULL / len({line.group for line in lines}))
    most = points_of_each(len(lines))
    for group in dict.fromkeys(line.group for line in lines):
        members = [line for line in lines if line.group == group]
        mean = _mean(kind.tag, [line for line in members if line.finished])
        traces += _traces(kind, members, mean, fade, most)
        rows += _rows(kind.tag, members[0], mean)
        row_groups += [group] * (len(rows) - len(row_groups))
    shown = unit(kind.tag)[1]
    axis = {"title": kind.title.lower() + (f", {shown}" if shown else "")}
    axis |= {"exponentformat": "power"} if kind.tag == "lr" else {"range": _range(kind.tag, lines)}
    return Chart(
        f"curve-{kind.tag}",
        kind.title,
        _caption(kind, lines, most),
        traces,
        layout({"title": "optimizer steps"}, axis),
        ["group", "optimizer steps", kind.title.lower(), "95 % CI"],
        rows,
        row_groups,
    )


def _range(tag: str, lines: Sequence[Line]) -> list[float]:
    """Return the axis range of the lines; a wide band of few seeds may exceed the range."""
    low, high = (end(end(line.curve.values()) for line in lines) for end in (min, max))
    edge = (high - low) * 0.06 or abs(high) * 0.1
    return _scaled(tag, [low - edge, high + edge])


def _mean(tag: str, lines: Sequence[Line]) -> Band | None:
    """Return the mean of a group, with no impossible value in its interval; None without two runs and common steps."""
    limits, step = possible(figure(tag)), max((line.resolution for line in lines), default=0.0)
    found = band([line.curve for line in lines], lambda values: within(mean_interval(values, step)[1:], limits))
    return found if len(lines) > 1 and found.steps else None


def _caption(kind: Kind, lines: Sequence[Line], most: int) -> str:
    groups = [line.group for line in lines]
    longest = max(len(line.curve) for line in lines)
    sentences = [kind.note]
    if len(set(groups)) < len(groups):
        sentences.append(
            "Thin lines: seeds. Bold line: mean over seeds. Band: 95 % CI of the mean, cut at the range of the lines."
        )
    if longest == 1 and kind.tag.startswith("val_"):
        sentences.append("Each run was validated once, at its end.")
    elif longest == 1 and kind in KINDS:
        sentences.append("Each run has one point: points come every trainer.log_every_n_steps.")
    if longest > most:
        sentences.append(
            f"At most {most} of up to {longest:,} points per line are drawn: the minimum and maximum of each "
            "segment, without averaging."
        )
    return " ".join(filter(None, sentences))


def _traces(kind: Kind, lines: Sequence[Line], mean: Band | None, fade: float, most: int) -> list[dict[str, Any]]:
    """Return the band, thin lines and mean of one group, or bold lines without a mean.

    Args:
        kind: what is drawn.
        lines: lines of the group.
        mean: mean of the finished runs.
        fade: opacity of bands.
        most: largest number of points of a line.
    """
    first = lines[0]
    traces = [
        _trace(kind, line, list(line.curve), list(line.curve.values()), most)
        if mean is None
        else _thin(kind, line, most)
        for line in lines
    ]
    if mean is None:
        return traces
    runs = sum(line.finished for line in lines)
    bold = _trace(kind, first, mean.steps, mean.mean, most, f"mean of {counted(runs, 'seed')}")
    return [_band(kind, first, mean, most) | {"opacity": fade}, *traces, bold]


def _thin(kind: Kind, line: Line, most: int) -> dict[str, Any]:
    trace = _trace(kind, line, list(line.curve), list(line.curve.values()), most)
    return trace | {
        "opacity": 0.2,  # the mean is what one should see; hovering over a seed names it
        "line": trace["line"] | {"width": 1, "dash": "solid"},
        "marker": trace["marker"] | {"size": 4},
    }


def _trace(
    kind: Kind, line: Line, steps: Sequence[int], values: Sequence[float], most: int, name: str | None = None
) -> dict[str, Any]:
    style, drawn = look(line.group), thinned(values, most)
    about = f"<b>{literal(line.label)}</b><br>{literal(name or line.name)}"
    shown = unit(kind.tag)[1]
    return group_trace(
        *(line.group, line.label, "lines+markers" if len(drawn) <= FEW else "lines", 9),
        x=[steps[i] for i in drawn],
        y=_scaled(kind.tag, [values[i] for i in drawn]),
        line={"color": style.colour, "width": 2.5, "dash": style.dash},
        hovertemplate=f"{about}<br>step %{{x:,}}: %{{y:{kind.form}}} {shown}<extra></extra>",
    )


def _band(kind: Kind, line: Line, mean: Band, most: int) -> dict[str, Any]:
    """Return the band as a closed outline, or as an error bar if there is only one step."""
    style, shown = look(line.group), thinned(mean.mean, most)
    if len(shown) == 1:
        at = _scaled(kind.tag, [mean.mean[0], mean.high[0] - mean.mean[0], mean.mean[0] - mean.low[0]])
        error = {"type": "data", "symmetric": False, "array": at[1:2], "arrayminus": at[2:], "color": style.colour}
        drawn = {"x": [mean.steps[0]], "y": at[:1], "error_y": error, "mode": "markers", "marker": {"size": 1}}
    else:
        upper = [(mean.steps[i], mean.high[i]) for i in shown]
        lower = [(mean.steps[i], mean.low[i]) for i in reversed(shown)]
        x, y = zip(*upper, *lower, strict=True)
        drawn = {"x": list(x), "y": _scaled(kind.tag, y), "fill": "toself", "fillcolor": style.band, "mode": "none"}
    return {"type": "scatter", "name": literal(line.label), "hoverinfo": "skip", "meta": {"group": line.group}, **drawn}


def _rows(tag: str, first: Line, mean: Band | None) -> list[list[str]]:
    """Return table rows with a few steps of the mean, or of the first run if there is no mean."""
    shown = mean or band([first.curve], lambda values: (values[0], values[0]))
    at = range(len(shown.steps))
    chosen = sorted({round(i * (len(at) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)})
    label = first.label if mean else f"{first.label}, {first.name}"
    return [
        [
            label,
            f"{shown.steps[i]:,}",
            value_text(tag, shown.mean[i]),
            f"{value_text(tag, shown.low[i])} to {value_text(tag, shown.high[i])}" if mean else UNKNOWN,
        ]
        for i in chosen
    ]


def _scaled(tag: str, values: Sequence[float]) -> list[float]:
    return [scaled(tag, value, 5) for value in values]

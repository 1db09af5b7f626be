"""Charts of quality against memory and speed, with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from litpeft.analysis.comparison import Comparison, Estimate, Figure
from litpeft.analysis.comparison.figures import value
from litpeft.analysis.comparison.sentences import counted, estimate_text, listed, plain_title, value_text
from litpeft.analysis.report.chart import MUTED, PAPER, TEXT, Chart, error_bars, group_trace, layout, literal, scaled
from litpeft.analysis.report.style import look

KINDS = {"memory": "Quality against memory", "speed": "Quality against speed"}
HEIGHT = 380


def tradeoff_charts(comparison: Comparison) -> list[Chart]:
    """Return charts of quality against memory and of quality against speed, if groups have both figures."""
    quality = next((figure for figure in comparison.figures if figure.kind == "quality" and figure.better), None)
    charts = []
    for kind, title in KINDS.items():
        costs = [figure for figure in comparison.figures if figure.kind == kind and figure.better]
        points = {figure: _points(comparison, figure, quality) for figure in costs} if quality else {}
        cost = max(points, key=lambda figure: len(points[figure]), default=None)  # the figure that most groups have
        if cost and points[cost]:
            charts.append(_chart(comparison, cost, quality, points[cost], f"quality-{kind}", title))
    return charts


def pareto_front(points: Mapping[int, tuple[float, float]], x: Figure, y: Figure) -> list[int]:
    """Return the numbers of the points that no other point dominates, sorted by x."""
    signs = [1 if figure.better == "higher" else -1 for figure in (x, y)]
    scores = {number: (signs[0] * at[0], signs[1] * at[1]) for number, at in points.items()}
    best = [n for n, score in scores.items() if not any(_dominates(other, score) for other in scores.values())]
    return sorted(best, key=lambda number: points[number])


def _dominates(other: tuple[float, float], score: tuple[float, float]) -> bool:
    return other != score and other[0] >= score[0] and other[1] >= score[1]


def _points(comparison: Comparison, x: Figure, y: Figure) -> dict[int, tuple[Estimate, Estimate]]:
    """Return the estimates of both figures by number of the group, for groups that have both."""
    return {
        number: (group.estimates[x.name], group.estimates[y.name])
        for number, group in enumerate(comparison.groups)
        if x.name in group.estimates and y.name in group.estimates
    }


def _chart(
    comparison: Comparison, x: Figure, y: Figure, points: Mapping[int, tuple[Estimate, Estimate]], name: str, title: str
) -> Chart:
    labels = {number: comparison.groups[number].label for number in points}
    front = pareto_front({number: (a.mean, b.mean) for number, (a, b) in points.items()}, x, y)
    traces = [_front_trace(front, points, x, y)] if len(front) > 1 else []
    traces += [_trace(labels[number], number, pair, x, y, front) for number, pair in points.items()]
    traces += _published(comparison.published, x, y)
    arrows = f"{'right' if x.better == 'higher' else 'left'} and {'up' if y.better == 'higher' else 'down'}"
    caption = (
        f"Better is {arrows}. Bars are 95 % CIs of the mean over seeds. Pareto front of the means (ringed markers, "
        f"dotted line): {listed([labels[n] for n in front])}."
    )
    rows = [
        [
            labels[n],
            *(estimate_text(f.name, e) for f, e in zip((x, y), pair, strict=True)),
            "yes" if n in front else "no",
        ]
        for n, pair in points.items()
    ]
    return Chart(
        name,
        title,
        caption,
        traces,
        layout({"title": x.title}, {"title": y.title}, HEIGHT),
        ["group", x.title, y.title, "on the Pareto front"],
        rows,
        list(points),
    )


def _trace(
    label: str, number: int, pair: tuple[Estimate, Estimate], x: Figure, y: Figure, front: Sequence[int]
) -> dict[str, Any]:
    colour, seeds = look(number).colour, counted(pair[1].count, "seed")
    lines = [f"<b>{literal(label)}</b>", *(_line(f, e) for f, e in zip((x, y), pair, strict=True)), seeds]
    bars = {axis: error_bars(figure.name, estimate) for axis, figure, estimate in zip("xy", (x, y), pair, strict=True)}
    errors = {f"error_{axis}": bar | {"color": colour, "thickness": 1.5, "width": 4} for axis, bar in bars.items()}
    trace = group_trace(
        *(number, label, "markers", 12),
        x=[scaled(x.name, pair[0].mean)],
        y=[scaled(y.name, pair[1].mean)],
        cliponaxis=False,
        hovertext=["<br>".join(lines)],
        hoverinfo="text",
        **errors,
    )
    trace["marker"]["line"] = {"width": 2 if number in front else 0, "color": TEXT}
    return trace


def _front_trace(
    front: Sequence[int], points: Mapping[int, tuple[Estimate, Estimate]], x: Figure, y: Figure
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [scaled(x.name, points[n][0].mean) for n in front],
        "y": [scaled(y.name, points[n][1].mean) for n in front],
        # steps instead of slopes: no group reaches a point between two groups
        "line": {"color": MUTED, "width": 1.5, "dash": "dot", "shape": "vh" if x.better == "higher" else "hv"},
        "hoverinfo": "skip",
        "meta": {"rows": list(front)},
    }


def _published(published: Mapping[str, Any] | None, x: Figure, y: Figure) -> list[dict[str, Any]]:
    """Return published results that have both figures, as hollow markers."""
    rows = [(row, value(row, x.name), value(row, y.name)) for row in (published or {}).get("rows") or ()]
    known = [(str(row.get("label", "")), a, b) for row, a, b in rows if a is not None and b is not None]
    if not known:
        return []
    hovers = [
        f"<b>{literal(label)}</b> (published)<br>{plain_title(x.title)}: {value_text(x.name, a)}"
        f"<br>{plain_title(y.title)}: {value_text(y.name, b)}"
        for label, a, b in known
    ]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "published",
            "x": [scaled(x.name, a) for _, a, _ in known],
            "y": [scaled(y.name, b) for _, _, b in known],
            "marker": {"symbol": "hexagon-open", "size": 11, "color": MUTED, "line": {"width": 1.5, "color": MUTED}},
            "hovertext": hovers,
            "hoverinfo": "text",
            "hoverlabel": {"bgcolor": PAPER},
        }
    ]


def _line(figure: Figure, estimate: Estimate) -> str:
    return f"{plain_title(figure.title)}: {estimate_text(figure.name, estimate)}"

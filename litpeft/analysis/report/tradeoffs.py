"""Quality against what it costs: a point a group with its intervals, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from litpeft.analysis.comparison import Comparison, Estimate, Figure
from litpeft.analysis.comparison.figures import value
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.report.chart import MUTED, PAPER, TEXT, Chart, layout, literal
from litpeft.analysis.report.sentences import counted, estimate_told, listed, plain_title, told
from litpeft.analysis.report.style import look

KINDS = {"memory": "Quality against memory", "speed": "Quality against speed"}
HEIGHT = 380


def tradeoff_charts(comparison: Comparison) -> list[Chart]:
    """One of quality and memory, one of quality and speed, as far as groups have both."""
    quality = next((figure for figure in comparison.figures if figure.kind == "quality" and figure.better), None)
    charts = []
    for kind, title in KINDS.items():
        costs = [figure for figure in comparison.figures if figure.kind == kind and figure.better]
        points = {figure: _points(comparison, figure, quality) for figure in costs} if quality else {}
        cost = max(points, key=lambda figure: len(points[figure]), default=None)  # the first of those most groups have
        if cost and points[cost]:
            charts.append(_chart(comparison, cost, quality, points[cost], f"against-{kind}", title))
    return charts


def pareto_front(points: Mapping[int, tuple[float, float]], x: Figure, y: Figure) -> list[int]:
    """Numbers of the points to which no other is better in one figure and as good in the other, by x."""
    signs = [1 if figure.better == "higher" else -1 for figure in (x, y)]
    scores = {number: (signs[0] * at[0], signs[1] * at[1]) for number, at in points.items()}
    best = [n for n, own in scores.items() if not any(_beats(other, own) for other in scores.values())]
    return sorted(best, key=lambda number: points[number])


def _beats(other: tuple[float, float], own: tuple[float, float]) -> bool:
    return other != own and other[0] >= own[0] and other[1] >= own[1]


def _points(comparison: Comparison, x: Figure, y: Figure) -> dict[int, tuple[Estimate, Estimate]]:
    """Groups that have both figures, by number."""
    return {
        number: (group.estimates[x.name], group.estimates[y.name])
        for number, group in enumerate(comparison.groups)
        if x.name in group.estimates and y.name in group.estimates
    }


def _chart(
    comparison: Comparison,
    x: Figure,
    y: Figure,
    points: Mapping[int, tuple[Estimate, Estimate]],
    name: str,
    title: str,
) -> Chart:
    labels = {number: comparison.groups[number].label for number in points}
    front = pareto_front({number: (a.mean, b.mean) for number, (a, b) in points.items()}, x, y)
    traces = [_front_trace(front, points, x, y)] if len(front) > 1 else []
    traces += [_trace(labels[number], number, pair, x, y, front) for number, pair in points.items()]
    traces += _published(comparison.published, x, y)
    arrows = f"{'right' if x.better == 'higher' else 'left'} and {'up' if y.better == 'higher' else 'down'}"
    caption = (
        f"Better lies {arrows}. Bars are 95 % intervals of the mean over seeds. On the Pareto front of all groups "
        f"(ringed, dotted line; by the means, noise not counted): {listed([labels[n] for n in front])}."
    )
    rows = [
        [
            labels[n],
            *(estimate_told(f.name, e) for f, e in zip((x, y), pair, strict=True)),
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
        ["group", x.title, y.title, "on the front"],
        rows,
        list(points),
    )


def _trace(
    label: str, number: int, pair: tuple[Estimate, Estimate], x: Figure, y: Figure, front: Sequence[int]
) -> dict[str, Any]:
    seen, seeds = look(number), counted(pair[1].count, "seed")
    lines = [f"<b>{literal(label)}</b>", *(_line(f, e) for f, e in zip((x, y), pair, strict=True)), seeds]
    bars = {axis: _bars(figure, estimate) for axis, figure, estimate in zip("xy", (x, y), pair, strict=True)}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": literal(label),
        "x": [_scaled(x, pair[0].mean)],
        "y": [_scaled(y, pair[1].mean)],
        **{f"error_{axis}": bar | {"color": seen.colour, "thickness": 1.5, "width": 4} for axis, bar in bars.items()},
        "marker": {
            "symbol": seen.marker,
            "size": 12,
            "color": seen.colour,
            "line": {"width": 2 if number in front else 0, "color": TEXT},
        },
        "cliponaxis": False,
        "hovertext": ["<br>".join(lines)],
        "hoverinfo": "text",
        "meta": {"group": number},
    }


def _front_trace(
    front: Sequence[int], points: Mapping[int, tuple[Estimate, Estimate]], x: Figure, y: Figure
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [_scaled(x, points[n][0].mean) for n in front],
        "y": [_scaled(y, points[n][1].mean) for n in front],
        # what lies between two groups is reached by neither: steps, no slope
        "line": {"color": MUTED, "width": 1.5, "dash": "dot", "shape": "vh" if x.better == "higher" else "hv"},
        "hoverinfo": "skip",
        "meta": {"rows": list(front)},
    }


def _published(published: Mapping[str, Any] | None, x: Figure, y: Figure) -> list[dict[str, Any]]:
    """What others measured, as hollow marks of no group, where they told both figures."""
    rows = [(row, value(row, x.name), value(row, y.name)) for row in (published or {}).get("rows") or ()]
    known = [(str(row.get("label", "")), a, b) for row, a, b in rows if a is not None and b is not None]
    if not known:
        return []
    hovers = [
        f"<b>{literal(label)}</b> (published)<br>{plain_title(x.title)}: {told(x.name, a)}"
        f"<br>{plain_title(y.title)}: {told(y.name, b)}"
        for label, a, b in known
    ]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "published",
            "x": [_scaled(x, a) for _, a, _ in known],
            "y": [_scaled(y, b) for _, _, b in known],
            "marker": {"symbol": "hexagon-open", "size": 11, "color": MUTED, "line": {"width": 1.5, "color": MUTED}},
            "hovertext": hovers,
            "hoverinfo": "text",
            "hoverlabel": {"bgcolor": PAPER},
        }
    ]


def _line(figure: Figure, estimate: Estimate) -> str:
    return f"{plain_title(figure.title)}: {estimate_told(figure.name, estimate)}"


def _bars(figure: Figure, estimate: Estimate) -> dict[str, Any]:
    if estimate.low is None or estimate.high is None:
        return {"type": "data", "array": [], "visible": False}
    up, down = estimate.high - estimate.mean, estimate.mean - estimate.low
    return {"type": "data", "symmetric": False, "array": [_scaled(figure, up)], "arrayminus": [_scaled(figure, down)]}


def _scaled(figure: Figure, amount: float) -> float:
    """In the unit of the figure's title, with the digits that can be seen."""
    return float(f"{amount * unit(figure.name)[0]:.6g}")

"""A chart of costs relative to the baseline: training time, peak memory and model size, the baseline is 100 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from litpeft.analysis.comparison import Comparison, Estimate
from litpeft.analysis.comparison.relative import ratio_text, ratios
from litpeft.analysis.comparison.sentences import plain_title
from litpeft.analysis.report.chart import MUTED, Chart, layout, literal
from litpeft.analysis.report.costs import group_axis
from litpeft.analysis.report.style import PARTS_LIGHT

SHOWN = (("train_seconds",), ("peak_reserved_bytes", "peak_tensor_bytes"), ("model_bytes",))  # the first that is known
BAR = 18  # height of a bar in pixels


def relative_chart(comparison: Comparison) -> Chart | None:
    """Return the chart; None without a baseline or without a figure of cost."""
    by_name = {figure.name: figure for figure in comparison.figures}
    chosen = [next((by_name[name] for name in names if name in by_name), None) for names in SHOWN]
    found = {figure: known for figure in chosen if figure and (known := ratios(comparison, figure))}
    if not found:
        return None
    labels = [group.label for group in comparison.groups]
    titles = [plain_title(figure.title) for figure in found]
    caption = (
        f"{comparison.baseline} is 100 %. Geometric means of the ratios of runs with the same seed; lines are 95 % "
        "CIs, cut at the edge."
    )
    return Chart(
        "relative",
        f"Costs relative to {comparison.baseline}",
        caption,
        [_bars(i, titles[i], known, labels) for i, known in enumerate(found.values())],
        _layout(comparison, list(found.values()), [literal(label) for label in labels]),
        ["group", *titles],
        [[label, *(ratio_text(known.get(n)) for known in found.values())] for n, label in enumerate(labels)],
        list(range(len(labels))),
        [(title, i) for i, title in enumerate(titles)],
    )


def _bars(place: int, title: str, known: Mapping[int, Estimate], labels: Sequence[str]) -> dict[str, Any]:
    hovers = [f"<b>{literal(labels[n])}</b><br>{title}: {ratio_text(each)}" for n, each in known.items()]
    ups = [0 if each.high is None else round(100 * (each.high - each.mean), 2) for each in known.values()]
    downs = [0 if each.low is None else round(100 * (each.mean - each.low), 2) for each in known.values()]
    error = {"type": "data", "symmetric": False, "array": ups, "arrayminus": downs}
    return {
        "type": "bar",
        "orientation": "h",
        "name": title,
        "x": [round(100 * each.mean, 2) for each in known.values()],
        "y": [literal(labels[number]) for number in known],
        "error_x": error | {"color": MUTED, "thickness": 1.2, "width": 3},
        "marker": {"color": PARTS_LIGHT[place]},
        "hovertext": hovers,
        "hoverinfo": "text",
        "meta": {"rows": list(known)},
    }


def _layout(comparison: Comparison, found: Sequence[Mapping[int, Estimate]], labels: Sequence[str]) -> dict[str, Any]:
    most = max(100 * each.mean for known in found for each in known.values())
    x = {"title": f"% of {comparison.baseline}", "range": [0, 1.08 * most]}
    height = round(90 + BAR * (len(found) + 0.6) * len(labels))
    line = {"type": "line", "x0": 100, "x1": 100, "yref": "paper", "y0": 0, "y1": 1}
    whole = line | {"line": {"color": MUTED, "width": 1, "dash": "dot"}}
    return layout(x, group_axis(labels), height, barmode="group", bargap=0.3, shapes=[whole])

"""A chart of what tuning found: quality against the value of the tuned option, for each group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litpeft.analysis.comparison import Comparison
from litpeft.analysis.comparison.figures import figure
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.comparison.results import Tried, Tuned
from litpeft.analysis.comparison.sentences import UNKNOWN, plain_title, value_text
from litpeft.analysis.report.chart import TEXT, Chart, group_trace, layout, literal, scaled
from litpeft.analysis.report.style import look


def tuning_chart(comparison: Comparison) -> Chart | None:
    """Return the chart; None without groups that tuned one numeric option, the same in all of them, by one metric."""
    searched = {
        number: found
        for number, group in enumerate(comparison.groups)
        if (found := comparison.tuned.get(group.label)) and len(found.tried) > 1 and found.metric
    }
    options = {tuple(each.values) for found in searched.values() for each in found.tried}
    metrics = {found.metric for found in searched.values()}
    if len(options) != 1 or len(metrics) != 1 or len(option := options.pop()) != 1:
        return None
    metric, name = metrics.pop() or "", option[0]
    values = [each.values[name] for found in searched.values() for each in found.tried]
    if not all(isinstance(value, (int, float)) and value > 0 for value in values):
        return None
    short, title = name.rpartition(".")[2], plain_title(figure(metric).title)
    traces = [
        _trace(number, comparison.groups[number].label, found, name, metric) for number, found in searched.items()
    ]
    rows = [
        [
            comparison.groups[number].label,
            f"{each.values[name]:g}",
            _shown(metric, each),
            _chosen(found, each.values),
        ]
        for number, found in searched.items()
        for each in found.tried
    ]
    seeds = len(next(iter(searched.values())).seeds)
    caption = (
        f"Mean over {seeds} tuning seed{'' if seeds == 1 else 's'}, which the results do not use. Ringed: the value "
        "that the group chose. A choice at the edge of its values may not be the best."
    )
    axes = {"title": short, "type": "log", "exponentformat": "power"}, {"title": figure(metric).title}
    columns = ["group", short, figure(metric).title, "chosen"]
    groups = [number for number, found in searched.items() for _ in found.tried]
    return Chart(
        "tuning",
        f"{title[:1].upper()}{title[1:]} against {short}",
        caption,
        traces,
        layout(*axes),
        columns,
        rows,
        groups,
    )


def _trace(number: int, label: str, found: Tuned, name: str, metric: str) -> dict[str, Any]:
    known = sorted((each.values[name], each.mean) for each in found.tried if each.mean is not None)
    style = look(number)
    form = ".2f" if unit(metric)[1] == "%" else ".4f"
    trace = group_trace(
        *(number, label, "lines+markers", 9),
        x=[value for value, _ in known],
        y=[scaled(metric, mean) for _, mean in known],
        line={"color": style.colour, "width": 1.5, "dash": style.dash},
        hovertemplate=f"<b>{literal(label)}</b><br>{name.rpartition('.')[2]} %{{x}}: %{{y:{form}}}<extra></extra>",
    )
    chosen = (found.chosen or {}).get(name)
    trace["marker"]["line"] = {"width": [2.5 if value == chosen else 0 for value, _ in known], "color": TEXT}
    return trace


def _shown(metric: str, tried: Tried) -> str:
    if tried.mean is None:
        return "not tried" if tried.runs is None else UNKNOWN
    return value_text(metric, tried.mean)


def _chosen(found: Tuned, values: Mapping[str, Any]) -> str:
    return "yes" if found.chosen == dict(values) else ""

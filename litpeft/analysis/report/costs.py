"""Charts of memory by phase and kind of tensor, throughput, step time, and time to a target."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from litpeft.analysis.comparison import Comparison, Figure, Run
from litpeft.analysis.comparison.figures import figure
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.comparison.sentences import UNKNOWN, estimate_text, plain_title, value_text
from litpeft.analysis.report.chart import PAPER, Chart, error_bars, group_trace, layout, literal, scaled
from litpeft.analysis.report.style import PARTS_LIGHT, look

PHASES = "load", "first_step", "train", "validate", "save"
PARTS = "data_wait", "forward", "backward", "optimizer"  # parts of a step
RATES = "train_tokens_per_second", "train_samples_per_second", "step_seconds_p50", "train_seconds"
SYSTEM_PEAKS = {"peak_allocated_bytes": "GPU memory", "peak_rss_bytes": "host memory"}
LONGEST = 22  # maximum characters of a label on an axis
BAR = 30  # height of one row in pixels


def memory_charts(comparison: Comparison) -> list[Chart]:
    """Return one chart per phase with tensor memory by kind of tensor, stacked; all charts have the same scale."""
    splits = {phase: _means(comparison, lambda run, at=phase: _phase(run, at).get("tensor_bytes")) for phase in PHASES}
    most = max((sum(split.values()) for groups in splits.values() for split in groups.values()), default=0)
    categories = list(dict.fromkeys(name for groups in splits.values() for split in groups.values() for name in split))
    charts = []
    for phase, groups in splits.items():
        if groups:
            title = phase.replace("_", " ")
            caption = f"Live tensors at the peak of the phase “{title}” by kind; means over runs."
            if phase == "load":
                caption = "Live tensors after loading by kind; means over runs."
            chart = _stacked(comparison, f"memory-{phase}", f"Memory: {title}", caption, categories, groups, "_bytes")
            chart.layout["xaxis"]["range"] = [0, most * unit("_bytes")[0] * 1.04]
            charts.append(chart)
    return charts


def peak_chart(comparison: Comparison) -> Chart | None:
    """Return a chart of peak memory by phase: GPU memory if known, else host memory."""
    known = {name: _peaks(comparison, name) for name in SYSTEM_PEAKS}
    name = next((name for name, peaks in known.items() if peaks), None)
    if name is None:
        return None
    peaks = known[name]
    shown = unit(name)[1]
    phases = [phase for phase in PHASES if any(phase in known for known in peaks.values())]
    traces, rows = [], []
    for number, known in peaks.items():
        label, style = comparison.groups[number].label, look(number)
        traces.append(
            group_trace(
                *(number, label, "lines+markers", 9),
                x=[phase.replace("_", " ") for phase in phases],
                y=[scaled(name, known[phase]) if phase in known else None for phase in phases],
                line={"color": style.colour, "width": 1.5, "dash": style.dash},
                hovertemplate=f"<b>{literal(label)}</b><br>%{{x}}: %{{y:,.1f}} {shown}<extra></extra>",
            )
        )
        rows.append([label, *(value_text(name, known.get(phase)) for phase in phases)])
    return Chart(
        "memory-peaks",
        f"Peak {SYSTEM_PEAKS[name]} by phase",
        "As reported by the allocator or the operating system, not only tensors. Means over runs.",
        traces,
        layout({}, {"title": f"peak, {shown}", "rangemode": "tozero"}),
        ["group", *(phase.replace("_", " ") for phase in phases)],
        rows,
        list(peaks),
    )


def step_chart(comparison: Comparison) -> Chart | None:
    """Return a chart of the parts of a step."""
    parts = _means(comparison, lambda run: run.record.get("step_split_seconds_p50"))
    caption = (
        "Median seconds of each part of sampled steps, means over runs. The medians need not add up to the median step."
    )
    return _stacked(comparison, "step-split", "Parts of a step", caption, PARTS, parts, "_seconds") if parts else None


def estimate_charts(comparison: Comparison, names: Sequence[str]) -> list[Chart]:
    """Return a chart of means with intervals for each of these figures that is known."""
    known = {name for group in comparison.groups for name in group.estimates}
    return [_dots(comparison, figure(name)) for name in names if name in known]


def _dots(comparison: Comparison, shown: Figure) -> Chart:
    traces, rows = [], []
    for number, group in enumerate(comparison.groups):
        estimate, label = group.estimates.get(shown.name), literal(group.label)
        rows.append([group.label, estimate_text(shown.name, estimate), str(estimate.count if estimate else 0)])
        if estimate is None:
            continue
        traces.append(
            group_trace(
                *(number, group.label, "markers", 11),
                x=[scaled(shown.name, estimate.mean)],
                y=[label],
                error_x=error_bars(shown.name, estimate) | {"color": look(number).colour, "width": 5},
                hovertext=[f"<b>{label}</b><br>{estimate_text(shown.name, estimate)}"],
                hoverinfo="text",
            )
        )
    direction = {"higher": "Higher is better.", "lower": "Lower is better."}.get(shown.better or "", "")
    missing = [row[0] for row in rows if row[1] == UNKNOWN]
    caption, title = f"Mean over seeds with 95 % CI. {direction}", plain_title(shown.title)
    drawn = _rows_layout(shown.title, [trace["name"] for trace in traces])
    if shown.kind in ("quality", "benchmark"):  # differences are small compared with the distance to 0
        drawn["xaxis"]["rangemode"] = "normal"
    return Chart(
        f"figure-{shown.name}".replace(".", "-"),
        title[:1].upper() + title[1:],
        caption + (f" Unknown or not reached: {', '.join(missing)}." if missing else ""),
        traces,
        drawn,
        ["group", shown.title, "runs"],
        rows,
        list(range(len(rows))),
    )


def _stacked(
    comparison: Comparison,
    name: str,
    title: str,
    caption: str,
    parts: Sequence[str],
    groups: Mapping[int, Mapping[str, float]],
    figure_name: str,
) -> Chart:
    """Return a chart with one bar per group and one colour per part."""
    shown = unit(figure_name)[1]
    labels = {number: comparison.groups[number].label for number in groups}
    traces, used = [], []
    for i, part in enumerate(parts):
        if not any(known.get(part) for known in groups.values()):
            continue
        part_name = part.replace("_", " ")
        used.append((part_name, i))
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": part_name,
                "x": [scaled(figure_name, known.get(part, 0)) for known in groups.values()],
                "y": [literal(label) for label in labels.values()],
                "marker": {"color": PARTS_LIGHT[i % len(PARTS_LIGHT)], "line": {"width": 1, "color": PAPER}},
                "hovertemplate": f"<b>%{{y}}</b><br>{part_name}: %{{x:,.4~g}} {shown}<extra></extra>",
                "meta": {"rows": list(groups)},
            }
        )
    totals = [sum(known.values()) for known in groups.values()]
    rows = [
        [labels[number], *(value_text(figure_name, known.get(part)) for part in parts), value_text(figure_name, total)]
        for (number, known), total in zip(groups.items(), totals, strict=True)
    ]
    heads = ["group", *(part.replace("_", " ") for part in parts), "sum"]
    drawn = _rows_layout(shown, [literal(label) for label in labels.values()]) | {"barmode": "stack", "bargap": 0.35}
    return Chart(name, title, caption, traces, drawn, heads, rows, list(groups), used)


def _rows_layout(title: str, labels: Sequence[str]) -> dict[str, Any]:
    """Return the layout of a chart with one row per group; long labels are shortened on the axis."""
    x = {"title": title, "rangemode": "tozero"}
    return layout(x, group_axis(labels), max(150, 80 + BAR * len(labels)))


def group_axis(labels: Sequence[str]) -> dict[str, Any]:
    """Return a vertical axis of groups, the first at the top; long labels are shortened."""
    axis = {"type": "category", "autorange": "reversed", "showgrid": False, "ticklabelstandoff": 6}
    return axis | {"tickmode": "array", "tickvals": list(labels), "ticktext": [_cut(label) for label in labels]}


def _cut(label: str) -> str:
    """Shorten a label on an axis."""
    text = html.unescape(label)
    return literal(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[1 - LONGEST // 2 :]}")


def _means(
    comparison: Comparison, split_of: Callable[[Run], Mapping[str, float | None] | None]
) -> dict[int, dict[str, float]]:
    """Return the mean of each part over the runs that have it, by number of the group; empty groups are left out."""
    found = {}
    for number, group in enumerate(comparison.groups):
        splits = [split for run in group.runs if (split := split_of(run))]
        parts = dict.fromkeys(part for split in splits for part in split)
        known = {part: [split[part] for split in splits if split.get(part) is not None] for part in parts}
        if means := {part: fmean(values) for part, values in known.items() if values}:
            found[number] = means
    return found


def _peaks(comparison: Comparison, name: str) -> dict[int, dict[str, float]]:
    return _means(comparison, lambda run: {phase: _phase(run, phase).get(name) for phase in PHASES})


def _phase(run: Run, phase: str) -> Mapping[str, Any]:
    return (run.record.get("memory_phases") or {}).get(phase) or {}

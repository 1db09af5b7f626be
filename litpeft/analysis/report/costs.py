"""Memory by phase and by what it is for; rates, parts of a step, and times to a target."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from litpeft.analysis.comparison import Comparison, Figure, Run
from litpeft.analysis.comparison.figures import figure
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.report.chart import PAPER, Chart, layout, literal
from litpeft.analysis.report.sentences import UNKNOWN, estimate_told, plain_title, told
from litpeft.analysis.report.style import PARTS_LIGHT, look

PHASES = "load", "first_step", "train", "validate", "save"
PARTS = "data_wait", "forward", "backward", "optimizer"  # of a step
RATES = "train_tokens_per_second", "train_samples_per_second", "step_seconds_p50", "train_seconds"
SYSTEMS_PEAKS = {"peak_allocated_bytes": "CUDA memory", "peak_rss_bytes": "host memory"}
LONGEST = 22  # characters of a name at an axis
BAR = 30  # pixels of a group's row


def memory_charts(comparison: Comparison) -> list[Chart]:
    """A chart a phase, all of one scale: the tensors' categories, stacked. Then the peaks that the system tells."""
    splits = {phase: _means(comparison, lambda run, at=phase: _phase(run, at).get("tensor_bytes")) for phase in PHASES}
    most = max((sum(split.values()) for groups in splits.values() for split in groups.values()), default=0)
    categories = list(dict.fromkeys(name for groups in splits.values() for split in groups.values() for name in split))
    charts = []
    for phase, groups in splits.items():
        if groups:
            words = phase.replace("_", " ")
            caption = f"Tensors alive at the peak of the phase “{words}”, by what they are for; means over the runs."
            if phase == "load":
                caption = "Tensors that loading leaves, by what they are for; means over the runs."
            chart = _stacked(comparison, f"memory-{phase}", f"Memory: {words}", caption, categories, groups, "_bytes")
            chart.layout["xaxis"]["range"] = [0, most * unit("_bytes")[0] * 1.04]
            charts.append(chart)
    return charts


def peak_chart(comparison: Comparison) -> Chart | None:
    """Peaks of CUDA's allocator by phase, where there is one, else of the host."""
    known = {name: _peaks(comparison, name) for name in SYSTEMS_PEAKS}
    name = next((name for name, peaks in known.items() if peaks), None)
    if name is None:
        return None
    peaks = known[name]
    factor, shown = unit(name)
    phases = [phase for phase in PHASES if any(phase in known for known in peaks.values())]
    traces, rows = [], []
    for number, known in peaks.items():
        label, seen = comparison.groups[number].label, look(number)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": literal(label),
                "x": [phase.replace("_", " ") for phase in phases],
                "y": [_round(known[phase] * factor) if phase in known else None for phase in phases],
                "line": {"color": seen.colour, "width": 1.5, "dash": seen.dash},
                "marker": {"symbol": seen.marker, "size": 9, "color": seen.colour},
                "hovertemplate": f"<b>{literal(label)}</b><br>%{{x}}: %{{y:,.1f}} {shown}<extra></extra>",
                "meta": {"group": number},
            }
        )
        rows.append([label, *(told(name, known.get(phase)) for phase in phases)])
    return Chart(
        "memory-peaks",
        f"Peaks of {SYSTEMS_PEAKS[name]} by phase",
        "As the allocator or the kernel tells them: all that was held, not tensors alone. Means over the runs.",
        traces,
        layout({}, {"title": f"peak, {shown}", "rangemode": "tozero"}),
        ["group", *(phase.replace("_", " ") for phase in phases)],
        rows,
        list(peaks),
    )


def step_chart(comparison: Comparison) -> Chart | None:
    """What a step is spent on."""
    parts = _means(comparison, lambda run: run.record.get("step_split_seconds_p50"))
    caption = "Median seconds of the parts of sampled steps; means over the runs. Medians need not add up to a step's."
    return (
        _stacked(comparison, "step-split", "A step by its parts", caption, PARTS, parts, "_seconds") if parts else None
    )


def estimate_charts(comparison: Comparison, names: Sequence[str]) -> list[Chart]:
    """Dots with intervals, of those of these figures that are known."""
    known = {name for group in comparison.groups for name in group.estimates}
    return [_dots(comparison, figure(name)) for name in names if name in known]


def _dots(comparison: Comparison, shown: Figure) -> Chart:
    factor, _ = unit(shown.name)
    traces, rows, numbers = [], [], []
    for number, group in enumerate(comparison.groups):
        estimate, seen = group.estimates.get(shown.name), look(number)
        rows.append([group.label, estimate_told(shown.name, estimate), str(estimate.count if estimate else 0)])
        numbers.append(number)
        if estimate is None:
            continue
        bars: dict[str, Any] = {"type": "data", "visible": False}
        if estimate.low is not None and estimate.high is not None:
            ends = [estimate.high - estimate.mean, estimate.mean - estimate.low]
            up, down = ([_round(end * factor)] for end in ends)
            bars = {
                "type": "data",
                "symmetric": False,
                "array": up,
                "arrayminus": down,
                "color": seen.colour,
                "width": 5,
            }
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": literal(group.label),
                "x": [_round(estimate.mean * factor)],
                "y": [literal(group.label)],
                "error_x": bars,
                "marker": {"symbol": seen.marker, "size": 11, "color": seen.colour},
                "hovertext": [f"<b>{literal(group.label)}</b><br>{estimate_told(shown.name, estimate)}"],
                "hoverinfo": "text",
                "meta": {"group": number},
            }
        )
    direction = {"higher": "More is better.", "lower": "Less is better."}.get(shown.better or "", "")
    missed = [row[0] for row in rows if row[1] == UNKNOWN]
    words = f"Mean and its 95 % interval over seeds. {direction}"
    drawn = _rows_layout(shown.title, [trace["name"] for trace in traces])
    if shown.kind in ("quality", "benchmark"):  # what matters there is far from 0
        drawn["xaxis"]["rangemode"] = "normal"
    return Chart(
        f"figure-{shown.name}".replace(".", "-"),
        _title(shown),
        words + (f" Not known, or not reached: {', '.join(missed)}." if missed else ""),
        traces,
        drawn,
        ["group", shown.title, "runs"],
        rows,
        numbers,
    )


def _title(shown: Figure) -> str:
    title = plain_title(shown.title)
    if shown.name.startswith("seconds_to_"):
        return f"Time {title}"
    return "Training time" if shown.name == "train_seconds" else title[:1].upper() + title[1:]


def _stacked(
    comparison: Comparison,
    name: str,
    title: str,
    caption: str,
    parts: Sequence[str],
    groups: Mapping[int, Mapping[str, float]],
    figure_name: str,
) -> Chart:
    """A bar a group, a colour a part."""
    factor, shown = unit(figure_name)
    labels = {number: comparison.groups[number].label for number in groups}
    traces, used = [], []
    for i, part in enumerate(parts):
        if not any(known.get(part) for known in groups.values()):
            continue
        words = part.replace("_", " ")
        used.append((words, i))
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": words,
                "x": [_round(known.get(part, 0) * factor) for known in groups.values()],
                "y": [literal(label) for label in labels.values()],
                "marker": {"color": PARTS_LIGHT[i % len(PARTS_LIGHT)], "line": {"width": 1, "color": PAPER}},
                "hovertemplate": f"<b>%{{y}}</b><br>{words}: %{{x:,.4~g}} {shown}<extra></extra>",
                "meta": {"rows": list(groups)},
            }
        )
    totals = [sum(known.values()) for known in groups.values()]
    rows = [
        [labels[number], *(told(figure_name, known.get(part)) for part in parts), told(figure_name, total)]
        for (number, known), total in zip(groups.items(), totals, strict=True)
    ]
    heads = ["group", *(part.replace("_", " ") for part in parts), "sum"]
    drawn = _rows_layout(shown, [literal(label) for label in labels.values()]) | {"barmode": "stack", "bargap": 0.35}
    return Chart(name, title, caption, traces, drawn, heads, rows, list(groups), used)


def _rows_layout(title: str, labels: Sequence[str]) -> dict[str, Any]:
    """Of charts with a group a row, the first on top. Long names are cut there: the hover and the table have them."""
    y = {"type": "category", "autorange": "reversed", "showgrid": False, "ticklabelstandoff": 6}
    y |= {"tickmode": "array", "tickvals": list(labels), "ticktext": [_cut(label) for label in labels]}
    return layout({"title": title, "rangemode": "tozero"}, y, max(150, 80 + BAR * len(labels)))


def _cut(label: str) -> str:
    text = html.unescape(label)
    return literal(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[1 - LONGEST // 2 :]}")


def _means(
    comparison: Comparison, split_of: Callable[[Run], Mapping[str, float | None] | None]
) -> dict[int, dict[str, float]]:
    """By group, the mean of each part over the runs that know it; groups that know none are left out."""
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


def _round(value: float) -> float:
    return float(f"{value:.6g}")

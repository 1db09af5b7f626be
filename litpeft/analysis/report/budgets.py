"""Charts of quality at equal training time and at equal tokens: what each group had reached when the first was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from litpeft.analysis.comparison import Comparison, Run
from litpeft.analysis.comparison.figures import coarsest
from litpeft.analysis.comparison.margins import possible, within
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.comparison.results import Figure
from litpeft.analysis.comparison.sentences import UNKNOWN, plain_title, value_text
from litpeft.analysis.report.chart import MUTED, Chart, group_trace, layout, literal, scaled
from litpeft.analysis.report.style import look
from litpeft.analysis.stats import mean_interval
from litpeft.runs.curve_file import read_lines

Point = tuple[float, float]  # (amount of the budget used, value of the metric)


@dataclass(frozen=True)
class Budget:
    """What training uses up: its name, the title of the axis, and the format of an amount."""

    name: str
    title: str
    form: str


BUDGETS = Budget("time", "training time, s", ",.0f"), Budget("tokens", "training tokens", ",.0f")


def budget_charts(comparison: Comparison) -> list[Chart]:
    """Return a chart for each budget of which all groups know what their validations had used.

    A group's value is that of each run's last validation within the budget, which is what the longest run of the group
    that used least had used at its end: nothing is interpolated.
    """
    figure = next((each for each in comparison.figures if each.kind == "quality" and each.better), None)
    if figure is None or len(comparison.groups) < 2:
        return []
    charts = []
    for budget in BUDGETS:
        points = [
            [_points(run, figure.name, budget) for run in group.runs if not run.parts] for group in comparison.groups
        ]
        whole = all(runs and all(runs) for runs in points)
        if whole and max(len(run) for runs in points for run in runs) > 1:
            charts.append(_chart(comparison, figure, budget, points))
    return charts


def _points(run: Run, metric: str, budget: Budget) -> list[Point]:
    """Return what each validation of a run had used and its value, in order; without those of unknown use."""
    rows = [row for row in run.record.get("validations") or () if isinstance(row, dict)]
    if budget.name == "time":
        used = {row.get("step"): row.get("train_seconds") for row in rows}
    else:
        used = {line["step"]: line.get("tokens") for line in read_lines(run.folder)}
    pairs = [(used.get(row.get("step")), row.get(metric)) for row in rows]
    return [(amount, value) for amount, value in pairs if _known(amount) and _known(value) and amount > 0]


def _known(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _chart(
    comparison: Comparison, figure: Figure, budget: Budget, points: Sequence[Sequence[Sequence[Point]]]
) -> Chart:
    amount = min(max(run[-1][0] for run in runs) for runs in points)  # so that the group's own last values count
    title, unit_text = plain_title(figure.title), unit(figure.name)[1]
    traces, rows = [], []
    for number, runs in enumerate(points):
        label = comparison.groups[number].label
        for run in runs:
            line = {"color": look(number).colour, "width": 1.5}
            xs, ys = [x for x, _ in run], [scaled(figure.name, y) for _, y in run]
            hover = f"<b>{literal(label)}</b><br>%{{x:{budget.form}}}: %{{y}}<extra></extra>"
            traces.append(group_trace(number, label, "lines+markers", 6, x=xs, y=ys, line=line, hovertemplate=hover))
        reached = [[y for x, y in run if x <= amount] for run in runs]
        last = [values[-1] for values in reached if values]
        if len(last) < len(runs):
            rows.append([label, UNKNOWN, "no validation within it"])
            continue
        mean, *ends = mean_interval(last, coarsest([comparison.groups[number]], figure.name))
        low, high = within(ends, possible(figure))
        interval = UNKNOWN if low is None else f"{value_text(figure.name, low)} to {value_text(figure.name, high)}"
        rows.append([label, value_text(figure.name, mean), interval])
    at = f"{amount:{budget.form}}"
    caption = (
        f"Each line is a run. The dotted line is what the group that used least {budget.name} used ({at}); the table "
        "has the last validation of each group within it."
    )
    line = {"type": "line", "x0": amount, "x1": amount, "yref": "paper", "y0": 0, "y1": 1}
    whole = line | {"line": {"color": MUTED, "width": 1, "dash": "dot"}}
    axis = {"title": title + (f", {unit_text}" if unit_text else "")}
    return Chart(
        f"equal-{budget.name}",
        f"{title[:1].upper()}{title[1:]} at equal training {budget.name}",
        caption,
        traces,
        layout({"title": budget.title, "rangemode": "tozero"}, axis, shapes=[whole]),
        ["group", f"{title} after {at} {'s' if budget.name == 'time' else 'tokens'}", "95 % CI"],
        rows,
        list(range(len(points))),
    )

"""Charts of the report: data for plotly.js, a caption, and a table with the same numbers.

Charts are plain dicts, because plotly's classes take a second to validate them; the tests validate them instead.

`meta` of a trace names the groups that it shows, so that the page can hide them: {"group": number} for a whole trace,
{"rows": [number, ...]} for one group per point.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from litpeft.analysis.comparison import Estimate
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.report.style import INK, look

TEXT, MUTED, GRID, PAPER = (INK[name][0] for name in ("text", "muted", "grid", "paper"))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Chart:
    """A chart with its table.

    Attributes:
        name: identifier, unique on the page.
        title: title of the chart.
        caption: one or two sentences about the chart.
        data: traces for plotly.js.
        layout: layout for plotly.js.
        columns: column headings of the table.
        rows: rows of the table; the first cell names the row.
        row_groups: number of the group of each row, or None.
        parts: (name, number of the colour) of each segment of a stacked bar.
    """

    name: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    row_groups: Sequence[int | None] = field(default_factory=list)
    parts: Sequence[tuple[str, int]] = ()

    @property
    def height(self) -> int:
        """Height of the chart in pixels."""
        return self.layout["height"]

    @property
    def table(self) -> list[tuple[int | None, Sequence[str]]]:
        """Rows of the table as (number of the group or None, cells)."""
        groups = self.row_groups or [None] * len(self.rows)
        return list(zip(groups, self.rows, strict=True))


def literal(text: str) -> str:
    """Escape text for plotly, which interprets tags, entities and `%{x}`."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def scaled(name: str, value: float, digits: int = 6) -> float:
    """Convert a value to the unit in which the figure `name` is shown, rounded to significant digits."""
    return float(f"{value * unit(name)[0]:.{digits}g}")


def error_bars(name: str, estimate: Estimate) -> dict[str, Any]:
    """Return the 95 % CI of a mean as error bars for plotly.js; invisible if there is no interval."""
    if estimate.low is None or estimate.high is None:
        return {"type": "data", "array": [], "visible": False}
    up, down = estimate.high - estimate.mean, estimate.mean - estimate.low
    return {"type": "data", "symmetric": False, "array": [scaled(name, up)], "arrayminus": [scaled(name, down)]}


def group_trace(number: int, label: str, mode: str, size: float, **more: Any) -> dict[str, Any]:
    """Return a scatter trace of one group with its marker."""
    marker = {"symbol": look(number).marker, "size": size, "color": look(number).colour}
    return {"type": "scatter", "mode": mode, "name": literal(label), "marker": marker, "meta": {"group": number}} | more


def layout(x: Mapping[str, Any], y: Mapping[str, Any], height: int = 340, **more: Any) -> dict[str, Any]:
    """Return the layout that all charts share, with these axes."""
    return {
        "height": height,
        "font": {"family": FONT, "size": 13, "color": TEXT},
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": PAPER,
            "bordercolor": MUTED,
            "font": {"color": TEXT, "family": FONT, "size": 13},
            "align": "left",
            "namelength": -1,
        },
        "xaxis": _axis(x),
        "yaxis": _axis(y),
        **more,
    }


def _axis(settings: Mapping[str, Any]) -> dict[str, Any]:
    title = {"text": settings.get("title", ""), "font": {"size": 12.5, "color": MUTED}, "standoff": 10}
    fixed = {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": GRID,
        "tickcolor": GRID,
        "zeroline": False,
        "tickfont": {"size": 12, "color": MUTED},
    }
    return fixed | dict(settings) | {"title": title}

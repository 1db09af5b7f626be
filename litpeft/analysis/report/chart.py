"""A chart of the page: a figure as plotly's JSON, with the sentence and the table that say the same in words.

Figures are plain dicts, as plotly.js takes them: plotly's classes would check them again at every run, for a second,
and the tests do that once.

A trace says in `meta` whom it shows, so that the page can hide it: {"group": number} all of it, or {"rows": [number,
...]} point by point.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from litpeft.analysis.report.style import INK

TEXT, MUTED, GRID, PAPER = (INK[name][0] for name in ("text", "muted", "grid", "paper"))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Chart:
    """What the page and the Markdown show.

    Attributes:
        name: unique on the page.
        title: what it shows.
        caption: what there is to see, in a sentence or two; and how it was drawn.
        data: plotly's traces.
        layout: plotly's layout.
        columns: heads of the table that says the same.
        rows: of that table; the first cell is the row's head.
        row_groups: number of the group of each row; None where it is of none.
        parts: (name, number of its colour) of what a bar is made of.
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
        """Of the figure, in pixels."""
        return self.layout["height"]

    @property
    def table(self) -> list[tuple[int | None, Sequence[str]]]:
        """(number of its group, cells) of each row."""
        groups = self.row_groups or [None] * len(self.rows)
        return list(zip(groups, self.rows, strict=True))


def literal(text: str) -> str:
    """Text as it stands: plotly reads tags and entities in names, ticks and hovers, and `%{x}` in templates."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def layout(x: Mapping[str, Any], y: Mapping[str, Any], height: int = 340, **more: Any) -> dict[str, Any]:
    """Of all charts: thin lines, no frame, nothing that moves by itself."""
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


def _axis(asked: Mapping[str, Any]) -> dict[str, Any]:
    title = {"text": asked.get("title", ""), "font": {"size": 12.5, "color": MUTED}, "standoff": 10}
    fixed = {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": GRID,
        "tickcolor": GRID,
        "zeroline": False,
        "tickfont": {"size": 12, "color": MUTED},
    }
    return fixed | dict(asked) | {"title": title}

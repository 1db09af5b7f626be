"""The report as Markdown with pictures, for a README: the answer, the table, and the charts as PNG files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison import Comparison
from litpeft.analysis.report.chart import Chart
from litpeft.analysis.report.headline import answer
from litpeft.analysis.report.page import MISSING, parts
from litpeft.analysis.report.table import rows
from litpeft.errors import UserError, writing
from litpeft.runs.atomic_write import write_atomically

WIDTH, SCALE = 760, 2  # pixels, and how many of the picture's each is: sharp on screens of today
BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome"


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write the Markdown file, and its pictures into a folder beside it that has its name.

    Raises:
        UserError: there is nothing to draw with, or the file cannot be written.
    """
    charts = [chart for part in parts(comparison) for chart in part.charts]
    folder = path.with_name(f"{path.stem}_pictures")
    pictures = {chart.name: folder / f"{chart.name}.png" for chart in charts}
    with writing("-o", path):
        folder.mkdir(parents=True, exist_ok=True)
        _draw(charts, pictures)
        write_atomically(path, _text(comparison, charts, folder.name))


def _draw(charts: list[Chart], pictures: dict[str, Path]) -> None:
    """All in one start of the browser."""
    try:
        import kaleido
    except ImportError as error:
        raise UserError(MISSING.format("kaleido for pictures")) from error
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found and "BROWSER_PATH" not in os.environ:
        os.environ["BROWSER_PATH"] = found  # where kaleido looks first; Debian's chromium is not among its own guesses
    drawings = [
        {
            "fig": {"data": _named_once(chart.data), "layout": _on_paper(chart)},
            "path": str(pictures[chart.name]),
            "opts": {"format": "png", "width": WIDTH, "height": _height(chart), "scale": SCALE},
        }
        for chart in charts
    ]
    try:
        kaleido.write_fig_from_object_sync(drawings)
    except Exception as error:  # kaleido's own, its browser's, and a timeout's have no class in common
        raise UserError(
            f"--format md: kaleido could not draw with {os.environ.get('BROWSER_PATH', 'any browser')} "
            f"({type(error).__name__}); install chromium, or set BROWSER_PATH to one."
        ) from error


def _height(chart: Chart) -> int:
    return chart.height + 40


def _on_paper(chart: Chart) -> dict[str, Any]:
    """White, with a legend: there is no page around it that tells the groups."""
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    margin = chart.layout["margin"] | {"t": 48}
    more = {"height": _height(chart), "paper_bgcolor": "white", "plot_bgcolor": "white", "margin": margin}
    return chart.layout | more | {"showlegend": bool(chart.parts) or _unnamed(chart), "legend": legend}


def _named_once(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A group has several traces and one line in the legend: of its last trace, which is the boldest."""
    last = {trace["name"]: i for i, trace in enumerate(data)}
    return [trace | {"showlegend": last[trace["name"]] == i} for i, trace in enumerate(data)]


def _unnamed(chart: Chart) -> bool:
    """Whether nothing but a legend tells the groups: their names stand at no axis."""
    return chart.layout["yaxis"].get("type") != "category"


def _text(comparison: Comparison, charts: list[Chart], folder: str) -> str:
    told = answer(comparison)
    blocks = [f"# {_escaped(comparison.title)}", _escaped(comparison.question or ""), *_warnings(comparison)]
    blocks += [f"**{_escaped(told[0])}**", "\n".join(f"- {_escaped(sentence)}" for sentence in told[1:])]
    blocks.append(_table(comparison))
    if comparison.published:
        blocks.append(f"Published rows are others': {_escaped(str(comparison.published.get('source') or 'n/a'))}.")
    for chart in charts:
        title = _escaped(chart.title)
        blocks.append(f"## {title}\n\n![{title}]({folder}/{chart.name}.png)\n\n{_escaped(chart.caption)}")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _warnings(comparison: Comparison) -> list[str]:
    lines = [
        _escaped(
            f"- The groups also differ in {key}: {', '.join(f'{label} {value}' for label, value in values.items())}"
        )
        for key, values in comparison.confounded.items()
    ]
    lines += [f"- {_escaped(warning)}" for warning in comparison.warnings]
    return ["Read this first:\n\n" + "\n".join(lines)] if lines else []


def _table(comparison: Comparison) -> str:
    heads = [", ".join(comparison.axes) or "group", "seeds", *(figure.title for figure in comparison.figures)]
    lines = [heads, ["---", *("---:" for _ in heads[1:])]]
    for row in rows(comparison):
        mark = " (published)" if row.group is None else " (baseline)" if row.is_baseline else ""
        cells = [f"{cell.value}{f' {cell.sign} {cell.verdict}' if cell.verdict else ''}" for cell in row.cells]
        lines.append([row.label + mark, row.seeds, *cells])
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """Nothing of a record is Markdown or HTML."""
    text = text.replace("&", "&amp;")
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")

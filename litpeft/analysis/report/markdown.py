"""Write the report as Markdown, with the charts as PNG files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison import Comparison
from litpeft.analysis.comparison.answer import answer
from litpeft.analysis.report.chart import Chart
from litpeft.analysis.report.page import MISSING, parts
from litpeft.analysis.report.table import rows
from litpeft.errors import UserError, writing
from litpeft.runs.atomic_write import write_atomically

WIDTH, SCALE = 760, 2  # width in CSS pixels, and image pixels per CSS pixel
LEGEND = 40  # height of the legend in pixels
BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome"


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write the Markdown file, and its pictures into the folder NAME_pictures next to the file.

    Raises:
        UserError: kaleido or a browser is missing, or the file cannot be written.
    """
    charts = [chart for part in parts(comparison) for chart in part.charts]
    folder = path.with_name(f"{path.stem}_pictures")
    pictures = {chart.name: folder / f"{chart.name}.png" for chart in charts}
    with writing("-o", path):
        folder.mkdir(parents=True, exist_ok=True)
        _draw(charts, pictures)
        write_atomically(path, _text(comparison, charts, folder.name))


def _draw(charts: list[Chart], pictures: dict[str, Path]) -> None:
    """Draw all charts in one browser session."""
    try:
        import kaleido
    except ImportError as error:
        raise UserError(MISSING.format("kaleido for pictures")) from error
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found and "BROWSER_PATH" not in os.environ:
        os.environ["BROWSER_PATH"] = found  # kaleido does not search for Debian's chromium itself
    drawings = [
        {
            "fig": {"data": _one_legend_entry(chart.data), "layout": _picture_layout(chart)},
            "path": str(pictures[chart.name]),
            "opts": {"format": "png", "width": WIDTH, "height": chart.height + LEGEND, "scale": SCALE},
        }
        for chart in charts
    ]
    try:
        kaleido.write_fig_from_object_sync(drawings)
    except Exception as error:  # errors of kaleido, of its browser and of timeouts have no common class
        raise UserError(
            f"--format md: kaleido could not draw with {os.environ.get('BROWSER_PATH', 'any browser')} "
            f"({type(error).__name__}); install chromium, or set BROWSER_PATH to one."
        ) from error


def _picture_layout(chart: Chart) -> dict[str, Any]:
    """Return the layout for a picture: white, with a legend, which the page shows outside of the charts."""
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    margin = chart.layout["margin"] | {"t": 48}
    more = {"height": chart.height + LEGEND, "paper_bgcolor": "white", "plot_bgcolor": "white", "margin": margin}
    groups_on_axis = chart.layout["yaxis"].get("type") == "category"
    return chart.layout | more | {"showlegend": bool(chart.parts) or not groups_on_axis, "legend": legend}


def _one_legend_entry(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Show each group once in the legend, by its last trace, which is the boldest."""
    last = {trace["name"]: i for i, trace in enumerate(data)}
    return [trace | {"showlegend": last[trace["name"]] == i} for i, trace in enumerate(data)]


def _text(comparison: Comparison, charts: list[Chart], folder: str) -> str:
    found = answer(comparison)
    blocks = [f"# {_escaped(comparison.title)}", _escaped(comparison.question or ""), *_warnings(comparison)]
    blocks += [f"**{_escaped(sentence)}**" for sentence in found.first]
    blocks.append("\n".join(f"- {_escaped(sentence)}" for sentence in found.details))
    blocks.append(_table(comparison))
    if comparison.published:
        blocks.append(
            f"Published rows were measured by others: {_escaped(str(comparison.published.get('source') or 'n/a'))}."
        )
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
    """Escape Markdown and HTML."""
    text = text.replace("&", "&amp;")
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")

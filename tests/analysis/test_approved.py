"""Whole outputs are as they were approved: the tables, sentences, files and charts of made-up comparisons.

The files in `approved/` are to be read by a person. After a change that is meant, write them anew and read the
difference: `python -m tests.analysis.test_approved`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from litpeft.analysis.comparison import Comparison
from litpeft.analysis.comparison.formats import FORMATS
from litpeft.analysis.comparison.terminal import as_text
from litpeft.analysis.report.chart import layout
from litpeft.analysis.report.data_section import data_facts
from litpeft.analysis.report.markdown import write_markdown
from litpeft.analysis.report.mistakes import mistakes
from litpeft.analysis.report.page import parts
from litpeft.analysis.report.sections import sections
from litpeft.analysis.report.table import definition, main_columns, rows
from litpeft.runs import record_index, record_reader
from tests.analysis.made_comparisons import CASES

APPROVED = Path(__file__).parent.resolve() / "approved"
FIGURES = re.compile(r"\d+\.\d{7,}(e-?\d+)?")


def charts(comparison: Comparison) -> str:
    """Return each chart of the report as lines: its texts, its layout as far as it is its own, traces and table."""
    common = layout({}, {})
    lines = [f"common layout: {_json(common)}"]
    for part in parts(comparison):
        lines += ["", f"# {part.name}: {part.title}"]
        for chart in part.charts:
            own = _own(chart.layout, common)
            lines += ["", f"## {chart.name}: {chart.title}", chart.caption, f"layout {_json(own)}"]
            lines += [f"trace {_json(trace)}" for trace in chart.data]
            lines += [f"parts {_json(chart.parts)}", f"| {' | '.join(chart.columns)}"]
            lines += [f"{group} | {' | '.join(cells)}" for group, cells in chart.table]
    return "\n".join(lines) + "\n"


def _own(settings: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the common ones."""
    own = {}
    for name, value in settings.items():
        if isinstance(value, dict) and isinstance(common.get(name), dict):
            value = _own(value, common[name]) or common[name]
        if value != common.get(name):
            own[name] = value
    return own


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def details(comparison: Comparison) -> str:
    """Return what the page shows beside charts: cells of its table, data, mistakes, and a section for each run."""
    found, notes = mistakes(comparison)
    lines = [f"main columns {sorted(main_columns(comparison.figures))}"]
    lines += [f"{figure.name}: {definition(figure)}" for figure in comparison.figures]
    lines += [_json([row.label, row.group, row.seeds, row.is_baseline]) for row in rows(comparison)]
    lines += [f"cell {_json(list(vars(cell).values()))}" for row in rows(comparison) for cell in row.cells]
    lines += [f"data {_json(each)}" for each in data_facts(comparison)]
    lines += [f"mistakes {_json(each)}" for each in found] + notes
    lines += [f"run {_json(each)}" for each in sections(comparison)]
    return "\n".join(lines) + "\n"


def report(comparison: Comparison) -> str:
    """Return the report as Markdown, and what is drawn for it beside the charts of the page."""
    drawn: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROWSER_PATH", "any")
        patch.setitem(sys.modules, "kaleido", SimpleNamespace(write_fig_from_object_sync=drawn.extend))
        write_markdown(comparison, Path("report.md"))
    lines = [Path("report.md").read_text(encoding="utf-8")]
    for part in parts(comparison):
        for chart in part.charts:
            drawing, drawn = drawn[0], drawn[1:]
            legend = [trace["showlegend"] for trace in drawing["fig"]["data"]]
            own = _own(drawing["fig"]["layout"], chart.layout)
            lines.append(f"drawn {drawing['path']} {_json(drawing['opts'])} {_json(own)} {_json(legend)}")
    return "\n".join(lines) + "\n"


OUTPUTS: dict[str, Callable[[Comparison], str]] = {
    "terminal": as_text,
    "charts": charts,
    "details": details,
    "report": report,
    **FORMATS,
}
CHOSEN = {
    "methods": ("terminal", "charts", "details", "csv", "report"),
    "relative": ("markdown",),
    "sweep": ("terminal", "charts", "latex"),
    "tasks": ("json", "charts", "details", "report"),
    "rows": ("terminal", "csv", "json"),
    "images": ("terminal", "charts", "details"),
    "curves": ("charts",),
}


def outputs(case: str) -> dict[str, str]:
    """Return the outputs of a comparison of runs in the working directory by file name; numbers have six digits."""
    comparison = CASES[case](Path("runs"))
    found = {f"{case}.{name}": OUTPUTS[name](comparison) for name in CHOSEN[case]}
    return {name: FIGURES.sub(lambda number: f"{float(number[0]):.6g}", text) for name, text in found.items()}


@pytest.mark.parametrize("fewest", [10**9, 1])
@pytest.mark.parametrize("case", CASES)
def test_the_output_is_as_approved(case: str, fewest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record_index, "FEWEST", fewest)  # records from which on there is an index
    monkeypatch.setattr(record_reader, "RECENT", 0)
    for name, text in outputs(case).items():
        assert text.splitlines() == (APPROVED / name).read_text(encoding="utf-8").splitlines(), name
    assert (tmp_path / "runs" / record_index.INDEX).is_file() == (fewest == 1)


def main() -> int:
    """Write the files anew."""
    start = os.getcwd()
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            found = outputs(case)
            os.chdir(start)
        for name, text in found.items():
            (APPROVED / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

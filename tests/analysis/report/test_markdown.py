"""The report as Markdown: text with the numbers, and a picture of each chart, which a browser draws."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from litpeft.analysis.comparison import Comparison, compare
from litpeft.analysis.report.markdown import write_markdown
from litpeft.analysis.report.page import parts
from litpeft.errors import UserError
from tests.analysis.report.made_runs import write_runs


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    found = compare([write_runs(tmp_path_factory.mktemp("runs"), seeds=2, steps=60)], baseline="none")
    found.published = {"source": "a <b>paper</b>", "rows": [{"label": "a|b_c", "val_accuracy": 0.5}]}
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what kaleido is asked to draw."""
    found: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "kaleido", SimpleNamespace(write_fig_from_object_sync=found.extend))
    return found


def test_each_chart_is_a_picture_with_its_groups_once_in_the_legend(
    comparison: Comparison, drawn: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_markdown(comparison, tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text()
    charts = [chart for part in parts(comparison) for chart in part.charts]
    assert [Path(each["path"]) for each in drawn] == [
        tmp_path / "out_pictures" / f"{chart.name}.png" for chart in charts
    ]
    for chart, drawing in zip(charts, drawn, strict=True):
        assert f"]({'out_pictures'}/{chart.name}.png)" in text
        data, layout = drawing["fig"]["data"], drawing["fig"]["layout"]
        shown = Counter(trace["name"] for trace in data if trace["showlegend"])
        assert shown == dict.fromkeys({trace["name"] for trace in chart.data}, 1)
        widths = [trace["line"]["width"] for trace in data if trace["showlegend"] and "width" in trace.get("line", {})]
        assert all(width > 1 for width in widths)  # the mean, and no thin line of a seed
        # an axis names the groups: a legend is needed for parts only
        assert layout["showlegend"] == (bool(chart.parts) or layout["yaxis"].get("type") != "category")
        assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "white"
        assert layout["height"] == drawing["opts"]["height"] > chart.height


def test_names_are_escaped_and_rows_are_marked(
    comparison: Comparison, drawn: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_markdown(comparison, tmp_path / "out.md")
    lines = (tmp_path / "out.md").read_text().splitlines()
    (published,) = [line for line in lines if "(published)" in line]
    assert r"a\|b\_c (published)" in published
    assert "50.00" in published
    assert any(line.startswith("| full (baseline) |") for line in lines)
    assert r"Published rows were measured by others: a \<b\>paper\</b\>." in lines
    assert any(line.startswith("- Left out, oom: lora") for line in lines)  # a warning


@pytest.mark.parametrize(
    ("given", "installed", "used"),
    [
        (None, "/usr/bin/chromium", "/usr/bin/chromium"),
        ("/mine", "/usr/bin/chromium", "/mine"),
        ("/mine", None, "/mine"),
        (None, None, None),
    ],
)
def test_the_browser_is_the_users_else_one_that_is_installed(
    given: str | None,
    installed: str | None,
    used: str | None,
    comparison: Comparison,
    drawn: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "")  # so that it is restored afterwards
    monkeypatch.delenv("BROWSER_PATH")
    if given:
        monkeypatch.setenv("BROWSER_PATH", given)
    monkeypatch.setattr(shutil, "which", lambda name: installed if name == "chromium" else None)
    write_markdown(comparison, tmp_path / "out.md")
    assert os.environ.get("BROWSER_PATH") == used


def test_what_cannot_be_drawn_is_one_sentence(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("a browser's error")

    monkeypatch.setenv("BROWSER_PATH", "/no/browser")
    monkeypatch.setitem(sys.modules, "kaleido", SimpleNamespace(write_fig_from_object_sync=fail))
    with pytest.raises(UserError, match=r"could not draw with /no/browser \(RuntimeError\); install chromium"):
        write_markdown(comparison, tmp_path / "out.md")
    assert not (tmp_path / "out.md").exists()
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(UserError, match="kaleido for pictures"):
        write_markdown(comparison, tmp_path / "out.md")

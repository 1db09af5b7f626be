"""`litpeft.compare` and `litpeft.sweep`: one path or several, tables, and what notebooks show."""

from __future__ import annotations

import os
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import litpeft
from litpeft import Comparison, Run, UserError, compare, sweep
from litpeft.analysis import comparison as analysis
from litpeft.analysis.comparison.answer import answer
from litpeft.analysis.comparison.formats import csv
from litpeft.analysis.comparison.margins import read_margin
from tests.analysis.comparison.build import write_grid

GRID = {"none": [0.90, 0.91, 0.92], "lora": [0.80, 0.81, 0.82]}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_grid(tmp_path / "runs", GRID)


def test_one_path_or_several_of_any_kind(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    folders = [runs / "lora", runs / "none"]
    given: list[tuple[Any, ...]] = [
        ("runs",), (runs,), (Run(runs),), (["runs/lora", "runs/none"],), tuple(map(str, folders)),
        (folders,), (folders[0], str(folders[1])), ([Run(each) for each in folders],), ((each for each in folders),),
    ]  # fmt: skip
    tables = {csv(compare(*each)) for each in given}
    assert tables == {csv(analysis.compare([runs]))}
    assert csv(analysis.compare("runs")) == csv(analysis.compare(runs)) == csv(analysis.compare(["runs"]))
    for nothing in ((), ([],)):
        with pytest.raises(UserError, match="compare needs runs"):
            compare(*nothing)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        compare("nowhere")


def test_margins_are_numbers_or_shares(runs: Path) -> None:
    given = {"val_accuracy": 0.5, "val_loss": "2%"}
    here = dict(map(read_margin, ("val_accuracy=0.5", "val_loss=2%")))
    tables = [csv(compare(runs, figures=list(given), margins=margins)) for margins in (given, here)]
    assert tables[0] == tables[1] != csv(compare(runs, figures=list(given)))
    for amount in (0, "-1", "much"):
        with pytest.raises(UserError, match="margins: val_loss is"):
            compare(runs, margins={"val_loss": amount})


def test_the_frame_has_the_figures_of_the_runs(runs: Path) -> None:
    frame = compare(runs, by="adapter", figures="val_accuracy", baseline="lora").to_frame()
    assert list(frame["label"]) == ["full", "lora"]
    assert list(frame["val_accuracy_mean"]) == pytest.approx([0.91, 0.81])
    assert list(frame["seeds"]) == [3, 3]
    assert frame["val_accuracy_difference"][0] == pytest.approx(0.1)
    assert frame["val_accuracy_verdict"][0] == "better"


def test_without_pandas_one_sentence_says_what_to_install(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compare(runs)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"^to_frame\(\) needs pandas, .* pip install pandas.$"):
        found.to_frame()


class Cells(HTMLParser):
    """Collects the text of each kind of element, and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def test_a_notebook_shows_the_answer_first_and_then_the_tables(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs", GRID, options={"model.init_args.model_name": "<script>x</script>"})
    found = compare(tmp_path / "runs", by=["adapter", "model.model_name"])
    page = found._repr_html_()
    assert "<script>" not in page
    cells = Cells()
    cells.feed(page)
    assert not cells.open
    assert cells.texts["b"] == found.answer == answer(found).first
    assert page.index(found.answer[0][:20]) < page.index("<table>")
    assert any("full" in cell for cell in cells.texts["td"])
    assert "91.0" in " ".join(cells.texts["td"])


def test_a_terminal_shows_markdown(runs: Path) -> None:
    found = compare(runs)
    assert str(found) == repr(found)
    assert found.answer[0][:30] in str(found).replace("\\", "")
    assert "| full | 3 |" in str(found)


def test_rich_is_not_imported_before_lightning(runs: Path) -> None:
    """Otherwise jsonargparse reads `limit_train_batches 1` as 1.0, see litpeft/cli/console.py."""
    from tests.api.processes import modules_after

    code = f"import litpeft; c = litpeft.compare({str(runs)!r}); str(c); c._repr_html_()"
    assert not {"rich", "torch", "lightning"} & modules_after(code)


def test_errors_of_comparisons_name_arguments(runs: Path) -> None:
    with pytest.raises(UserError) as caught:
        compare(runs, baseline="dora")
    assert "--" not in str(caught.value)
    assert "baseline" in str(caught.value)


@pytest.mark.slow
def test_a_sweep_returns_its_comparison(
    tmp_path: Path,
    tiny_model: str,
    sentences: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(litpeft.__file__).parents[1]))
    experiment = {"configs": ["base", "sst2", "adamw"], "axes": {"adapter": ["lora", "frozen"]}, "seeds": 1}
    options = {
        **{"model__model_name": tiny_model, "model__dtype": "fp32", "data__train_file": sentences["train"]},
        **{"data__val_file": Path(sentences["val"]), "trainer__max_steps": 2, "trainer__accelerator": "cpu"},
    }
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert sweep(experiment, tmp_path / "sweep", dry_run=True, **options) is None
    assert not (tmp_path / "sweep").exists()
    found = sweep(experiment, tmp_path / "sweep", **options)
    assert isinstance(found, Comparison)
    assert [group.label for group in found.groups] == ["lora", "frozen"]
    assert [len(group.runs) for group in found.groups] == [1, 1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    before = {path: os.stat(path).st_mtime for path in (tmp_path / "sweep").rglob("record.json")}
    again = sweep(experiment, str(tmp_path / "sweep"), **options)
    assert csv(again) == csv(found)
    assert before == {path: os.stat(path).st_mtime for path in before}
    with pytest.raises(UserError, match="^dir is missing"):
        sweep(experiment)
    with pytest.raises(UserError, match="^sweep nothing: no such file|nothing: no such file") as caught:
        sweep("nothing")
    assert "--" not in str(caught.value)
    with pytest.raises(UserError, match="jobs and trials must be at least 1"):
        sweep(experiment, tmp_path / "other", jobs=0)

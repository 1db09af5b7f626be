"""Scores of benchmarks as figures: what is shown, what is tested over items, and what is not comparable."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.figures import direction
from litpeft.analysis.comparison.formats import FORMATS
from litpeft.errors import UserError
from litpeft.runs.benchmark_results import benchmark_rows
from litpeft.runs.record import read_record
from tests.analysis.comparison.build import write_run

NAME = "litpeft_blimp_causative"
FIGURE = f"{NAME}_acc"


def result(score: float, fingerprint: str = "f", items: int = 200, **more: Any) -> dict[str, Any]:
    told = {"scores": {"acc": score}, "standard_errors": {"acc": 0.03}, "items": items, "num_fewshot": 0, "tasks": []}
    return told | {"fingerprint": fingerprint} | more


def evaluation(step: int, **results: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "seconds": 1.0, "results": results, "skipped": {}}


def write(folder: Path, scores: dict[str, list[float]], **options: Any) -> Path:
    for adapter, values in scores.items():
        for seed, score in enumerate(values):
            asked = [evaluation(0, **{NAME: result(0.6)}), evaluation(100, **{NAME: result(score, **options)})]
            run = folder / adapter / f"seed{seed}"
            write_run(run, adapter, seed, None, benchmarks=asked, checkpoint="checkpoints/step-000100")
    return folder


def test_scores_are_shown_and_tested_over_seeds_like_any_other_figure(tmp_path: Path) -> None:
    write(tmp_path, {"none": [0.70, 0.72, 0.71, 0.69, 0.73], "lora": [0.60, 0.61, 0.62, 0.59, 0.61]})
    told = compare([tmp_path])
    names = [figure.name for figure in told.figures]
    assert names[:2] == ["val_loss", FIGURE]
    assert not any(name.endswith(("_before", "_change")) for name in names)
    column = told.figures[1]
    assert (column.title, column.better, column.kind) == ("blimp causative acc, %", "higher", "benchmark")
    none, lora = told.groups
    assert none.estimates[FIGURE].mean == pytest.approx(0.71)
    assert lora.differences[FIGURE].verdict == "worse"
    assert lora.differences[FIGURE].mean == pytest.approx(0.606 - 0.71)


def test_what_training_changed_is_a_figure_that_can_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path, {"none": [0.70, 0.72], "lora": [0.55, 0.57]})
    told = compare([tmp_path], figures=[f"{FIGURE}_before", f"{FIGURE}_change"])
    before, change = told.figures
    assert before.better is None  # nothing to be praised for
    assert change.better == "higher"
    assert told.groups[0].estimates[change.name].mean == pytest.approx(0.11)
    assert told.groups[1].estimates[change.name].mean == pytest.approx(-0.04)
    assert told.groups[1].estimates[before.name].mean == 0.6
    with pytest.raises(UserError, match=rf"--figures {FIGURE}x: no run has it \(did you mean {FIGURE}\?\)"):
        compare([tmp_path], figures=[f"{FIGURE}x"])


def test_a_score_before_training_on_other_items_is_no_score_before(tmp_path: Path) -> None:
    write(tmp_path, {"none": [0.7, 0.7]}, fingerprint="other")
    with pytest.raises(UserError, match="no run has it"):
        compare([tmp_path], figures=[f"{FIGURE}_change"])


def test_the_weights_that_the_run_stands_for_are_spoken_of(tmp_path: Path) -> None:
    evaluations = [evaluation(step, **{NAME: result(score)}) for step, score in ((0, 0.5), (40, 0.8), (100, 0.6))]
    write_run(tmp_path / "a", benchmarks=evaluations, checkpoint="checkpoints/step-000040")
    write_run(tmp_path / "b", seed=1, benchmarks=evaluations, checkpoint="checkpoints/step-000100")
    told = compare([tmp_path], figures=[FIGURE])
    assert told.groups[0].estimates[FIGURE].mean == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("figure", "better"),
    [("answers_score", None), ("accounting_word_perplexity", "lower"), ("speech_wer", "lower"), (FIGURE, "higher")],
)
def test_a_task_s_name_does_not_tell_which_way_is_better(figure: str, better: str | None) -> None:
    assert direction(figure) == better


def test_a_score_that_was_no_number_is_told_as_such(tmp_path: Path) -> None:
    """As that of a model that has diverged: null in the record."""
    write(tmp_path, {"none": [math.nan, math.nan], "lora": [0.6, 0.61]})
    first, last = read_record(tmp_path / "none" / "seed0")["benchmarks"]
    assert benchmark_rows(last, first) == [("blimp causative acc", "no number (before training 0.6000)")]
    assert FIGURE not in compare([tmp_path]).groups[0].estimates


def test_of_a_group_of_tasks_the_group_alone_is_shown(tmp_path: Path) -> None:
    group = result(0.65, tasks=[NAME, "litpeft_blimp_transitive"], items=400)
    found = evaluation(100, **{NAME: result(0.7), "litpeft_blimp_transitive": result(0.6), "litpeft_blimp": group})
    write_run(tmp_path / "a", benchmarks=[found], checkpoint="checkpoints/step-000100")
    names = [figure.name for figure in compare([tmp_path]).figures]
    assert "litpeft_blimp_acc" in names
    assert FIGURE not in names
    assert [figure.name for figure in compare([tmp_path], figures=[FIGURE]).figures] == [FIGURE]


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "x", {"none": [0.7, 0.7]})
    write(tmp_path / "y", {"lora": [0.6, 0.6]}, fingerprint="limited", items=50)
    told = compare([tmp_path])
    assert FIGURE not in [figure.name for figure in told.figures]
    assert any(f"{FIGURE} is left out" in said and "asked other items" in said for said in told.warnings)
    with pytest.raises(UserError, match=rf"--figures {FIGURE}: .* were asked other items"):
        compare([tmp_path], figures=[FIGURE])


def keep(folder: Path, rows: list[float], name: str = NAME, metric: str = "acc") -> None:
    (folder / "benchmark_items").mkdir(exist_ok=True)
    (folder / "benchmark_items" / "step-000100.json").write_text(
        json.dumps({name: {"fingerprint": "f", metric: list(map(float, rows))}})
    )


def test_kept_items_are_tested_in_pairs(tmp_path: Path) -> None:
    """With one seed by McNemar's test, whose p is that of a fair coin over the items that differ."""
    draw = np.random.default_rng(0)
    first = draw.random(200) < 0.7
    second = np.where(draw.random(200) < 0.15, ~first, first)
    write(tmp_path, {"none": [first.mean()], "lora": [second.mean()]})
    keep(tmp_path / "none" / "seed0", list(first))
    keep(tmp_path / "lora" / "seed0", list(second))
    [_, lora] = compare([tmp_path]).groups
    tested = lora.over_examples[FIGURE]
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    assert tested.test == "McNemar over examples"
    assert tested.p == pytest.approx(binomtest(gained, gained + lost).pvalue)
    assert tested.mean == pytest.approx(second.mean() - first.mean())
    (tmp_path / "lora" / "seed0" / "benchmark_items" / "step-000100.json").unlink()
    assert compare([tmp_path]).groups[1].over_examples == {}


def test_shares_are_tested_by_a_bootstrap_of_items(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    first = draw.random(100)
    second = np.clip(first + 0.1 + draw.normal(0, 0.05, 100), 0, 1)
    write(tmp_path, {"none": [first.mean()], "lora": [second.mean()]})
    keep(tmp_path / "none" / "seed0", list(first))
    keep(tmp_path / "lora" / "seed0", list(second))
    tested = compare([tmp_path]).groups[1].over_examples[FIGURE]
    assert tested.test == "paired bootstrap over examples"
    assert tested.verdict == "better"
    (tmp_path / "none" / "seed0" / "benchmark_items" / "step-000100.json").write_text("{")
    with pytest.raises(UserError, match=r"benchmark_items/step-000100.json is not JSON: "):
        compare([tmp_path], examples=True)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_them(tmp_path: Path, form: str) -> None:
    write(tmp_path, {"none": [0.7, 0.72], "lora": [0.6, 0.61]})
    assert "causative" in FORMATS[form](compare([tmp_path]))

"""Benchmark scores in a comparison: columns, tests over items, and runs that are not comparable."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.benchmarks import all_figures
from litpeft.analysis.comparison.figures import direction
from litpeft.analysis.comparison.formats import FORMATS
from litpeft.errors import UserError
from litpeft.runs.benchmark_results import benchmark_rows
from litpeft.runs.record import read_record
from tests.analysis.comparison.build import write_run

NAME = "litpeft_blimp_causative"
FIGURE = f"{NAME}_acc"


def result(score: float, fingerprint: str = "items", items: int = 200, **more: Any) -> dict[str, Any]:
    values = {"scores": {"acc": score}, "standard_errors": {"acc": 0.03}, "items": items, "num_fewshot": 0, "tasks": []}
    return values | {"fingerprint": fingerprint} | more


def evaluation(step: int, **results: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "seconds": 1.0, "results": results, "skipped": {}}


def write(folder: Path, scores: dict[str, list[float]], **options: Any) -> Path:
    for adapter, values in scores.items():
        for seed, score in enumerate(values):
            evaluations = [evaluation(0, **{NAME: result(0.6)}), evaluation(100, **{NAME: result(score, **options)})]
            run = folder / adapter / f"seed{seed}"
            write_run(run, adapter, seed, None, benchmarks=evaluations, checkpoint="checkpoints/step-000100")
    return folder


def test_scores_are_shown_and_tested_over_seeds(tmp_path: Path) -> None:
    write(tmp_path, {"none": [0.70, 0.72, 0.71, 0.69, 0.73], "lora": [0.60, 0.61, 0.62, 0.59, 0.61]})
    comparison = compare([tmp_path])
    names = [figure.name for figure in comparison.figures]
    assert names[:2] == ["val_loss", FIGURE]
    assert not any(name.endswith(("_before", "_change")) for name in names)
    column = comparison.figures[1]
    assert (column.title, column.better, column.kind) == ("blimp causative acc, %", "higher", "benchmark")
    none, lora = comparison.groups
    assert none.estimates[FIGURE].mean == pytest.approx(0.71)
    assert lora.differences[FIGURE].verdict == "worse"
    assert lora.differences[FIGURE].mean == pytest.approx(0.606 - 0.71)


def test_score_before_training_and_change_can_be_requested(tmp_path: Path) -> None:
    write(tmp_path, {"none": [0.70, 0.72], "lora": [0.55, 0.57]})
    comparison = compare([tmp_path], figures=[f"{FIGURE}_before", f"{FIGURE}_change"])
    before, change = comparison.figures
    assert before.better is None  # not a result of training
    assert change.better == "higher"
    assert comparison.groups[0].estimates[change.name].mean == pytest.approx(0.11)
    assert comparison.groups[1].estimates[change.name].mean == pytest.approx(-0.04)
    assert comparison.groups[1].estimates[before.name].mean == 0.6
    with pytest.raises(UserError, match=rf"--figures {FIGURE}x: no run has it \(did you mean {FIGURE}\?\)"):
        compare([tmp_path], figures=[f"{FIGURE}x"])


def test_a_score_before_training_on_other_items_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, {"none": [0.7, 0.7]}, fingerprint="other")
    with pytest.raises(UserError, match="no run has it"):
        compare([tmp_path], figures=[f"{FIGURE}_change"])


def test_the_score_of_the_selected_checkpoint_counts(tmp_path: Path) -> None:
    evaluations = [evaluation(step, **{NAME: result(score)}) for step, score in ((0, 0.5), (40, 0.8), (100, 0.6))]
    write_run(tmp_path / "a", benchmarks=evaluations, checkpoint="checkpoints/step-000040")
    write_run(tmp_path / "b", seed=1, benchmarks=evaluations, checkpoint="checkpoints/step-000100")
    comparison = compare([tmp_path], figures=[FIGURE])
    assert comparison.groups[0].estimates[FIGURE].mean == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("figure", "better"),
    [("answers_score", None), ("accounting_word_perplexity", "lower"), ("speech_wer", "lower"), (FIGURE, "higher")],
)
def test_direction_comes_from_the_metric_not_from_the_task(figure: str, better: str | None) -> None:
    assert direction(figure) == better


def test_a_nan_score_is_shown_as_undefined(tmp_path: Path) -> None:
    """A diverged model has NaN scores, which are null in the record."""
    write(tmp_path, {"none": [math.nan, math.nan], "lora": [0.6, 0.61]})
    first, last = read_record(tmp_path / "none" / "seed0")["benchmarks"]
    assert benchmark_rows(last, first) == [("blimp causative acc", "undefined (before training 0.6000)")]
    assert FIGURE not in compare([tmp_path]).groups[0].estimates


def test_a_group_of_tasks_hides_its_tasks(tmp_path: Path) -> None:
    group = result(0.65, tasks=[NAME, "litpeft_blimp_transitive"], items=400)
    found = evaluation(100, **{NAME: result(0.7), "litpeft_blimp_transitive": result(0.6), "litpeft_blimp": group})
    write_run(tmp_path / "a", benchmarks=[found], checkpoint="checkpoints/step-000100")
    names = [figure.name for figure in compare([tmp_path]).figures]
    assert "litpeft_blimp_acc" in names
    assert FIGURE not in names
    assert [figure.name for figure in compare([tmp_path], figures=[FIGURE]).figures] == [FIGURE]


def test_scores_on_different_items_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "x", {"none": [0.7, 0.7]})
    write(tmp_path / "y", {"lora": [0.6, 0.6]}, fingerprint="limited", items=50)
    comparison = compare([tmp_path])
    assert FIGURE not in [figure.name for figure in comparison.figures]
    assert any(
        f"{FIGURE} is left out" in warning and "used different items" in warning for warning in comparison.warnings
    )
    with pytest.raises(UserError, match=rf"--figures {FIGURE}: .* used different items"):
        compare([tmp_path], figures=[FIGURE])


def keep(folder: Path, rows: list[float], name: str = NAME, metric: str = "acc") -> None:
    (folder / "benchmark_items").mkdir(exist_ok=True)
    (folder / "benchmark_items" / "step-000100.json").write_text(
        json.dumps({name: {"fingerprint": "items", metric: list(map(float, rows))}})
    )


def test_saved_items_are_tested_in_pairs(tmp_path: Path) -> None:
    """With one seed, McNemar's test is a binomial test on the items that differ."""
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


def test_fractional_scores_are_tested_with_the_bootstrap(tmp_path: Path) -> None:
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
def test_every_format_has_benchmark_scores(tmp_path: Path, form: str) -> None:
    write(tmp_path, {"none": [0.7, 0.72], "lora": [0.6, 0.61]})
    assert "causative" in FORMATS[form](compare([tmp_path]))


def test_a_model_that_was_only_evaluated_before_training_has_no_change() -> None:
    only = evaluation(0, **{NAME: result(0.6)})
    assert all_figures({"benchmarks": [only], "checkpoint": None}) == {FIGURE: 0.6}
    trained = [only, evaluation(100, **{NAME: result(0.7)})]
    assert all_figures({"benchmarks": trained, "checkpoint": None}) == {
        FIGURE: 0.7,
        f"{FIGURE}_before": 0.6,
        f"{FIGURE}_change": pytest.approx(0.1),
    }

"""The average over tasks: values, intervals and differences against a computation of their own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.tables import notes
from litpeft.commands import compare as compare_command
from litpeft.commands import report
from litpeft.errors import UserError
from tests.analysis.comparison.build import write_run

SCORES = {  # task -> adapter -> score of each seed
    "cola": {"none": [0.60, 0.58, 0.62], "lora": [0.57, 0.56, 0.60]},
    "stsb": {"none": [0.90, 0.88, 0.89], "lora": [0.885, 0.875, 0.87]},
    "mrpc": {"none": [0.85, 0.86, 0.84], "lora": [0.86, 0.85, 0.83]},
}
MAIN = {"cola": ["val_matthews"], "stsb": ["val_pearson", "val_spearman"], "mrpc": ["val_accuracy", "val_binary_f1"]}


def write_task(folder: Path, task: str, adapter: str, seed: int, score: float, **fields: Any) -> Path:
    """Write a run whose main metrics have the mean `score`."""
    spread = [0.01, -0.01] if len(MAIN[task]) == 2 else [0.0]
    metrics = {name: score + more for name, more in zip(MAIN[task], spread, strict=True)}
    tables = {split: {"fingerprint": f"{task}-{split}"} for split in ("train", "val")}
    summary = {"rows": {"train": 100, "val": 400}, "tables": tables}
    summary |= {"target_mean": [2.5]} if task == "stsb" else {}
    known = {
        "accuracy": metrics.pop("val_accuracy", None),
        "other_metrics": metrics or None,
        "main_metrics": MAIN[task],
        "metric_directions": {name.removeprefix("val_"): "higher" for name in MAIN[task]},
        "data_summary": summary,
        "train_seconds": 10.0 + seed,
        "options": {"data.init_args.task": task},
    }
    return write_run(folder / f"{task}-{adapter}-{seed}", adapter, seed, **known | fields)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for task, adapters in SCORES.items():
        for adapter, scores in adapters.items():
            for seed, score in enumerate(scores):
                write_task(tmp_path, task, adapter, seed, score)
    return tmp_path


def averages(adapter: str) -> list[float]:
    return [sum(SCORES[task][adapter][seed] for task in SCORES) / 3 for seed in range(3)]


def test_tasks_weigh_the_same_and_seeds_are_paired(runs: Path) -> None:
    found = compare([runs], average_over="data.task")
    assert [group.label for group in found.groups] == ["full", "lora"]
    assert [figure.name for figure in found.figures[:4]] == ["score_average", "score_cola", "score_mrpc", "score_stsb"]
    full, lora = found.groups
    for group, adapter in ((full, "none"), (lora, "lora")):
        estimate = group.estimates["score_average"]
        values = averages(adapter)
        assert estimate.mean == pytest.approx(sum(values) / 3)
        low, high = stats.t.interval(0.95, 2, loc=estimate.mean, scale=stats.sem(values))
        assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
        assert group.estimates["score_stsb"].mean == pytest.approx(sum(SCORES["stsb"][adapter]) / 3)
    difference = lora.differences["score_average"]
    expected = stats.ttest_rel(averages("lora"), averages("none"))
    assert (difference.pairs, difference.test) == (3, "paired t over seeds")
    assert difference.mean == pytest.approx(sum(averages("lora")) / 3 - sum(averages("none")) / 3)
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert lora.estimates["train_seconds"].mean == pytest.approx(3 * 11.0)  # the total of three tasks
    assert lora.estimates["peak_tensor_bytes"].mean == 300_000_000  # the largest
    assert lora.estimates["trainable_params"].mean == 74_498


@pytest.mark.parametrize("name", ["lora", "full", None])
def test_the_baseline_is_the_one_that_is_named(name: str | None, runs: Path) -> None:
    found = compare([runs], average_over="data.task", baseline=name)
    other = {"lora": "full"}.get(name, "lora")
    assert found.baseline == (name or "full")
    [group] = [group for group in found.groups if group.differences]
    assert group.label == other


def test_equal_differences_by_chance_are_not_significant(tmp_path: Path) -> None:
    """Accuracies are multiples of 1 / rows: two seeds with the same small difference prove nothing."""
    for task in ("cola", "mrpc"):
        for adapter, more in (("none", 0.0), ("lora", 0.0025)):
            for seed in range(2):
                write_task(tmp_path, task, adapter, seed, 0.8 + more)
    found = compare([tmp_path], average_over="data.task")
    difference = found.groups[1].differences["score_average"]
    step = math.sqrt(2 * (1 / 400) ** 2) / 2
    assert difference.p > 0.05
    half = stats.t.ppf(0.975, 1) * math.sqrt(step**2 / 6 / 2)
    assert difference.high - difference.mean == pytest.approx(half)


def test_a_seed_without_all_tasks_has_no_average(runs: Path) -> None:
    write_task(runs, "cola", "lora", 2, 0.6, status="oom", error="out of memory")
    found = compare([runs], average_over="data.task")
    lora = found.groups[1]
    assert lora.estimates["score_average"].count == 2
    assert lora.estimates["score_stsb"].count == 3
    assert any(sentence == "score_average is missing for lora (1 of 3 runs)." for sentence in found.warnings)
    assert any("out of memory" in sentence for sentence in found.warnings)


def test_text_says_what_the_scores_are(runs: Path, capsys: pytest.CaptureFixture) -> None:
    found = compare([runs], average_over="data.task")
    about = next(sentence for sentence in notes(found) if sentence.startswith("A score is"))
    assert "cola (matthews), mrpc (accuracy and binary_f1), stsb (pearson and spearman)" in about
    assert compare_command.main([str(runs), "--average_over", "data.task", "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert "average over 3 tasks, points" in shown
    assert "78.0" in shown  # the mean of full fine-tuning: 78.00 points
    assert compare_command.main([str(runs), "--average_over", "data.task", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"][0]["name"] == "score_average"


def test_the_report_has_the_average_and_every_run(runs: Path, tmp_path: Path) -> None:
    assert report.main([str(runs), "--average_over", "data.task", "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "average over 3 tasks" in page
    assert all(str(runs / f"{task}-lora-2") in page for task in SCORES)


def test_what_has_no_average_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--by data.taks: no run's record or configuration has it"):
        compare([runs], average_over="data.taks")
    write_task(runs, "stsb", "lora", 0, 0.8, main_metrics=["val_rmse"], metric_directions={"rmse": "lower"},
               other_metrics={"val_rmse": 1.0})  # fmt: skip
    with pytest.raises(UserError, match="val_rmse is none; choose the main metric of the run with --model.metrics"):
        compare([runs], average_over="data.task")
    with pytest.raises(UserError, match="all runs have the same value, cola"):
        compare([*(runs / f"cola-{name}-0" for name in ("none", "lora"))], average_over="data.task")


def test_options_that_differ_are_named_without_the_task(tmp_path: Path) -> None:
    for task in ("cola", "mrpc"):
        for adapter, size in (("none", 16), ("lora", 32)):
            options = {"data.init_args.task": task, "data.init_args.batch_size": size}
            for seed in (0, 1):
                write_task(tmp_path, task, adapter, seed, 0.5 + seed / 10, options=options)
    found = compare([tmp_path], average_over="data.task")
    assert found.confounded == {"data.batch_size": {"full": "16", "lora": "32"}}


def test_columns_can_be_chosen_and_other_options_are_refused(runs: Path) -> None:
    found = compare([runs], average_over="data.task", figures=["score_stsb", "score_average"])
    assert [figure.name for figure in found.figures] == ["score_stsb", "score_average"]
    with pytest.raises(UserError, match="--figures val_loss: an average over tasks has score_average, score_cola"):
        compare([runs], average_over="data.task", figures=["val_loss"])
    with pytest.raises(UserError, match="--average_over data.task: --target is for runs of one task"):
        compare([runs], average_over="data.task", targets=[("val_accuracy", 0.5)])


def test_different_rows_of_a_task_are_refused(runs: Path) -> None:
    other = {"rows": {"val": 400}, "tables": {"val": {"fingerprint": "other"}}}
    write_task(runs, "cola", "lora", 0, 0.5, data_summary=other)
    write_task(runs, "cola", "lora", 1, 0.5, data_summary=other)
    write_task(runs, "cola", "lora", 2, 0.5, data_summary=other)
    found = compare([runs], average_over="data.task")  # data is an axis, so this is a warning and no error
    assert any("were validated on 2 different tables" in sentence for sentence in found.warnings)


def test_other_machines_and_versions_of_any_task_are_said(runs: Path) -> None:
    assert not any("kinds of machine" in each for each in compare([runs], average_over="data.task").warnings)
    record = json.loads((runs / "stsb-lora-2" / "record.json").read_text())
    record["machine"] = {"processor": "another", "cpu_count": 2}
    record["packages"] = {"torch": "2.99.0"}
    (runs / "stsb-lora-2" / "record.json").write_text(json.dumps(record))
    warnings = compare([runs], average_over="data.task").warnings
    assert any("2 kinds of machine" in each and "processor another" in each for each in warnings)
    assert any("Versions differ: torch" in each and "2.99.0" in each for each in warnings)

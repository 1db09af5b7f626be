"""A score of n rows has steps of 1 / n: two seeds that differ by a row are no proof, and equal ones no certainty."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.benchmarks import BEFORE, CHANGE
from litpeft.analysis.comparison.figures import direction, resolution, value
from litpeft.analysis.comparison.results import Estimate, Run
from litpeft.analysis.power import pairs_needed, pairs_to_decide
from litpeft.analysis.stats import LEVEL, ONE_SIDED, paired_t
from litpeft.errors import UserError
from tests.analysis.comparison.build import write_grid, write_run
from tests.analysis.comparison.test_benchmarks import evaluation, result

BASE, BETTER = (0.70, 0.71), (0.705, 0.715)
SUMMARY = {
    "rows": {"train": 6920, "val": 872, "test": 200},
    "tables": {split: {"fingerprint": f"{split}-1"} for split in ("train", "val", "test")},
}


def write_pairs(folder: Path, fields: Any) -> None:
    """Write two seeds of two groups; `fields` returns the record fields for a score."""
    for adapter, scores in (("none", BASE), ("lora", BETTER)):
        for seed, score in enumerate(scores):
            write_run(folder / f"{adapter}{seed}", adapter, seed, 0.9, **fields(score))


def of_benchmark(score: float) -> dict[str, Any]:
    scores = {"scores": {"acc": score, "bleu": score}, "standard_errors": {}}
    return {"benchmarks": [evaluation(100, task=result(score) | scores)], "checkpoint": "checkpoints/step-000100"}


def of_test_rows(score: float) -> dict[str, Any]:
    return {"test_accuracy": score, "data_summary": SUMMARY}


@pytest.mark.parametrize(("name", "fields"), [("test_accuracy", of_test_rows), ("task_acc", of_benchmark)])
def test_one_row_of_200_is_no_difference(tmp_path: Path, name: str, fields: Any) -> None:
    write_pairs(tmp_path, fields)
    full, lora = compare([tmp_path], figures=[name]).groups
    found = lora.differences[name]
    assert found.mean == pytest.approx(0.005)
    assert found.p > 0.1
    assert found.low < 0 < found.high
    error = 0.005 / math.sqrt(6) / math.sqrt(2)
    assert found.high - found.low == pytest.approx(2 * 12.7062 * error, rel=1e-3)
    estimate = full.estimates[name]
    assert estimate.low < estimate.mean < estimate.high


def test_a_score_that_is_no_share_of_the_items_has_no_steps(tmp_path: Path) -> None:
    write_pairs(tmp_path, of_benchmark)
    assert compare([tmp_path], figures=["task_bleu"]).groups[1].differences["task_bleu"].verdict == "better"


@pytest.mark.parametrize(("asked", "rows"), [(20, 20), (None, 200), (0, 200), (500, 200)])
def test_a_share_of_exact_answers_has_the_steps_of_the_rows_that_were_answered(
    tmp_path: Path, asked: int | None, rows: int
) -> None:
    """A language model answers `model.generate_samples` of the validation rows; of label sets, all rows count."""
    options = {} if asked is None else {"model.init_args.generate_samples": asked}
    small = SUMMARY | {"rows": {"val": 200}}
    for adapter, scores in (("none", (0.5, 0.6)), ("lora", (0.55, 0.65))):
        for seed, score in enumerate(scores):
            others = {"val_exact_match": score}
            folder = tmp_path / f"{adapter}{seed}"
            write_run(folder, adapter, seed, options=options, other_metrics=others, data_summary=small)
    found = compare([tmp_path], figures=["val_exact_match"]).groups[1].differences["val_exact_match"]
    error = 1 / rows / math.sqrt(6) / math.sqrt(2)
    assert found.p == pytest.approx(2 * stats.t.sf(0.05 / error, 1), rel=1e-6)
    assert found.verdict == ("not enough seeds" if rows == 20 else "better")


def test_two_equal_accuracies_have_an_interval_with_a_width(tmp_path: Path) -> None:
    write_grid(tmp_path, {"lora": [0.85, 0.85]})
    found: Estimate = compare([tmp_path]).groups[0].estimates["val_accuracy"]
    assert found.low < found.mean < found.high
    assert found.high - found.mean == pytest.approx(12.7062 / 872 / math.sqrt(12) / math.sqrt(2), rel=1e-3)


def test_the_coarser_of_two_validation_sets_decides(tmp_path: Path) -> None:
    small = SUMMARY | {"rows": {"val": 100}}
    steps = []
    for name, first in (("a", SUMMARY), ("b", small)):
        for seed, (mine, other) in enumerate(zip(BASE, BETTER, strict=True)):
            write_run(tmp_path / name / f"none{seed}", "none", seed, mine, data_summary=first)
            write_run(tmp_path / name / f"lora{seed}", "lora", seed, other, data_summary=SUMMARY)
        found = compare([tmp_path / name]).groups[1].differences["val_accuracy"]
        steps.append((found.high - found.low) / 2 / 12.7062 * math.sqrt(2) * math.sqrt(6))
    assert [1 / step for step in steps] == pytest.approx([872, 100], rel=1e-3)


def test_the_steps_of_an_accuracy_are_those_of_its_own_rows() -> None:
    run = Run(Path("x"), {"data_summary": SUMMARY, "seed": 0}, {})
    names = ("val_accuracy", "test_accuracy", "merged_val_accuracy", "val_loss", "train_accuracy")
    assert [resolution(run, name) for name in names] == [1 / 872, 1 / 200, 1 / 872, 0.0, 0.0]


def test_equal_methods_differ_significantly_in_f1_in_at_most_five_of_a_hundred_comparisons() -> None:
    """F1 of a few rows has few values, so the differences of two seeds are often equal: that is no certainty."""
    random, rows = np.random.default_rng(0), 20
    labels = np.arange(rows) % 2
    step = resolution(Run(Path("x"), {"data_summary": {"rows": {"val": rows}}, "seed": 0}, {}), "val_f1")
    found = []
    for _ in range(400):
        wrong = random.random((2, 2, rows)) < 0.15  # (method, seed, row)
        scores = [[f1_score(labels, labels ^ seed, average="macro") for seed in method] for method in wrong.astype(int)]
        found.append(paired_t(*scores, step).p < LEVEL)
    assert np.mean(found) <= LEVEL


@pytest.mark.parametrize("name", ["f1", "binary_f1", "macro_f1", "balanced_accuracy", "recall", "matthews", "kappa"])
def test_the_same_difference_of_two_seeds_on_few_rows_is_not_exact(tmp_path: Path, name: str) -> None:
    small = SUMMARY | {"rows": {"val": 20}}
    for adapter, scores in (("none", (0.7, 0.8)), ("lora", (0.75, 0.85))):
        for seed, score in enumerate(scores):
            others = {f"val_{name}": score} if name != "f1" else {"val_accuracy": 0.5}
            more = {"metric_directions": {name: "higher"}} | ({"val_f1": score} if name == "f1" else {})
            write_run(tmp_path / f"{adapter}{seed}", adapter, seed, other_metrics=others, data_summary=small, **more)
    found = compare([tmp_path], figures=[f"val_{name}"]).groups[1].differences[f"val_{name}"]
    error = 1 / 20 / math.sqrt(6) / math.sqrt(2)
    assert found.p == pytest.approx(2 * stats.t.sf(0.05 / error, 1), rel=1e-6)


def test_the_steps_of_a_benchmarks_share_are_those_of_its_own_items() -> None:
    result = {"scores": {"accuracy": 0.5, "accuracy_a": 0.5, "ece": 0.1}, "items": 100, "items_of": {"accuracy_a": 20}}
    evaluation = {"step": 1, "results": {"held_out": result | {"fingerprint": "f", "tasks": [], "standard_errors": {}}}}
    run = Run(Path("x"), {"benchmarks": [evaluation], "val_step": 1, "seed": 0}, {})
    names = ("held_out_accuracy", "held_out_accuracy_a", "held_out_accuracy_a_change", "held_out_ece")
    assert [resolution(run, name) for name in names] == [1 / 100, 1 / 20, 1 / 20, 0.0]


def reached(seconds: float, accuracy: float = 0.9) -> list[dict[str, Any]]:
    return [{"step": 1, "train_seconds": seconds, "val_accuracy": accuracy}]


@pytest.mark.parametrize("missing", ["none", "lora"])
def test_the_time_to_a_target_that_one_side_missed_once_is_not_tested(tmp_path: Path, missing: str) -> None:
    """The seeds that are left are those that went well, which would bias the test."""
    for seed in range(4):
        for adapter, seconds in (("none", 100.0), ("lora", 10.0)):
            accuracy = 0.5 if (adapter, seed) == (missing, 0) else 0.9
            validations = reached(seconds + seed, accuracy)
            write_run(tmp_path / f"{adapter}{seed}", adapter, seed, validations=validations)
    found = compare([tmp_path], targets=[("val_accuracy", 0.85)]).groups[1].differences["seconds_to_val_accuracy_0.85"]
    assert (found.p, found.verdict) == (None, "not enough seeds")


@pytest.mark.parametrize(
    ("metric", "goal", "seconds"),
    [
        ("val_loss", 0.5, 20),
        ("val_loss", 0.4, 30),
        ("val_loss", 0.1, None),
        ("val_accuracy", 0.8, 20),
        ("val_ece", 0.2, 10),
        ("val_style", 0.8, 20),
    ],
)
def test_a_target_is_reached_from_the_side_that_is_better(metric: str, goal: float, seconds: float | None) -> None:
    rows = [(0.9, 0.7, 0.1), (0.5, 0.8, 0.3), (0.4, 0.9, 0.4), (0.6, 0.6, 0.5)]
    validations = [
        {
            "train_seconds": 10.0 * place,
            "val_loss": loss,
            "val_accuracy": accuracy,
            "val_ece": ece,
            "val_style": accuracy,
        }
        for place, (loss, accuracy, ece) in enumerate(rows, 1)
    ]
    record = json.loads(json.dumps({"validations": validations, "metric_directions": {"style": "higher"}}))
    assert value(record, f"seconds_to_{metric}_{goal}") == seconds


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_figures_of_different_tables_are_not_compared(tmp_path: Path, split: str) -> None:
    other = SUMMARY | {"tables": SUMMARY["tables"] | {split: {"fingerprint": "other"}}}
    write_run(tmp_path / "a", "none", data_summary=SUMMARY)
    write_run(tmp_path / "b", "lora", data_summary=other)
    with pytest.raises(UserError, match=rf"different tables \({split} fingerprints\)"):
        compare([tmp_path])


@pytest.mark.parametrize("axis", [None, "data.init_args.batch_size"])
@pytest.mark.parametrize("place", ["group", "groups"])
def test_figures_of_different_numbers_of_test_rows_are_not_compared(
    tmp_path: Path, place: str, axis: str | None
) -> None:
    """`litpeft test --data.test_samples 50` takes the first rows of the table, and changes no option of the run."""
    fewer = SUMMARY | {"rows": SUMMARY["rows"] | {"test": 50}}
    whole, other = ("none", 0), ("none", 1) if place == "group" else ("lora", 0)
    for number, (run, data) in enumerate(((whole, SUMMARY), (other, fewer))):
        size = {axis: 16 * (number + 1)} if axis and place == "groups" else None
        write_run(tmp_path / f"{number}", *run, options=size, data_summary=data, test_accuracy=0.5)
    told = r"1 was tested on 50 rows and .*0 on 200 of the same table: their test figures are not comparable"
    if axis:
        by = ["adapter", "data.batch_size"]
        assert [text for text in compare([tmp_path], by=by).warnings if re.search(told, text)]
    else:
        with pytest.raises(UserError, match=told):
            compare([tmp_path])


def test_the_seeds_needed_are_those_of_the_strictest_level_of_holm(tmp_path: Path) -> None:
    scores = {"none": [0.90, 0.92, 0.91], "lora": [0.92, 0.91, 0.93], "dora": [0.89, 0.93, 0.885]}
    write_grid(tmp_path, scores)
    for group in compare([tmp_path]).groups[1:]:
        found = group.differences["val_accuracy"]
        differences = [a - b for a, b in zip(scores[group.label], scores["none"], strict=True)]
        sd = math.sqrt(sum((each - found.mean) ** 2 for each in differences) / 2)
        assert found.seeds_needed == pairs_needed(found.mean, sd, LEVEL / 2) != pairs_needed(found.mean, sd)
        assert found.seeds_for_margin == pairs_to_decide(0.01, sd, ONE_SIDED / 2) != pairs_to_decide(0.01, sd)


def test_the_direction_of_a_figure_is_that_of_the_record_then_of_its_name() -> None:
    assert direction("val_style", {"style": "lower"}) == "lower"
    assert direction("val_style") is None
    assert direction("peak_rss_bytes") == direction("val_loss") == "lower"
    assert direction("task_acc" + CHANGE) == direction("task_acc") == "higher"
    assert direction("task_acc" + BEFORE) is None

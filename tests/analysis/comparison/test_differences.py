"""Figures with intervals and differences with verdicts, tested over seeds and over rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats as reference
from statsmodels.stats.multitest import multipletests

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.margins import Margin
from litpeft.analysis.stats import mcnemar, paired_bootstrap
from litpeft.errors import UserError
from tests.analysis.comparison.build import write_grid, write_run

FOUR = {
    "none": [0.900, 0.912, 0.921, 0.905],
    "lora": [0.880, 0.901, 0.905, 0.893],
    "dora": [0.902, 0.909, 0.925, 0.903],
    "qlora-nf4": [0.885, 0.908, 0.909, 0.900],
}


def rows(right: list[int], table: str = "val-1", step: int = 100) -> dict:
    return {"correct": right, "loss": [0.1 if each else 2.0 for each in right], "table": table, "step": step}


def test_p_values_equal_scipy_with_correction_of_statsmodels(tmp_path: Path) -> None:
    groups = compare([write_grid(tmp_path, FOUR)]).groups[1:]
    expected = [reference.ttest_rel(FOUR[group.label], FOUR["none"]).pvalue for group in groups]
    corrected = multipletests(expected, method="holm")[1]
    found = [group.differences["val_accuracy"] for group in groups]
    assert [each.p for each in found] == pytest.approx(expected)
    assert [each.p_holm for each in found] == pytest.approx(corrected)
    assert [each.is_significant for each in found] == [p < 0.05 for p in corrected]
    assert [each.verdict for each in found] == ["equivalent", "worse", "not enough seeds"]
    assert found[2].p < 0.05 < found[2].p_holm
    assert found[0].test == "paired t over seeds"


def test_better_depends_on_the_direction_of_the_figure(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path / f"a{seed}", "none", seed, val_loss=0.5 + seed / 100, train_tokens_per_second=1000 + seed)
        write_run(
            tmp_path / f"b{seed}", "lora", seed, val_loss=0.4 + seed / 90, train_tokens_per_second=2000 + 2 * seed
        )
    lora = compare([tmp_path]).groups[1]
    assert lora.differences["val_loss"].verdict == lora.differences["train_tokens_per_second"].verdict == "better"
    assert compare([tmp_path], baseline="lora").groups[0].differences["val_loss"].verdict == "worse"


def test_equal_differences_are_significant_for_bytes_but_not_for_accuracy(tmp_path: Path) -> None:
    write_grid(tmp_path, {"none": [0.85, 0.86]})
    for seed, accuracy in enumerate((0.85, 0.86)):
        write_run(tmp_path / f"b{seed}", "lora", seed, accuracy + 1 / 872, peak_tensor_bytes=200_000_000)
    lora = compare([tmp_path]).groups[1]
    assert (lora.differences["peak_tensor_bytes"].p, lora.differences["peak_tensor_bytes"].verdict) == (0, "better")
    assert lora.differences["peak_rss_bytes"].p == 1
    assert lora.differences["val_accuracy"].verdict == "equivalent"  # one of 872 rows
    assert compare([tmp_path], margins={"val_accuracy": Margin(0.4, False)}).groups[1].differences[
        "val_accuracy"
    ].verdict == ("not enough seeds")


def test_only_common_seeds_are_tested(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.90, 0.91, 0.95)):
        write_run(tmp_path / f"a{seed}", "none", seed, accuracy)
    for seed, accuracy in ((1, 0.90), (2, 0.93), (9, 0.1)):
        write_run(tmp_path / f"b{seed}", "lora", seed, accuracy)
    write_run(tmp_path / "c", "dora", 5, 0.99)
    full, dora, lora = compare([tmp_path]).groups
    assert lora.differences["val_accuracy"].pairs == 2
    assert lora.differences["val_accuracy"].mean == pytest.approx(-0.015)
    assert full.estimates["val_accuracy"].count == lora.estimates["val_accuracy"].count == 3
    assert dora.differences == {}


def test_one_pair_gives_no_test(tmp_path: Path) -> None:
    write_grid(tmp_path, {"none": [0.9], "lora": [0.8]})
    found = compare([tmp_path]).groups[1].differences["val_accuracy"]
    assert found.mean == pytest.approx(-0.1)
    assert (found.low, found.high, found.p, found.p_holm, found.test, found.seeds_needed) == (None,) * 6
    assert (found.verdict, found.pairs) == ("not enough seeds", 1)


def test_unknown_values_are_left_out_with_a_warning(tmp_path: Path) -> None:
    write_grid(tmp_path, {"none": [0.9, 0.91], "lora": [0.8, 0.82]}, energy_joules=None)
    write_run(tmp_path / "x", "none", 2, None, val_loss=float("nan"), peak_tensor_bytes=None)
    comparison = compare([tmp_path])
    assert comparison.figures[0].name == "val_loss"  # one run has no accuracy
    assert comparison.groups[0].estimates["val_loss"].count == 2
    assert "energy_joules" not in [figure.name for figure in comparison.figures]
    assert "val_loss is missing for full (1 of 3 runs)." in comparison.warnings


def test_time_to_a_target_is_the_time_of_the_first_validation_that_reaches_it(tmp_path: Path) -> None:
    def validations(*accuracies: float) -> list[dict]:
        return [{"step": i, "train_seconds": 10.0 * i, "val_accuracy": each} for i, each in enumerate(accuracies, 1)]

    write_run(tmp_path / "a", "none", 0, validations=validations(0.7, 0.85, 0.8, 0.9))
    write_run(tmp_path / "b", "lora", 0, validations=validations(0.7, 0.84))
    write_run(tmp_path / "c", "lora", 1, validations=validations(0.9))
    comparison = compare([tmp_path], targets=[("val_accuracy", 0.85)])
    name = "seconds_to_val_accuracy_0.85"
    assert [group.estimates[name].mean for group in comparison.groups] == [20, 10]
    (warning,) = [sentence for sentence in comparison.warnings if sentence.startswith("Never reached")]
    assert warning.startswith("Never reached val_accuracy 0.85: lora (1 of 2 runs).")
    (figure,) = [figure for figure in comparison.figures if figure.name == name]
    assert (figure.title, figure.better, figure.kind) == ("time to validation accuracy ≥ 0.85, s", "lower", "speed")


def test_any_metric_can_be_requested(tmp_path: Path) -> None:
    write_run(tmp_path / "a", other_metrics={"gsm8k_exact_match": 0.3, "style": 2.0}, steps=10)
    comparison = compare([tmp_path], figures=["gsm8k_exact_match", "style", "steps", "load_seconds"][:3])
    assert [(figure.better, figure.kind) for figure in comparison.figures] == [
        *(("higher", "quality"), (None, "quality"), (None, "size")),
    ]
    assert comparison.groups[0].estimates["gsm8k_exact_match"].mean == 0.3


def test_gpu_runs_are_compared_by_reserved_memory(tmp_path: Path) -> None:
    write_run(tmp_path / "a", peak_reserved_bytes=10**9)
    names = [figure.name for figure in compare([tmp_path]).figures]
    assert "peak_reserved_bytes" in names
    assert "peak_tensor_bytes" not in names


def test_one_seed_is_tested_over_rows(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    first, second = ((draw.random(200) < share).astype(int).tolist() for share in (0.7, 0.9))
    write_run(tmp_path / "a", "none", examples=rows(first))
    write_run(tmp_path / "b", "lora", examples=rows(second))
    lora = compare([tmp_path]).groups[1]
    found, expected = lora.over_examples["val_accuracy"], mcnemar(second, first)
    assert (found.p, found.low, found.high, found.mean) == (expected.p, expected.low, expected.high, expected.mean)
    assert (found.test, found.verdict, found.pairs) == ("McNemar over examples", "better", 1)
    assert lora.over_examples["val_loss"].test == "paired bootstrap over examples"
    assert lora.differences["val_accuracy"].verdict == "not enough seeds"
    assert compare([tmp_path], examples=False).groups[1].over_examples == {}


def test_several_seeds_are_tested_over_rows_with_bootstrap_and_holm(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    correct = {}
    for adapter, share in {"none": 0.7, "lora": 0.78, "dora": 0.7}.items():
        correct[adapter] = (draw.random((2, 300)) < share).astype(int)
        for seed in range(2):
            write_run(tmp_path / f"{adapter}{seed}", adapter, seed, examples=rows(correct[adapter][seed].tolist()))
    groups = compare([tmp_path], examples=True).groups[1:]
    found = [group.over_examples["val_accuracy"] for group in groups]
    expected = [paired_bootstrap(correct[group.label], correct["none"]).p for group in groups]
    assert [each.p for each in found] == expected
    assert [each.p_holm for each in found] == pytest.approx(multipletests(expected, method="holm")[1])
    assert found[0].test == "paired bootstrap over examples"


@pytest.mark.parametrize("spare", [0, -1])
def test_row_results_are_read_unasked_up_to_8_mib_of_them(spare: int, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name, examples=rows([1, 0, 1])) for name in ("none", "lora")]
    files = [run / "val_examples.json" for run in runs]
    more = 8 * 2**20 - spare - sum(file.stat().st_size for file in files)
    with files[1].open("a") as file:
        file.write(" " * more)  # JSON may end in blanks
    assert bool(compare([tmp_path]).groups[1].over_examples) == (spare == 0)
    assert compare([tmp_path], examples=True).groups[1].over_examples


@pytest.mark.parametrize("change", [{"table": "val-2"}, {"step": 50}])
def test_row_results_of_other_rows_or_steps_are_left_out(tmp_path: Path, change: dict) -> None:
    write_run(tmp_path / "a", "none", examples=rows([1, 0, 1]))
    write_run(tmp_path / "b", "lora", examples=rows([1, 1, 1]) | change)
    comparison = compare([tmp_path])
    assert comparison.groups[1].over_examples == {}
    assert any(
        sentence.startswith("lora, seed 0: its row results have other rows than full")
        for sentence in comparison.warnings
    )


def test_an_invalid_file_of_row_results_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "none", examples=rows([1, 0, 1]))
    run = write_run(tmp_path / "b", "lora", examples=rows([1, 1, 1]))
    (run / "val_examples.json").write_text("{}")
    with pytest.raises(UserError, match=r"b/val_examples.json is not a valid file of row results"):
        compare([tmp_path])
    (run / "val_examples.json").unlink()
    assert compare([tmp_path]).groups[1].over_examples == {}  # a missing file is an error only on request
    with pytest.raises(UserError, match=r"b/val_examples.json: No such file"):
        compare([tmp_path], examples=True)


def test_a_target_that_some_seeds_never_reached_is_not_tested(tmp_path: Path) -> None:
    def reached(seconds: float, accuracy: float = 0.9) -> list[dict]:
        return [{"step": 1, "train_seconds": seconds, "val_accuracy": accuracy}]

    for seed in range(4):
        write_run(tmp_path / f"a{seed}", "none", seed, validations=reached(100 + seed))
        write_run(tmp_path / f"b{seed}", "lora", seed, validations=reached(10 + seed, 0.9 if seed else 0.5))
        write_run(tmp_path / f"c{seed}", "dora", seed, validations=reached(10 + seed))
    name = "seconds_to_val_accuracy_0.85"
    _, dora, lora = compare([tmp_path], targets=[("val_accuracy", 0.85)]).groups
    assert (lora.differences[name].verdict, lora.differences[name].mean, lora.differences[name].p) == (
        "not enough seeds",
        -90,
        None,
    )
    assert dora.differences[name].verdict == "better"

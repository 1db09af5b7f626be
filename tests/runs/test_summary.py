"""The summary of a run as rows of a table, the names of strategies in it, and the scores of its benchmarks."""

from __future__ import annotations

from typing import Any

import pytest

from litpeft.runs.benchmark_results import benchmark_rows, final_evaluation, scores
from litpeft.runs.record import new_record
from litpeft.runs.strategy_names import shown_label, shown_name, stored_name
from litpeft.runs.summary import metric_text, other_metrics, summary

MIB = 2**20
PHASES = {
    "load": {"tensor_bytes": {"base_weights": 5}},
    "train": {"peak_tensor_bytes": 9 * MIB, "tensor_bytes": {"base_weights": 6 * MIB, "gradients": 0, "optimizer_state": 3 * MIB}},
    "validate": {"peak_tensor_bytes": None},
}  # fmt: skip
FULL = {
    "status": "ok", "adapter": "none", "trainable_params": 1234, "total_params": 100_000, "model_bytes": 3 * MIB,
    "adapter_bytes": 1023, "adapter_summary": {"quantised": {"params": 5000, "layers": 12, "bytes": 2048}},
    "peak_allocated_bytes": 3 * 2**30, "peak_rss_bytes": 5000 * 2**30, "peak_tensor_bytes": 9 * MIB, "memory_phases": PHASES,
    "steps": 1200, "train_seconds": 61.26, "step_seconds_p50": 0.0514,
    "step_split_seconds_p50": {"data_wait": 0.001, "forward": 0.02, "backward": None},
    "train_samples_per_second": 1234.5, "train_tokens_per_second": 99.6, "model_flops_per_second": 1.234e12,
    "flops_utilisation": 0.256, "energy_joules": 12345.6, "train_loss": 0.51234, "val_loss": 0.4, "val_accuracy": 0.91237,
    "test_accuracy": 0.5, "other_metrics": {"val_macro_f1": 0.25, "test_mae": 1.5, "val_none": None, "mine": 2.0},
}  # fmt: skip


def test_the_rows_of_a_full_record() -> None:
    assert summary(new_record() | FULL) == [
        ("status", "ok"),
        ("adapter", "full"),
        ("trainable params", "1,234 of 100,000 (1.23%)"),
        ("quantised", "5,000 params of 12 layers, 2.0 KiB"),
        ("model / adapter bytes", "3.0 MiB / 1023 B"),
        ("peak GPU memory", "3.0 GiB"),
        ("peak host memory", "5000.0 GiB"),
        ("peak tensor memory", "9.0 MiB"),
        ("  base weights", "6.0 MiB"),
        ("  optimizer state", "3.0 MiB"),
        ("steps", "1,200 in 61.3 s"),
        ("median step", "0.051 s"),
        ("  data wait", "0.001 s"),
        ("  forward", "0.020 s"),
        ("rows per second", "1,234"),
        ("tokens per second", "100 (padding not counted)"),
        ("model FLOP/s", "1.23e+12 (26% of the peak)"),
        ("energy", "12,346 J"),
        ("training loss", "0.5123"),
        ("validation loss", "0.4000"),
        ("validation accuracy", "91.24%"),
        ("test accuracy", "50.00%"),
        ("validation macro f1", "25.00%"),
        ("test mae", "1.5000"),
        ("mine", "2.0000"),
    ]


def test_what_is_unknown_is_left_out_and_zero_is_not() -> None:
    assert summary(new_record()) == [("status", "interrupted"), ("model / adapter bytes", "None / None")]
    some = {
        "steps": 0,
        "train_seconds": 5.0,
        "trainable_params": 0,
        "total_params": 5,
        "val_loss": 0.0,
        "energy_joules": 0.0,
    }
    assert summary(new_record() | some)[2:] == [("energy", "0 J"), ("validation loss", "0.0000")]
    assert ("model FLOP/s", "5e+03") in summary(new_record() | {"model_flops_per_second": 5000.0})
    assert other_metrics({}) == []


@pytest.mark.parametrize(
    ("name", "text"), [("val_accuracy", "12.35%"), ("f1", "12.35%"), ("macro_f1", "12.35%"), ("f1_of", "0.1235"), ("mae", "0.1235")]
)  # fmt: skip
def test_accuracies_and_f1_are_percentages(name: str, text: str) -> None:
    assert metric_text(name, 0.12345) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.14159e-9, "3.142e-09"), (-0.00012, "-0.00012"), (0.0, "0.0000"), (0.25, "0.2500")]
)
def test_a_small_metric_is_not_shown_as_zero(value: float, text: str) -> None:
    assert metric_text("val_mse", value) == text


def result(acc: float | None, error: float | None = None) -> dict[str, Any]:
    return {"scores": {"acc": acc}, "standard_errors": {} if error is None else {"acc": error}}


def evaluation(step: int, skipped: dict[str, str] | None = None, **results: Any) -> dict[str, Any]:
    return {"step": step, "results": results, "skipped": skipped or {}}


FIRST = evaluation(0, litpeft_blimp=result(0.5), mmlu=result(0.25))
LAST = evaluation(
    8, {"litpeft_arc_easy": "no time is left"}, litpeft_blimp=result(0.75, 0.0625), mmlu=result(None), new=result(1.0)
)


def test_scores_stand_beside_those_before_training_and_skipped_benchmarks_below() -> None:
    assert benchmark_rows(LAST, FIRST) == [
        ("blimp acc", "0.7500 ± 0.0625 (before training 0.5000)"),
        ("mmlu acc", "undefined (before training 0.2500)"),
        ("new acc", "1.0000"),
        ("arc easy", "skipped: no time is left"),
    ]
    assert benchmark_rows(LAST)[0] == ("blimp acc", "0.7500 ± 0.0625")
    assert scores(LAST) == {"litpeft_blimp_acc": 0.75, "new_acc": 1.0}
    rows = dict(summary(new_record() | {"benchmarks": [FIRST, LAST]}))
    assert rows["blimp acc"] == "0.7500 ± 0.0625 (before training 0.5000)"
    assert dict(summary(new_record() | {"benchmarks": [LAST]}))["blimp acc"] == "0.7500 ± 0.0625"
    assert dict(summary(new_record() | {"benchmarks": [FIRST]}))["blimp acc"] == "0.5000"  # not beside itself
    between = evaluation(4, litpeft_blimp=result(0.6))
    assert dict(summary(new_record() | {"benchmarks": [between, LAST]}))["blimp acc"] == "0.7500 ± 0.0625"


@pytest.mark.parametrize(
    ("checkpoint", "step"),
    [(None, 8), ("checkpoints/step-000004", 4), ("checkpoints/step-000008", 8), ("checkpoints/step-000005", None)],
)
def test_the_final_evaluation_is_that_of_the_selected_checkpoint(checkpoint: str | None, step: int | None) -> None:
    record = {"benchmarks": [FIRST, evaluation(4), LAST], "checkpoint": checkpoint}
    found = final_evaluation(record)
    assert (None if found is None else found["step"]) == step
    assert final_evaluation({}) is final_evaluation({"benchmarks": None}) is None


@pytest.mark.parametrize(
    ("stored", "shown"), [("none", "full"), ("lora", "lora"), ("none-2", "none-2"), ("full", "full")]
)
def test_a_strategy_without_an_adapter_is_full_for_people(stored: str, shown: str) -> None:
    assert shown_name(stored) == shown
    assert stored_name(shown_name(stored)) == ("none" if stored in ("none", "full") else stored)


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("none", "full"), ("none,lr=0.1", "full,lr=0.1"), ("lr=0.1, none", "lr=0.1, full"), ("init=none", "init=none"),
        ("none seed 0", "none seed 0"), ("nonesuch,none", "nonesuch,full"), ("a,none,b", "a,full,b"),
    ],
)  # fmt: skip
def test_in_a_label_only_a_whole_name_is_shown_as_full(label: str, shown: str) -> None:
    assert shown_label(label) == shown


def test_a_score_before_training_on_other_items_does_not_stand_beside_the_score() -> None:
    """As after `litpeft evaluate --limit 100` on a run whose scores before training are of all items."""
    first, last = (evaluation(step, mmlu=result(0.25 + step) | {"fingerprint": "all"}) for step in (0, 8))
    assert benchmark_rows(last, first) == [("mmlu acc", "8.2500 (before training 0.2500)")]
    last["results"]["mmlu"]["fingerprint"] = "the first hundred"
    assert benchmark_rows(last, first) == [("mmlu acc", "8.2500")]

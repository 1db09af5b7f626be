"""The answer says exactly what the verdicts say, and recommends nothing that is undecided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.answer import Answer, answer, verdict_text
from litpeft.analysis.comparison.figures import figure
from litpeft.analysis.comparison.margins import Margin
from litpeft.analysis.comparison.number_format import MINUS
from litpeft.analysis.comparison.results import Difference
from litpeft.runs.record import read_record, write_record
from tests.analysis.comparison.build import write_grid, write_run

MIB = 2**20


def write(folder: Path, groups: dict[str, tuple[list[float], float]], **common: Any) -> None:
    """Write runs: adapter -> (accuracies, peak memory in MiB)."""
    for adapter, (values, peak) in groups.items():
        options = {"model.init_args.optimizer.init_args.lr": {"none": 1e-4}.get(adapter, 3e-3)}
        for seed, accuracy in enumerate(values):
            more = {"options": options, "peak_tensor_bytes": peak * MIB} | common
            write_run(folder / adapter / f"{seed}", adapter, seed, accuracy, **more)


def answered(folder: Path, **options: Any) -> Answer:
    return answer(compare([folder], **options))


GOOD = [0.900, 0.905, 0.902, 0.899, 0.904]
SAME = [0.901, 0.904, 0.903, 0.899, 0.905]  # within a point
BAD = [0.850, 0.856, 0.851, 0.848, 0.854]
BEST = [0.930, 0.936, 0.931, 0.928, 0.934]
OPEN = [0.930, 0.880, 0.900, 0.870, 0.930]


def test_one_group_gives_no_comparison(tmp_path: Path) -> None:
    write(tmp_path, {"lora": (GOOD, 100)})
    assert answered(tmp_path) == Answer("There is only one group, so there is nothing to compare.", "")


def test_equivalent_and_cheaper_is_recommended(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (SAME, 200), "qlora-nf4": (BAD, 100)})
    found = answered(tmp_path)
    assert found.headline == (
        "On 872 validation rows, qlora-nf4 is worse than full fine-tuning in validation accuracy "
        f"({MINUS}5.02 points). "
        "lora is equivalent to full fine-tuning in validation accuracy, within 1 point."
    )
    assert found.recommendation == (
        "Recommended: lora, the lowest peak tensor memory (200.0 MiB) of the groups shown not worse than full fine-tuning "
        "in validation accuracy (within 1 point)."
    )
    assert "Peak tensor memory, full fine-tuning = 100 %: lora 67 % and qlora-nf4 33 %." in found.details


def test_a_cost_is_relative_to_that_of_the_same_seeds(tmp_path: Path) -> None:
    """A seed that only the baseline has, as while a sweep is running, says nothing about the ratio."""
    for adapter, peaks in (("none", (200, 400, 1200)), ("lora", (100, 200))):
        for seed, peak in enumerate(peaks):
            write_run(tmp_path / f"{adapter}{seed}", adapter, seed, GOOD[seed], peak_tensor_bytes=peak * MIB)
    assert any(
        text.startswith("Peak tensor memory, full fine-tuning = 100 %: lora 50 %")
        for text in answered(tmp_path).details
    )


def test_a_smaller_margin_makes_it_undecided_and_no_cost_decides_alone(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (OPEN, 200)})
    found = answered(tmp_path)
    assert "5 seeds are not enough to tell lora from full fine-tuning in validation accuracy; about" in found.headline
    assert "would show a difference of this size, or that it is within 1 point." in found.headline
    assert found.recommendation.startswith(
        "No recommendation yet: lora needs less, but whether it is worse than full fine-tuning in validation accuracy is undecided"
    )
    assert "Recommended" not in found.recommendation
    assert not any(word in found.headline for word in ("better", "equivalent", "worse"))


def test_without_a_margin_nothing_is_said_to_be_within_it(tmp_path: Path) -> None:
    """Two per cent of a baseline of 0 are no margin."""
    write(tmp_path, {"none": ([0.0, 0.0, 0.0], 300), "lora": ([0.0, 0.02, 0.01], 200)})
    found = answered(tmp_path, margins={"val_accuracy": Margin(2, True)})
    assert found.headline.endswith("in validation accuracy; about 10 would show a difference of this size.")


def test_an_undecided_group_that_costs_more_does_not_hold_back_the_recommendation(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (SAME, 200), "dora": (OPEN, 400)})
    assert answered(tmp_path).recommendation.startswith("Recommended: lora")
    write(tmp_path, {"qlora-nf4": (OPEN, 100)})
    recommended = answered(tmp_path).recommendation
    assert recommended.startswith("Recommended: lora")
    assert "qlora-nf4 needs less, but whether it is worse than full fine-tuning" in recommended


def test_the_baseline_is_recommended_where_all_cheaper_ones_are_worse(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (BAD, 200)})
    assert answered(tmp_path).recommendation == (
        "Recommended: full fine-tuning (peak tensor memory 300.0 MiB); what needs less is worse in validation accuracy."
    )


def test_a_group_that_needs_less_but_has_no_main_figure_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (BAD, 400)})
    write(tmp_path, {"dora": ([None] * 3, 200)})
    assert answered(tmp_path, figures=["val_accuracy", "peak_tensor_bytes"]).recommendation == (
        "Recommended: full fine-tuning (peak tensor memory 300.0 MiB); dora needs less, but has no validation accuracy "
        "to compare."
    )


def test_a_group_whose_cost_is_unknown_is_not_said_to_need_more(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300)})
    write(tmp_path, {"lora": (SAME, 0)}, peak_tensor_bytes=None)
    assert answered(tmp_path).recommendation == (
        "Recommended: full fine-tuning (peak tensor memory 300.0 MiB); no other group is known to need less. "
        "The peak tensor memory of lora is unknown."
    )
    write(tmp_path, {"qlora-nf4": (BAD, 100)})
    assert answered(tmp_path).recommendation == (
        "Recommended: full fine-tuning (peak tensor memory 300.0 MiB); what needs less is worse in validation accuracy. "
        "The peak tensor memory of lora is unknown."
    )
    write(tmp_path, {"dora": (SAME, 200)})
    found = answered(tmp_path).recommendation
    assert found.startswith("Recommended: dora, the lowest peak tensor memory (200.0 MiB)")
    assert found.endswith("The peak tensor memory of lora is unknown.")


def test_the_best_is_named_with_its_price_beside_the_cheapest(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (SAME, 200), "dora": (BEST, 240)})
    assert answered(tmp_path).recommendation.endswith(
        "Best in validation accuracy: dora (+2.98 points), at 1.2 times the peak tensor memory."
    )


def test_at_the_same_cost_the_better_one_is_recommended(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (BEST, 303), "dora": (BEST, 350)})
    assert answered(tmp_path).recommendation == (
        "Recommended: lora, the best in validation accuracy (+2.98 points) of the groups with about the lowest peak tensor "
        "memory (303.0 MiB)."
    )


def test_time_can_be_preferred(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300)}, train_seconds=50.0)
    write(tmp_path, {"lora": (SAME, 200)}, train_seconds=90.0)
    assert answered(tmp_path, prefer="time").recommendation == (
        "Recommended: full fine-tuning (training time 50.00 s); no other group needs less."
    )


def test_a_worse_loss_of_the_recommended_group_is_said(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path / f"a{seed}", "none", seed, GOOD[seed], val_loss=0.3 + seed / 1000, peak_tensor_bytes=2e8)
        write_run(tmp_path / f"b{seed}", "lora", seed, SAME[seed], val_loss=0.5 + seed / 900, peak_tensor_bytes=1e8)
    assert "It is worse in validation loss (+0.20" in answered(tmp_path).recommendation


@pytest.mark.parametrize(("loss", "word"), [(0.1, "better"), (0.5, "worse")])
def test_an_undecided_group_is_said_to_be_better_or_worse_in_another_quality_figure(
    loss: float, word: str, tmp_path: Path
) -> None:
    for seed in range(5):
        write_run(tmp_path / f"a{seed}", "none", seed, GOOD[seed], val_loss=0.3 + seed / 1000)
        write_run(tmp_path / f"b{seed}", "lora", seed, OPEN[seed], val_loss=loss + seed / 900)
    found = answered(tmp_path).headline
    said, open_ = found.find(f"lora is {word} than full fine-tuning in validation loss"), found.find("are not enough")
    assert said >= 0
    assert found.count("validation loss") == 1
    assert (said < open_) == (word == "worse")  # what is worse comes first


def write_losses(folder: Path, losses: list[float]) -> None:
    """Write the validations of a run into its record."""
    found = [{"step": step, "train_seconds": 1.0 * step, "val_loss": loss} for step, loss in enumerate(losses, 1)]
    write_record(folder, read_record(folder) | {"validations": found})


@pytest.mark.parametrize(
    ("losses", "falls"),
    [([0.9, 0.8], True), ([0.8, 0.9, 0.75], True), ([0.8, 0.796], False), ([0.7, 0.9, 0.8], False), ([0.9], False)],
)
def test_a_loss_that_still_falls_is_said_before_more_seeds_are_asked_for(
    losses: list[float], falls: bool, tmp_path: Path
) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (OPEN, 200)})
    for seed in range(5):
        write_losses(tmp_path / "none" / f"{seed}", [0.9, 0.8, 0.8])
        write_losses(tmp_path / "lora" / f"{seed}", losses)
    assert "falling" not in answered(tmp_path).headline  # in at most half of the runs
    write_losses(tmp_path / "none" / "0", [0.9, 0.8])
    comparison = compare([tmp_path])
    said = "In 6 of 10 runs the validation loss was still falling at the end: train longer (trainer.max_epochs) before"
    assert (said in answer(comparison).headline) == falls
    (found,) = [text for text in comparison.warnings if "still falling" in text]
    assert found.startswith("The validation loss was still falling at the end: ")
    assert "full (1 of 5 runs)" in found
    assert ("lora (5 of 5 runs)" in found) == ("lora" in found) == falls


def test_a_decided_comparison_does_not_ask_for_longer_training_in_its_answer(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (SAME, 200)})
    for adapter in ("none", "lora"):
        for seed in range(5):
            write_losses(tmp_path / adapter / f"{seed}", [0.9, 0.8])
    assert "falling" not in answered(tmp_path).headline


def test_two_seeds_of_39_rows_say_what_is_known(tmp_path: Path) -> None:
    """100 % against 38 % on 39 rows was called "within noise", and the loser recommended for its cost."""
    draw = np.random.default_rng(0)
    for seed, right in enumerate((18, 12)):
        rows = draw.permutation([1] * right + [0] * (39 - right)).tolist()
        found = {"none": ([1] * 39, 300, 0.01), "lora": (rows, 150, 1.1 + seed / 100)}
        for adapter, (correct, peak, loss) in found.items():
            examples = {"correct": correct, "loss": [0.01 if each else 3.0 for each in correct]}
            write_run(
                *(tmp_path / adapter / f"{seed}", adapter, seed, sum(correct) / 39),
                examples=examples,
                **{"val_loss": loss, "peak_tensor_bytes": peak * MIB},
                data_summary={"rows": {"val": 39}, "tables": {"val": {"fingerprint": "val-1"}}},
            )
    found = answered(tmp_path)
    assert found.headline.startswith(
        "On 39 validation rows, lora is worse than full fine-tuning in validation loss (+1.095)"
    )
    assert f"Of the trained models, lora ({MINUS}62 points) is worse than full fine-tuning" in found.headline
    assert "2 seeds are not enough to tell lora from full fine-tuning in validation accuracy" in found.headline
    assert found.recommendation.startswith("No recommendation yet: lora needs less")


def test_one_seed_gives_no_verdict(tmp_path: Path) -> None:
    write_grid(tmp_path, {"none": [0.9], "lora": [0.8]})
    found = answered(tmp_path)
    assert found.headline == (
        "On 872 validation rows, 1 seed is not enough to tell lora from full fine-tuning in validation accuracy; a test "
        "needs two seeds in both groups."
    )
    assert not any(word in found.headline for word in ("better", "worse", "equivalent"))
    assert "at least two seeds would tell" in found.recommendation or "no other group" in found.recommendation


def test_confounded_groups_give_no_clear_answer(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300)})
    write(tmp_path, {"lora": (SAME, 200)}, options={"data.init_args.batch_size": 64})
    found = answered(tmp_path)
    assert found.headline.startswith(
        "On 872 validation rows, there is no clear answer: the groups differ in more than the axes."
    )
    assert found.recommendation == "No recommendation: differences may come from options other than the axes."


def test_there_is_a_sentence_for_each_other_group_with_a_finished_run(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (SAME, 200), "dora": (BAD, 250)})
    write_run(tmp_path / "failed", "qlora-nf4", 0, None, status="oom")
    details = answered(tmp_path, figures=["val_accuracy"]).details
    assert [text.partition(":")[0] for text in details] == ["dora", "lora"]


@pytest.mark.parametrize(
    ("number", "named"), [(6, "rank=1, rank=2, rank=3, rank=4, rank=5 and rank=6"), (7, "7 groups")]
)
def test_up_to_six_groups_are_named(number: int, named: str, tmp_path: Path) -> None:
    for rank in range(number + 1):
        for seed, accuracy in enumerate(BAD if rank else GOOD):
            options = {"model.init_args.adapter.init_args.rank": rank}
            write_run(tmp_path / f"{rank}-{seed}", "lora", seed, accuracy, options=options)
    found = answered(tmp_path, by=["rank"], baseline="rank=0")
    assert found.headline == f"On 872 validation rows, {named} are worse than rank=0 in validation accuracy."


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"verdict": "better"}, "better"),
        ({"verdict": "worse", "is_small": True, "margin": 0.01}, "worse, but within 1 point"),
        ({"verdict": "equivalent", "margin": 0.02}, "equivalent within 2 points"),
        ({"verdict": "not enough seeds", "test": None}, "not enough seeds, a test needs two seeds in both groups"),
        ({"verdict": "not enough rows"}, "not enough rows"),
        (
            {"verdict": "not enough seeds", "seeds_needed": 1200, "seeds_for_margin": 9, "margin": 0.01},
            "not enough seeds; about 1,200 would show a difference of this size, about 9 decide whether it exceeds "
            "1 point (80 % power)",
        ),
        (
            {"verdict": "not enough seeds", "seeds_needed": 7, "margin": 0.02},
            "not enough seeds; about 7 would show a difference of this size, more than 1,000 decide whether it exceeds "
            "2 points (80 % power)",
        ),
        (
            {"verdict": "not enough seeds", "seeds_for_margin": 8, "margin": 0.02},
            "not enough seeds; more than 1,000 would show a difference of this size, about 8 decide whether it exceeds "
            "2 points (80 % power)",
        ),
        (
            {"verdict": "not enough seeds", "seeds_needed": 7},  # the mean of the baseline is 0
            "not enough seeds; about 7 would show a difference of this size (80 % power)",
        ),
    ],
)
def test_a_verdict_says_what_would_decide(fields: dict[str, Any], text: str) -> None:
    common = {"mean": 0.01, "low": -0.01, "high": 0.03, "pairs": 3, "p": 0.2, "p_holm": 0.2, "seeds_needed": None}
    assert verdict_text(figure("val_accuracy"), Difference(**common | {"test": "some test"} | fields)) == text


def test_without_a_cost_there_is_no_recommendation(tmp_path: Path) -> None:
    write(tmp_path, {"none": (GOOD, 300), "lora": (SAME, 200)})
    found = answered(tmp_path, figures=["val_accuracy"])
    assert found.recommendation == "No recommendation: the memory of full fine-tuning is not among the figures."
    assert answered(tmp_path, figures=["peak_tensor_bytes"]).recommendation == ""


@pytest.mark.parametrize("form", ["terminal", "markdown", "json", "latex"])
def test_every_text_starts_with_the_answer(tmp_path: Path, form: str, capsys: pytest.CaptureFixture) -> None:
    from litpeft.commands.compare import main

    write(tmp_path, {"none": (GOOD, 300), "lora": (SAME, 200)})
    assert main([str(tmp_path), "--format", form]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "lora is equivalent to full fine-tuning in validation accuracy" in text
    assert "Recommended: lora, the lowest" in text

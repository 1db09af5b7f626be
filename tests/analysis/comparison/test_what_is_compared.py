"""Which runs and which of their files may be compared, and corrections where several groups are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.answer import answer
from litpeft.errors import UserError
from tests.analysis.comparison.build import write_grid, write_run
from tests.analysis.comparison.test_benchmarks import FIGURE, NAME, evaluation, keep, result, write


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_undecided_test_over_rows_asks_for_rows_and_one_over_seeds_for_seeds(tmp_path: Path, seeds: int) -> None:
    for seed in range(seeds):
        for adapter, right in (("none", [1, 0, 1, 0]), ("lora", [1, 1, 1, 0])):
            examples = {"correct": right, "loss": [0.5 + seed, 1.0, 0.25, 2.0]}
            write_run(tmp_path / f"{adapter}{seed}", adapter, seed, sum(right) / 4 + seed / 100, examples=examples)
    lora = compare([tmp_path], examples=True).groups[1]
    assert lora.over_examples["val_accuracy"].verdict == "not enough rows"
    assert lora.over_examples["val_accuracy"].test.startswith("McNemar" if seeds == 1 else "paired bootstrap")
    assert lora.over_examples["val_loss"].test.startswith("paired bootstrap")
    assert lora.differences["val_accuracy"].verdict in ("not enough seeds", "better")
    assert (lora.differences["val_accuracy"].test is None) == (seeds == 1)


@pytest.mark.parametrize("order", [("lora", "dora"), ("dora", "lora")])
def test_of_equal_groups_the_fastest_is_recommended_where_speed_is_a_rate(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    """Without seconds, `--prefer time` takes tokens per second, of which more is better."""
    rates = {"none": 2000.0, order[0]: 4000.0, order[1]: 1000.0}
    unknown = {"train_seconds": None, "step_seconds_p50": None}
    for seed, accuracy in enumerate((0.900, 0.905, 0.902, 0.899, 0.904)):
        for adapter, rate in rates.items():
            own = {"train_tokens_per_second": rate + seed}
            write_run(tmp_path / f"{adapter}{seed}", adapter, seed, accuracy + seed % 2 / 2000, **own, **unknown)
    found = answer(compare([tmp_path], prefer="time")).recommendation
    assert found.startswith(f"Recommended: {order[0]}, the highest tokens per second")


@pytest.mark.parametrize("print_of_file", ["items", "others"])
def test_items_are_tested_only_if_their_file_is_of_the_evaluation_in_the_record(
    tmp_path: Path, print_of_file: str
) -> None:
    write(tmp_path, {"none": [0.5], "lora": [0.75]}, fingerprint="items")
    for adapter, rows in (("none", [1, 0, 1, 0]), ("lora", [1, 1, 1, 0])):
        keep(tmp_path / adapter / "seed0", rows)
        file = tmp_path / adapter / "seed0" / "benchmark_items" / "step-000100.json"
        file.write_text(file.read_text().replace('"items"', f'"{print_of_file}"'))
    assert (FIGURE in compare([tmp_path]).groups[1].over_examples) == (print_of_file == "items")


def test_an_evaluation_within_training_is_not_the_score_before_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        evaluations = [evaluation(step, **{NAME: result(0.5 + step / 1000)}) for step in (40, 100)]
        write_run(tmp_path / f"{seed}", seed=seed, benchmarks=evaluations, checkpoint="checkpoints/step-000100")
    assert compare([tmp_path], figures=[FIGURE]).groups[0].estimates[FIGURE].mean == pytest.approx(0.6)
    for end in ("_before", "_change"):
        with pytest.raises(UserError, match="no run has it"):
            compare([tmp_path], figures=[FIGURE + end])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data.init_args.train_samples", 100), ("data.init_args.batch_size", 16), ("trainer.max_epochs", 3),
        ("model.init_args.dtype", "fp32"), ("model.init_args.adapter.init_args.rank", 4), ("data.init_args.seed", 5),
        ("checkpoint.keep", "best"), ("model.init_args.optimizer.init_args.lr", 0.1),
    ],
)  # fmt: skip
def test_an_option_that_affects_results_is_refused_in_a_group_and_reported_between_groups(
    tmp_path: Path, option: str, value: Any
) -> None:
    data = {"data.init_args.train_samples": None}
    for seed, options in enumerate((data, data | {option: value})):
        write_run(tmp_path / "group" / f"{seed}", seed=seed, options=options)
    with pytest.raises(UserError, match="differ in more than the seed"):
        compare([tmp_path / "group"])
    write_run(tmp_path / "groups" / "a", "dora", options=data)
    write_run(tmp_path / "groups" / "b", "lora", options=data | {option: value})
    key = option.replace(".init_args", "")
    confounded = compare([tmp_path / "groups"]).confounded
    if key == "model.optimizer.lr":  # each method has a rate of its own
        assert confounded == {}
    else:
        assert list(confounded) == [key]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data.init_args.num_workers", 4), ("data.init_args.predict_file", "x"), ("trainer.logger", "x"),
        ("trainer.enable_progress_bar", False), ("checkpoint.every_n_steps", 5), ("benchmarks.tasks", ["x"]),
        ("throughput.sample_every", 0), ("run_dir", "x"),
    ],
)  # fmt: skip
def test_an_option_that_affects_no_result_may_differ(tmp_path: Path, option: str, value: Any) -> None:
    write_run(tmp_path / "a", "none", options={option: None})
    write_run(tmp_path / "b", "lora", options={option: value})
    write_run(tmp_path / "c", "lora", seed=1, options={option: None})
    assert compare([tmp_path]).confounded == {}


def test_another_file_is_no_difference_only_if_its_rows_are_the_same(tmp_path: Path) -> None:
    """Where data is an axis, tables may differ, and a file of other rows is named."""
    other = {"rows": {}, "tables": {"train": {"fingerprint": "train-2"}, "val": {"fingerprint": "val-1"}}}
    files = {"data.init_args.train_file": "other.tsv", "data.init_args.val_file": "copy.tsv"}
    write_run(tmp_path / "a", "none", options={"data.init_args.max_length": 128})
    write_run(tmp_path / "b", "lora", options={"data.init_args.max_length": 64} | files, data_summary=other)
    assert list(compare([tmp_path], by=["adapter", "data.max_length"]).confounded) == ["data.train_file"]


def test_a_data_seed_that_is_that_of_the_run_is_no_difference(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", "none", seed)
        write_run(tmp_path / f"b{seed}", "lora", seed, options={"data.init_args.seed": seed})
    assert compare([tmp_path]).confounded == {}


def test_equivalence_is_corrected_for_the_number_of_groups(tmp_path: Path) -> None:
    """Each of three groups alone would be equivalent to the baseline at the level of one test."""
    draw = np.random.default_rng(0)
    base = 0.85 + draw.normal(0, 0.005, 4)
    values = {"none": base.tolist()}
    for name in ("lora", "dora", "qlora-nf4"):
        noise = draw.normal(0, 1, 4)
        noise = (noise - noise.mean()) / noise.std(ddof=1)
        values[name] = (base + 0.0045 * noise).tolist()
    groups = compare([write_grid(tmp_path, values)]).groups[1:]
    single = [ttost_paired(np.array(values[group.label]), base, -0.01, 0.01)[0] for group in groups]
    assert max(single) < 0.025
    corrected = multipletests(single, 0.025, "holm")[0]
    assert not corrected.any()
    found = [group.differences["val_accuracy"] for group in groups]
    assert [each.is_small for each in found] == [each.is_not_worse for each in found] == [False] * 3
    assert {each.verdict for each in found} == {"not enough seeds"}

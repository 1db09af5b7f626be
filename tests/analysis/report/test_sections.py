"""The parts of the report about data, mistakes, relative costs and tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.results import Figure, Tried, Tuned
from litpeft.analysis.report.budgets import budget_charts
from litpeft.analysis.report.data_section import data_facts
from litpeft.analysis.report.mistakes import mistakes
from litpeft.analysis.report.page import first_and_rest, parts
from litpeft.analysis.report.relative import relative_chart
from litpeft.analysis.report.sections import sections
from litpeft.analysis.report.table import main_columns
from litpeft.analysis.report.tuned import tuning_chart
from tests.analysis.comparison.build import write_grid, write_run

RANK = "model.init_args.adapter.init_args.rank"
WRONG = {"row": 3, "text": "a dull film", "label": "bad", "prediction": "good", "probability": 0.99}


def write_mistakes(folder: Path, seed: int, matrix: list[list[int]], wrong: list[dict[str, Any]]) -> None:
    examples = {"correct": [1, 0], "loss": [0.1, 2.0], "wrong": wrong}
    run = write_run(folder / f"{seed}", "lora", seed, examples=examples, confusion_matrix="confusion_matrix.json")
    content = {"step": 100, "label_names": ["bad", "good"], "rows": matrix}
    (run / "confusion_matrix.json").write_text(json.dumps(content))


def test_matrices_are_summed_over_seeds_and_a_row_counts_its_seeds(tmp_path: Path) -> None:
    other = WRONG | {"row": 7, "text": "a good film", "probability": 0.7}
    write_mistakes(tmp_path, 0, [[5, 1], [2, 6]], [WRONG, other])
    write_mistakes(tmp_path, 1, [[4, 2], [1, 7]], [WRONG | {"probability": 0.8}])
    (found,), notes = mistakes(compare([tmp_path]))
    assert notes == []
    assert found["matrix"] == [[9, 3], [3, 13]]
    assert [(each["text"], each["probability"], each["seeds"]) for each in found["wrong"]] == [
        ("a dull film", 0.99, [0, 1]),
        ("a good film", 0.7, [0]),
    ]


def test_a_run_without_kept_rows_does_not_hide_the_mistakes_of_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "without", "lora", 0)
    write_mistakes(tmp_path, 1, [[4, 2], [1, 7]], [WRONG])
    write_run(tmp_path / "other", "lora", 2)
    (found,), _ = mistakes(compare([tmp_path]))
    assert found["matrix"] == [[4, 2], [1, 7]]
    assert [each["seeds"] for each in found["wrong"]] == [[1]]


def test_a_matrix_with_other_classes_is_named_and_not_summed(tmp_path: Path) -> None:
    write_mistakes(tmp_path, 0, [[5, 1], [2, 6]], [])
    write_mistakes(tmp_path, 1, [[4, 2], [1, 7]], [])
    file = tmp_path / "1" / "confusion_matrix.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"label_names": ["bad", "fine"]}))
    (found,), notes = mistakes(compare([tmp_path]))
    assert found["matrix"] == [[5, 1], [2, 6]]
    assert notes == [f"The matrix of lora leaves out {tmp_path / '1'}, which has other classes."]


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"label_names": ["a"], "rows": [[1, 2]]}', '{"label_names": 3, "rows": 1}'),
        *('{"label_names": ["a"], "rows": 1}', '{"label_names": ["a", "b"], "rows": [[1, 1]]}'),
        *('{"label_names": ["a"], "rows": [1]}', '{"label_names": "a", "rows": [[1]]}'),
        '{"label_names": ["a"], "rows": [[true]]}',
    ],
)
def test_a_matrix_that_cannot_be_read_is_left_out(tmp_path: Path, text: str) -> None:
    write_mistakes(tmp_path, 0, [[5, 1], [2, 6]], [])
    (tmp_path / "0" / "confusion_matrix.json").write_text(text)
    found, notes = mistakes(compare([tmp_path]))
    assert found == []
    assert notes == [f"{tmp_path / '0' / 'confusion_matrix.json'} cannot be read and is left out."]


def test_groups_and_classes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for rank in range(1, 15):
        run = write_run(tmp_path / str(rank), options={RANK: rank}, confusion_matrix="confusion_matrix.json")
        size = {2: 13, 3: 12}.get(rank, 2)
        content = {"label_names": [f"c{n}" for n in range(size)], "rows": [[1] * size] * size}
        (run / "confusion_matrix.json").write_text(json.dumps(content))
    found, notes = mistakes(compare([tmp_path], by=["rank"]))
    assert [len(each["matrix"]) for each in found] == [2, 12, *[2] * 10]
    assert len(notes) == 2
    assert "has 13 classes; the run folders have it" in notes[0]
    assert notes[1] == "Groups after the first 12 are not shown; their run folders have the files."


def test_facts_of_the_data(tmp_path: Path) -> None:
    summary = {
        **{"rows": {"train": 1600, "val": 500}, "tokens_per_row": {"train": {"median": 26.0, "longest": 64}}},
        **{"classes": {"train": {"bad": 802, "good": 798}}, "truncated_rows": {"train": 5, "val": 0}, "tables": {}},
        "example": [{"text": "a film", "has_loss": False}, {"text": "good", "has_loss": True}],
    }
    write_run(tmp_path / "a", data_summary=summary, data="litpeft.data.SST2")
    write_run(tmp_path / "b", seed=1, data_summary=summary, data="litpeft.data.SST2")
    (found,) = data_facts(compare([tmp_path]))
    assert found["name"] == "SST2"
    assert found["facts"] == [
        ("rows", "1,600 training, 500 validation"),
        ("training rows of each class", "bad 802, good 798"),
        ("tokens of a training row", "median 26, longest 64"),
        ("truncated training rows", "5"),
    ]
    assert found["example"] == [("a film", False), ("good", True)]
    write_run(tmp_path / "a", data_summary=None)
    write_run(tmp_path / "b", seed=1, data_summary={"rows": None, "tables": {}})
    assert [each["facts"] for each in data_facts(compare([tmp_path]))] == [[]]


def test_the_closed_row_of_a_run_has_its_quality_and_its_memory(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "none", 0, 0.9, peak_tensor_bytes=2**28)
    write_run(tmp_path / "b", "lora", 0, 0.8, peak_tensor_bytes=None)
    write_run(tmp_path / "c", "dora", 0, None, status="oom", peak_tensor_bytes=2**20)
    write_run(tmp_path / "d", "dora", 1, 0.5, peak_tensor_bytes=2**29)
    scores = {(each["label"], each["name"]): each["scores"] for each in sections(compare([tmp_path]))}
    assert scores == {
        ("full", "seed 0"): "validation accuracy 90.00 %, peak tensor memory 256.0 MiB",
        ("lora", "seed 0"): "validation accuracy 80.00 %",
        ("dora", "seed 0"): "peak tensor memory 1.000 MiB",
        ("dora", "seed 1"): "validation accuracy 50.00 %, peak tensor memory 512.0 MiB",
    }


def test_relative_costs_are_bars_of_the_ratios(tmp_path: Path) -> None:
    write_grid(tmp_path, {"none": [0.9, 0.91]}, train_seconds=100.0, peak_tensor_bytes=300)
    write_grid(tmp_path, {"lora": [0.9, 0.91]}, train_seconds=50.0, peak_tensor_bytes=150)
    chart = relative_chart(compare([tmp_path]))
    assert {trace["name"]: trace["x"] for trace in chart.data} == {
        "training time": [100, 50],
        "peak tensor memory": [100, 50],
        "model size": [100, 100],
    }
    assert chart.table[1][1][:3] == ["lora", "50 %", "50 %"]


def test_what_tuning_tried_is_a_line_per_group_with_a_ring_around_the_choice(tmp_path: Path) -> None:
    comparison = compare([write_grid(tmp_path, {"none": [0.9, 0.91], "lora": [0.9, 0.91]})])
    name = "model.optimizer.lr"
    for label, best in (("full", 1e-4), ("lora", 1e-3)):
        tried = [Tried({name: rate}, mean, 1) for rate, mean in ((1e-4, 0.8), (1e-3, 0.85), (1e-2, None))]
        comparison.tuned = {**comparison.tuned, label: Tuned("val_accuracy", [7], tried, {name: best}, {})}
    chart = tuning_chart(comparison)
    full, lora = chart.data
    assert (full["x"], full["y"]) == ([1e-4, 1e-3], [80, 85])  # a value without a result has no point
    assert [full["marker"]["line"]["width"], lora["marker"]["line"]["width"]] == [[2.5, 0], [0, 2.5]]
    assert chart.layout["xaxis"]["type"] == "log"
    assert "Mean over 1 tuning seed, which" in chart.caption
    comparison.tuned = {"lora": Tuned("val_accuracy", [7, 8], tried, {name: best}, {})}
    assert [trace["name"] for trace in tuning_chart(comparison).data] == ["lora"]
    assert "Mean over 2 tuning seeds, which" in tuning_chart(comparison).caption
    comparison.tuned = {"lora": Tuned("val_accuracy", [7], [Tried({name: 1}, 0.5, 1)], {name: 1}, {})}
    assert tuning_chart(comparison) is None
    comparison.tuned = {"lora": Tuned(None, [7], tried, None, {})}
    assert tuning_chart(comparison) is None


def test_the_first_screen_has_quality_against_cost_and_a_table_that_fits(tmp_path: Path) -> None:
    comparison = compare([write_grid(tmp_path, {"none": [0.9, 0.91], "lora": [0.8, 0.91]})])
    first, rest = first_and_rest(parts(comparison))
    assert first.name == "quality-memory"
    assert first.name not in [chart.name for part in rest for chart in part.charts]
    names = [comparison.figures[place].name for place in sorted(main_columns(comparison.figures))]
    assert names == ["val_accuracy", "val_loss", "peak_tensor_bytes", "train_seconds", "trainable_params"]


@pytest.mark.parametrize("each", [1, 3])
def test_a_table_of_many_figures_shows_some_of_each_kind(each: int) -> None:
    kinds = {"quality": 2, "benchmark": 2, "memory": 1, "speed": 1, "size": 1}
    figures = [Figure(f"{kind}{number}", "", "higher", kind) for kind in kinds for number in range(each)]
    figures.append(Figure("train_seconds", "", "lower", "speed"))
    figures.append(Figure("seconds_to_0.9", "", "lower", "speed"))
    shown = [figures[place].name for place in sorted(main_columns(figures))]
    expected = [
        f"{kind}{number}" for kind, most in kinds.items() if kind != "speed" for number in range(min(each, most))
    ]
    assert shown == [*expected, "train_seconds", "seconds_to_0.9"]


def write_validated(folder: Path, adapter: str, seed: int, seconds: float, accuracies: list[float]) -> None:
    """Write a run that was validated every ten steps; a step takes `seconds` and has 100 tokens."""
    steps = [10 * (i + 1) for i in range(len(accuracies))]
    validations = [
        {"step": step, "epochs": 1.0, "train_seconds": seconds * step, "val_accuracy": accuracy}
        for step, accuracy in zip(steps, accuracies, strict=True)
    ]
    more = {"validations": validations, "train_seconds": seconds * steps[-1]}
    run = write_run(folder / f"{adapter}{seed}", adapter, seed, accuracies[-1], **more)
    lines = [{"step": step, "tokens": 100 * step, "seconds": seconds * step, "values": {}} for step in steps]
    (run / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_quality_at_equal_time_and_tokens_is_the_last_validation_within_the_smallest_budget(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_validated(tmp_path, "lora", seed, 1.0, [0.6, 0.7 + 0.02 * seed])  # 20 s, 2,000 tokens
        write_validated(tmp_path, "none", seed, 1.5, [0.65, 0.8, 0.9])  # at 20 s: only the first validation
    charts = {chart.name: chart for chart in budget_charts(compare([tmp_path], by=["adapter"]))}
    assert set(charts) == {"equal-time", "equal-tokens"}
    time = {row[0]: row[1] for row in charts["equal-time"].rows}
    assert time == {"lora": "71.00 %", "full": "65.00 %"}
    tokens = {row[0]: row[1] for row in charts["equal-tokens"].rows}
    assert tokens == {"lora": "71.00 %", "full": "80.00 %"}
    assert "after 20 s" in charts["equal-time"].columns[1]
    assert charts["equal-time"].title == "Validation accuracy at equal training time"
    assert charts["equal-tokens"].title == "Validation accuracy at equal training tokens"
    step = 1 / 872  # all seeds of full have the same value, rounded to a row
    half = t.ppf(0.975, 1) * (step**2 / 12 / 2) ** 0.5
    ends = {row[0]: row[2] for row in charts["equal-time"].rows}
    assert ends["full"] == f"{100 * (0.65 - half):.2f} % to {100 * (0.65 + half):.2f} %"
    assert len(charts["equal-time"].data) == 4


def test_what_is_shown_at_an_equal_budget_is_the_first_measure_of_quality(tmp_path: Path) -> None:
    for adapter in ("lora", "none"):
        write_validated(tmp_path, adapter, 0, 1.0, [0.6, 0.7])
    for figures in (
        ["train_seconds", "adapter_bytes", "val_accuracy", "val_loss"],
        ["trainable_params", "val_accuracy"],
    ):
        charts = budget_charts(compare([tmp_path], by=["adapter"], figures=figures))
        assert [chart.title.partition(" at ")[0] for chart in charts] == ["Validation accuracy"] * 2
    assert budget_charts(compare([tmp_path], by=["adapter"], figures=["train_seconds", "adapter_bytes"])) == []


def test_all_runs_of_the_quickest_group_count_with_their_last_validation(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_validated(tmp_path, "lora", seed, 1.0 + 0.2 * seed, [0.6, 0.7])  # 20 and 24 s
        write_validated(tmp_path, "none", seed, 2.3, [0.65, 0.8])
    time = {row[0]: row[1] for row in budget_charts(compare([tmp_path], by=["adapter"]))[0].rows}
    assert time == {"lora": "70.00 %", "full": "65.00 %"}


def test_a_group_without_a_validation_within_the_budget_says_so(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_validated(tmp_path, "lora", seed, 1.0, [0.6, 0.7])
        write_validated(tmp_path, "none", seed, 5.0, [0.65, 0.8])
    chart = budget_charts(compare([tmp_path], by=["adapter"]))[0]
    assert ["full", "n/a", "no validation within it"] in [list(row) for row in chart.rows]


def test_there_is_no_chart_without_several_validations_or_with_one_group(tmp_path: Path) -> None:
    write_validated(tmp_path / "once", "lora", 0, 1.0, [0.7])
    write_validated(tmp_path / "once", "none", 0, 1.0, [0.8])
    write_validated(tmp_path / "alone", "lora", 0, 1.0, [0.6, 0.7])
    assert budget_charts(compare([tmp_path / "once"], by=["adapter"])) == []
    assert budget_charts(compare([tmp_path / "alone"], by=["adapter"])) == []

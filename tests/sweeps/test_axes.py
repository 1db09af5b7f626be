"""The axes of an experiment file: their values, the names of these, and one sentence for each mistake."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from litpeft.errors import UserError
from litpeft.sweeps.axes import Choice, options_of, read_choices, read_tune, shown_value, typed

LR = "model.optimizer.lr"


@pytest.mark.parametrize(
    ("axis", "values", "expected"),
    [
        (LR, [1e-4, 3e-4], [Choice("lr=0.0001", (), {LR: 1e-4}), Choice("lr=0.0003", (), {LR: 3e-4})]),
        (LR, [0.1], [Choice("lr=0.1", (), {LR: 0.1})]),
        ("adapter", ["lora", "full"], [Choice("lora", ("lora",)), Choice("none", ("full",))]),
        (
            "size", {"model.adapter.rank": [8, 32], "model.adapter.alpha": [16, 64]},
            [
                Choice("rank=8", (), {"model.adapter.rank": 8, "model.adapter.alpha": 16}),
                Choice("rank=32", (), {"model.adapter.rank": 32, "model.adapter.alpha": 64}),
            ],
        ),
        (
            "data", {"small": {"data.train_samples": 5}, "all": None, "named": "lora"},
            [Choice("small", (), {"data.train_samples": 5}), Choice("all"), Choice("named", ("lora",))],
        ),
        (
            "adapter", {"mine": {"configs": ["lora", "dora"], "model.dtype": "fp32", "tune": {LR: ["1e-3", 2]}}},
            [Choice("mine", ("lora", "dora"), {"model.dtype": "fp32"}, {LR: [1e-3, 2]})],
        ),
        ("adapter", {"one": {"configs": "lora"}}, [Choice("one", ("lora",))]),
    ],
)  # fmt: skip
def test_the_values_of_an_axis(axis: str, values: Any, expected: list[Choice]) -> None:
    found = read_choices("file: axes", axis, values)
    if axis == "adapter" and isinstance(values, list):
        assert [choice.configs for choice in found] == [choice.configs for choice in expected]
        assert [choice.name for choice in found] == [choice.name for choice in expected]
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("axis", "values", "sentence"),
    [
        ("size", {"model.a": [1, 2], "model.b": [1]}, "file: lists that change together must have the same length."),
        (LR, [0.1, 0.1], "file must be a list of different values, got lr=0.1, lr=0.1."),
        (LR, ["1e-4", 0.0001], "file must be a list of different values, got lr=1e-4, lr=0.0001."),
        (LR, ["1e-4", "3e-4", "1E-04"], "file must be a list of different values, got lr=1e-4, lr=3e-4, lr=1E-04."),
        ("model.adapter.rank", [8, 8.0], "file must be a list of different values, got rank=8, rank=8.0."),
        ("model", {"a": {"tune": {LR: [1, 1.0]}}}, f"file.a.tune.{LR} must be a list of different values, got lr=1, lr=1.0."),
        (LR, [], "file must be a list of different values, got no value."),
        ("size", {"model.a": []}, "file must be a list of different values, got no value."),
        ("adapter", {}, "file must be a list of different values, got no value."),
        ("adapter", 3, "file must be a list of values, or a mapping of named variants, got 3."),
        ("adapter", None, "file must be a list of values, or a mapping of named variants, got None."),
        ("adapter", [3], "file must be a list of configuration names or files, got [3]."),
        ("data.train_samples", ["a", "b", "a"], "file must be a list of different values, got train_samples=a, train_samples=b, train_samples=a."),
        ("model", {"a": {"seed_everything": 3}}, "file.a: seed_everything is set by the sweep; use configs or seeds instead."),
        ("model", {"a": {"modle.rank": 3}}, "file.a: 'modle.rank' is not an option of litpeft fit, such as model.adapter.rank."),
        ("model", {"a": [3], "b": 4}, "file.a: variant must be a mapping with names as keys, got [3]."),
        ("model", {"a": {3: 4}}, "file.a: variant must be a mapping with names as keys, got {3: 4}."),
        ("model", {"a": {"tune": {LR: 0.1}}}, f"file.a.tune.{LR} must be a list of values to try, got 0.1."),
        ("model", {"a": {"tune": {LR: [1, 1]}}}, f"file.a.tune.{LR} must be a list of different values, got lr=1, lr=1."),
        ("model", {"a": {"tune": {LR: []}}}, f"file.a.tune.{LR} must be a list of different values, got no value."),
        ("model", {"a": {"configs": 3}}, "file.a.configs must be a list of configuration names or files, got 3."),
    ],
)  # fmt: skip
def test_a_mistake_in_an_axis_is_one_sentence(axis: str, values: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read_choices("file", axis, values)
    assert str(error.value) == sentence


def test_a_configuration_that_does_not_exist_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"^file: .*no-such-configuration"):
        read_choices("file", "adapter", ["no-such-configuration"])


@pytest.mark.parametrize(
    ("value", "number"),
    [("1e-4", 1e-4), ("+2E5", 2e5), ("-3e2", -300.0), ("1e", "1e"), ("1.0e-4x", "1.0e-4x"), (1e-4, 1e-4), (None, None)],
)
def test_numbers_that_yaml_reads_as_text_are_numbers(value: Any, number: Any) -> None:
    (found,) = read_tune("file", {LR: [value]})[LR]
    assert (found, type(found)) == (number, type(number))
    assert read_tune("file", None) == {}


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("model.adapter.rank", 8, "rank=8"), ("rank", True, "rank=true"), ("data.train_file", "/a/b/c.tsv", "train_file=c.tsv"),
        ("model.optimizer", "torch.optim.SGD", "optimizer=SGD"), ("model.adapter.targets", ["query", "key"], "targets=[query,key]"),
        ("data.x", "a.b c", "x=a.b c"), ("data.x", "A.b", "x=A.b"), ("data.x", None, "x=null"), ("data.x", "3.5", "x=3.5"),
        ("data.x", {"a": 1}, "x={a:1}"),
    ],
)  # fmt: skip
def test_the_name_of_a_value(option: str, value: Any, name: str) -> None:
    assert shown_value(option, value) == name


def test_values_are_typed_as_on_the_command_line() -> None:
    assert [typed(value) for value in ("a b", 1e-4, [1, "x"], None, True)] == [
        "a b",
        "0.0001",
        '[1, "x"]',
        "null",
        "true",
    ]
    assert typed(datetime.date(2024, 1, 2)) == '"2024-01-02"'


@pytest.mark.parametrize(
    "option", ["model", "model.x", "data.x.y", "benchmarks.tasks", "record.x", "trainer.max_steps"]
)
def test_options_of_fit_may_be_set(option: str) -> None:
    assert options_of("file", {option: 1}) == {option: 1}


@pytest.mark.parametrize(
    "option", ["config", "run_dir", "experiment", "resume", "overwrite", "seed_everything", "ckpt_path"]
)
def test_options_that_the_sweep_sets_may_not(option: str) -> None:
    with pytest.raises(UserError, match=f"{option} is set by the sweep"):
        options_of("file", {option: 1})


@pytest.mark.parametrize("option", ["models", "modelx.y", "seeds", "optimizer.lr", ""])
def test_other_names_are_no_options(option: str) -> None:
    with pytest.raises(UserError, match="is not an option of litpeft fit"):
        options_of("file", {option: 1})

"""An evaluation of made-up benchmarks: time limit, errors, groups and messages, and limits of the options."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from litpeft.benchmarks import Options, Suite, check_options
from litpeft.benchmarks.base import Live
from litpeft.errors import UserError
from litpeft.tasks import SequenceClassification


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(2, 2), nn.Dropout()
        self.dropout.eval()

    def autocast(self) -> Any:
        return nullcontext()


class Fake:
    """A benchmark that does something and returns its name."""

    def __init__(self, name: str, do: Any = lambda live: None) -> None:
        self.name, self.do = name, do

    def run(self, live: Live) -> str:
        self.do(live)
        return f"result of {self.name}"


def suite_of(*benchmarks: Fake, **options: Any) -> Suite:
    suite = Suite(Options([], **options), None, None)
    suite.benchmarks = list(benchmarks)
    return suite


def evaluated(suite: Suite, task: nn.Module | None = None) -> tuple[Any, list[tuple[str, int, int]], list[str]]:
    """Return the evaluation, the progress, and the warnings."""
    progress, warned = [], []
    found = suite.evaluate(task or Task(), None, lambda *each: progress.append(each), warned.append)
    return found, progress, warned


def fail(error: Exception) -> Any:
    def do(live: Live) -> None:
        raise error

    return do


def test_a_benchmark_that_fails_is_skipped_with_the_reason() -> None:
    several = suite_of(
        Fake("one", lambda live: live.tick(3, 9)),
        Fake("two", fail(ValueError("a  bad\nrow: "))),
        Fake("three", fail(KeyError())),
        Fake("four", lambda live: live.warnings.append("it is slow")),
    )
    found, progress, warned = evaluated(several)
    assert found.results == {"one": "result of one", "four": "result of four"}
    assert found.skipped == {"two": "ValueError: a bad row", "three": "KeyError"}
    assert progress == [("one", 0, 1), ("one", 3, 9), ("two", 0, 1), ("three", 0, 1), ("four", 0, 1)]
    assert warned == [
        "it is slow",
        "benchmark two has no result: ValueError: a bad row.",
        "benchmark three has no result: KeyError.",
    ]


def test_the_mode_of_each_module_and_the_random_numbers_stay() -> None:
    task, seen = Task().train(), []
    task.dropout.eval()
    suite = suite_of(
        Fake("one", lambda live: seen.append((task.training, task.layer.training, torch.is_grad_enabled()))),
        Fake("two", lambda live: torch.rand(3)),
    )
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    evaluated(suite, task)
    assert torch.equal(torch.rand(2), expected)
    assert seen == [(False, False, False)]
    assert (task.training, task.layer.training, task.dropout.training) == (True, True, False)


def test_the_time_limit_ends_a_benchmark_and_leaves_out_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def takes(seconds: float, done: int, total: int) -> Any:
        def do(live: Live) -> None:
            now[0] += seconds
            live.tick(done, total)

        return do

    reason = "the time limit of 10 s (benchmarks.max_seconds) was reached"
    several = (
        Fake("one", takes(10.0, 1, 9)), Fake("two", takes(0.5, 9, 9)), Fake("three", takes(0.0, 1, 9)), Fake("four"),
    )  # fmt: skip
    found, progress, _ = evaluated(suite_of(*several, max_seconds=10))
    # ten seconds are within the limit, and what is complete when it is over counts
    assert list(found.results) == ["one", "two"]
    assert found.skipped == {"three": reason, "four": reason}
    assert found.seconds == 10.5
    assert progress[-1] == ("two", 9, 9)
    now[0] = 100.0
    found, *_ = evaluated(suite_of(Fake("one", takes(10.1, 1, 9)), max_seconds=10))
    assert (found.results, found.skipped) == ({}, {"one": reason})
    now[0] = 100.0
    found, *_ = evaluated(suite_of(*several))
    assert len(found.results) == 4  # without a limit


def test_a_group_has_a_result_if_its_tasks_have() -> None:
    suite = suite_of(Fake("one"))
    suite.groups = [
        SimpleNamespace(name="group", result=lambda results: f"of {list(results)}"),
        SimpleNamespace(name="empty", result=lambda results: None),
    ]
    found, *_ = evaluated(suite)
    assert found.results == {"one": "result of one", "group": "of ['one']"}


@pytest.mark.parametrize(
    ("options", "every", "sentence"),
    [
        ({"limit": 0}, None, "benchmarks.limit must be at least 1, got 0."),
        ({"batch_size": 0}, None, "benchmarks.batch_size must be at least 1, got 0."),
        ({"num_fewshot": -1}, None, "benchmarks.num_fewshot must be at least 0, got -1."),
        ({}, 0, "benchmarks.every_n_steps must be at least 1, got 0."),
        ({"max_seconds": 0}, None, "benchmarks.max_seconds must be above 0, got 0."),
        ({"max_seconds": -1.5}, None, "benchmarks.max_seconds must be above 0, got -1.5."),
        ({"limit": 1, "batch_size": 1, "num_fewshot": 0, "max_seconds": 0.1}, 1, None),
        ({}, None, None),
    ],
)
def test_the_limits_of_the_options(options: dict[str, Any], every: int | None, sentence: str | None) -> None:
    if sentence is None:
        check_options(Options([], **options), every)
        return
    with pytest.raises(UserError) as error:
        check_options(Options([], **options), every)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("held_out", "benchmarks.tasks held_out is for classes, labels and numbers, not for generated text; leave it out."),
        ("perplexity", "benchmarks.tasks perplexity"),
    ],
)  # fmt: skip
def test_a_benchmark_that_does_not_fit_the_task_is_refused_before_training(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Suite(Options([name]), Task(), SimpleNamespace())
    assert str(error.value).startswith(sentence)


def test_a_benchmark_that_is_named_twice_is_evaluated_once() -> None:
    task = SequenceClassification("some/model")
    suite = Suite(Options(["held_out", "held_out"]), task, SimpleNamespace())
    assert [each.name for each in suite.benchmarks] == ["held_out"]

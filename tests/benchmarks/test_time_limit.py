"""Benchmarks that take too long are left out with a reason; those before them count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from litpeft.benchmarks import suite as suite_module
from litpeft.benchmarks.suite import Suite


class Task(nn.Module):
    """A task without a model."""

    def autocast(self) -> Any:
        return torch.no_grad()


class Slow:
    """A benchmark whose items each take a number of seconds."""

    def __init__(self, name: str, clock: list[float], seconds: float, items: int) -> None:
        self.name, self.clock, self.seconds, self.items = name, clock, seconds, items

    def run(self, live: Any) -> str:
        for done in range(1, self.items + 1):
            self.clock[0] += self.seconds
            live.tick(done, self.items)
        return f"{self.name} done"


@pytest.mark.parametrize(
    ("limit", "finished", "skipped"),
    [
        (None, ["first", "second", "third"], []),
        (1000.0, ["first", "second", "third"], []),
        (9.0, ["first"], ["second", "third"]),  # in the second one's items
        (4.0, ["first"], ["second", "third"]),  # the last item of a benchmark that is done may be late
        (3.0, [], ["first", "second", "third"]),
    ],
)
def test_benchmarks_end_at_the_limit(
    limit: float | None, finished: list[str], skipped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(suite_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    found = Suite.__new__(Suite)
    found.options, found.groups = SimpleNamespace(max_seconds=limit), []
    found.benchmarks = [Slow("first", clock, 2.0, 3), Slow("second", clock, 2.0, 4), Slow("third", clock, 1.0, 1)]
    seen: list[tuple[str, int, int]] = []
    evaluation = found.evaluate(Task(), None, lambda *progress: seen.append(progress), lambda message: None)
    assert list(evaluation.results) == finished
    assert list(evaluation.skipped) == skipped
    if skipped:
        reason = f"the time limit of {limit:g} s (benchmarks.max_seconds) was reached"
        assert set(evaluation.skipped.values()) == {reason}
    assert seen[0] == ("first", 0, 1)
    assert evaluation.seconds == clock[0] - 1000.0

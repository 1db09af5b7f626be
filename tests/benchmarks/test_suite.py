"""What a benchmark meets and leaves: no dropout, the random numbers of training as they were, items in their order."""

from __future__ import annotations

import pytest
import torch

from litpeft.adapters import LoRA
from litpeft.benchmarks import Options, Suite
from litpeft.benchmarks.base import Benchmark, Live, Result
from litpeft.benchmarks.harness import _result
from tests.benchmarks.build import causal


class Looking(Benchmark):
    """Says whether dropout would act, and draws random numbers."""

    name = "looking_at_dropout"

    def run(self, live: Live) -> Result:
        torch.rand(100)
        return Result(scores={"training_modules": sum(module.training for module in live.task.modules())}, items=1)


def test_a_benchmark_meets_no_dropout_and_leaves_the_random_numbers(byte_llama: str) -> None:
    task, data = causal(byte_llama, LoRA(rank=2, dropout=0.5))
    task.train()
    before = torch.random.get_rng_state()
    found = Suite(Options(["looking_at_dropout"]), task, data).evaluate(task, data, lambda *_: None, pytest.fail)
    assert found.results["looking_at_dropout"].scores == {"training_modules": 0}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in task.modules())


def test_items_are_in_the_order_of_the_data_set() -> None:
    samples = [
        {"doc_id": place, "filter": "none", "acc": float(place == 1), "arguments": f"asked {place}", "target": "x"}
        for place in (2, 0, 1)
    ]
    assert _result({"acc,none": 1 / 3}, samples, 0).per_item == {"acc": [0.0, 1.0, 0.0]}

"""Evaluation weights are in the model from the outermost evaluation's start to its end; then training goes on bit by bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from litpeft.callbacks.evaluation_weights import EvaluationWeights


class Doubled(EvaluationWeights):
    """Evaluate with twice the weights."""

    def has_weights(self, trainer: object) -> bool:
        return True

    def use(self, trainer: object, parameters: dict[str, Tensor]) -> None:
        for parameter in parameters.values():
            parameter.mul_(2)


def test_an_evaluation_within_another_changes_nothing() -> None:
    backbone = nn.Linear(3, 2)
    backbone.bias.requires_grad_(False)
    weight, bias = backbone.weight.detach().clone(), backbone.bias.clone()
    callback, task = Doubled(), SimpleNamespace(backbone=backbone)

    def factor() -> Tensor:
        torch.testing.assert_close(backbone.bias, bias, rtol=0, atol=0)  # not trained
        return backbone.weight / weight

    for _ in range(2):
        assert (factor() == 1).all()
        callback.enter(None, task)
        assert (factor() == 2).all()
        callback.enter(None, task)  # benchmarks within a validation
        assert (factor() == 2).all()
        callback.leave(None, task)
        assert (factor() == 2).all()
        callback.leave(None, task)
        assert torch.equal(backbone.weight, weight)


@pytest.mark.parametrize("function", TrainerFn)
def test_only_the_validations_of_a_training_exchange_weights(function: TrainerFn) -> None:
    """The other verbs load the evaluation weights from a checkpoint."""
    backbone = nn.Linear(3, 2)
    weight = backbone.weight.detach().clone()
    callback, task = Doubled(), SimpleNamespace(backbone=backbone)
    trainer = SimpleNamespace(state=SimpleNamespace(fn=function))
    callback.on_validation_start(trainer, task)
    assert torch.equal(backbone.weight, 2 * weight if function == TrainerFn.FITTING else weight)
    callback.on_validation_end(trainer, task)
    assert torch.equal(backbone.weight, weight)
    callback.on_benchmark_start(trainer, task)
    assert torch.equal(backbone.weight, 2 * weight)
    callback.on_benchmark_end(trainer, task)
    assert torch.equal(backbone.weight, weight)

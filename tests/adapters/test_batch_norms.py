"""Running statistics of batch norms: no adapter saves them, so none lets a training loop change them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from litpeft.adapters import Adapter, DoRA, Frozen, Full, LoRA, Peft
from litpeft.adapters.base import trainable

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
ADAPTERS = {
    "lora": lambda: LoRA(rank=3, targets=r"0|6"),
    "dora": lambda: DoRA(rank=3, targets="all-linear"),
    "ia3": lambda: Peft("IA3", {"feedforward_modules": []}, targets=r"6"),
    "full": Full,
    "frozen": Frozen,
}


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)]
    model = nn.Sequential(*layers, nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 6, 6))  # statistics of earlier training
    return model


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_trained_model_is_saved_and_loaded_with_batch_norms(name: str, tmp_path: Path) -> None:
    adapter = ADAPTERS[name]()
    model = adapter.apply(_network(), head=["8"])
    statistics = {key: tensor.clone() for key, tensor in model.named_buffers()}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(X).square().mean().backward()
        optimizer.step()
    for key, tensor in model.named_buffers():
        assert torch.equal(tensor, statistics[key]), key
    trained = model.eval()(X)
    adapter.save(tmp_path / "adapter")
    Adapter.load(tmp_path / "adapter", again := _network())
    assert torch.equal(again.eval()(X), trained)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same.train()(X), trained)
    adapter.merge(model)
    torch.testing.assert_close(model.eval()(X), trained, rtol=1e-4, atol=1e-5)
    assert [type(module) for module in model] == [type(module) for module in _network()]
    model.train()(X)
    assert not torch.equal(model[1].running_mean, statistics["1.running_mean"])  # plain layers again

"""Sharding a model moves its blocks one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from litpeft.training import sharding


class Model(nn.Module):
    """Blocks inside a decoder, and modules beside them on both levels."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.embedding = nn.Embedding(5, 4)
        self.decoder.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))


def test_no_block_is_moved_before_the_block_ahead_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that cannot hold the whole model never has to; `meta` is the other device here."""
    model, sharded = Model(), list[nn.Module]()

    def shard_module(module: nn.Module, mesh: Any) -> None:
        blocks = [block.weight.device.type for block in model.decoder.blocks]
        done = len(sharded) + 1
        assert blocks == ["meta"] * min(done, 3) + ["cpu"] * max(0, 3 - done)
        beside = {
            parameter.device.type for part in (model.decoder.embedding, model.head) for parameter in part.parameters()
        }
        assert beside == {"meta" if module is model else "cpu"}
        sharded.append(module)

    monkeypatch.setattr(sharding, "fully_shard", shard_module)
    sharding.shard(model, None, torch.device("meta"))
    assert sharded == [*model.decoder.blocks, model]

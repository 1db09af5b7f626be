"""Adapters in torch's own transformer encoder, whose fused path in evaluation calls none of its layers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from litpeft.adapters import Adapter, DoRA, Full, LoRA, NormalisedUpdate, Peft, QLoRA
from tests.adapters.small_models import disturb

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
ADAPTERS = {
    "lora": lambda: LoRA(rank=2, targets="all-linear"),
    "dora": lambda: DoRA(rank=2, targets=["linear2"]),
    "qlora": lambda: QLoRA(rank=2, targets="all-linear"),
    "normalised": lambda: NormalisedUpdate(rank=2, targets=["linear1"]),
    "ia3": lambda: Peft("IA3", {"feedforward_modules": []}, targets=["linear1"]),
}


def _encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2).eval()


def _outputs(model: nn.Module, padding: Tensor | None) -> Tensor:
    with torch.no_grad():
        return model(X, src_key_padding_mask=padding)[~PADDING]


@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize("name", ADAPTERS)
def test_evaluation_computes_the_adapter(name: str, padding: Any, tmp_path: Path) -> None:
    adapter = ADAPTERS[name]()
    model = adapter.apply(_encoder())
    before = _outputs(model, padding)
    disturb(model)
    trained = _outputs(model.train(), padding)
    model.eval()
    assert (trained - before).abs().max() > 0.01
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(_outputs(same, padding), trained, rtol=1e-4, atol=1e-5)
    adapter.save(tmp_path / "adapter")
    Adapter.load(tmp_path / "adapter", again := _encoder())
    torch.testing.assert_close(_outputs(again, padding), trained, rtol=1e-4, atol=1e-5)
    with adapter.disable():
        torch.testing.assert_close(_outputs(model, padding), before, rtol=1e-4, atol=1e-5)
    adapter.merge(model)
    torch.testing.assert_close(_outputs(model, padding), trained, rtol=1e-4, atol=1e-5)


def test_a_block_without_changed_layers_keeps_its_fused_path() -> None:
    models = {"merged": _encoder(), "full": Full().apply(_encoder())}
    adapter = LoRA(rank=2, targets=["layers.1.linear1"])
    adapter.apply(models["merged"])
    adapter.merge(models["merged"])
    for model in models.values():
        assert not any(module._forward_pre_hooks for module in model.modules())
    assert models["full"].use_nested_tensor

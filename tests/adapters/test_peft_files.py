"""Adapters in PEFT's format: what the file says is what was trained, and an adapter that does not fit is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.layers import adapted_layers
from litpeft.adapters.peft_config import CONFIG
from litpeft.adapters.peft_format import PREFIX, TENSORS, load_adapter, write_adapter
from litpeft.errors import UserError
from tests.adapters.small_models import MODELS, disturb, small

BIASED = {"bias": "lora_only", "targets": ["query", "value"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"targets": ["query", "value"]},
    "rslora": {"rslora": True, "targets": ["query"]},
    "patterns": {"rank_pattern": {r".*layer\.0.*query": 2}, "alpha_pattern": {r".*layer\.1.*value": 5}, "targets": ["query", "value"]},
    "biases": BIASED,
    "embedding": {"targets": ["word_embeddings", "query"]},
}  # fmt: skip


def adapted(kind: type = LoRA, seed: int = 0, **options: Any) -> tuple[nn.Module, LoRA]:
    """Return a small BERT with an adapter whose values look trained."""
    model = small("bert")
    adapter = kind(**{"rank": 4, "alpha": 6} | options)
    adapter.apply(model, head=MODELS["bert"].head)
    torch.manual_seed(seed)
    for layer in adapted_layers(model).values():
        disturb(layer)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model.eval(), adapter


def written(folder: Path, **options: Any) -> tuple[nn.Module, LoRA, dict[str, Any]]:
    model, adapter = adapted(**options)
    write_adapter(folder, model, adapter, "base")
    return model, adapter, json.loads((folder / CONFIG).read_text())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_what_is_written_is_read_with_the_same_outputs(tmp_path: Path, kind: type, name: str) -> None:
    if kind is DoRA and name == "biases":
        pytest.skip("DoRA has no option for biases")
    model, adapter, config = written(tmp_path, kind=kind, **OPTIONS[name])
    other, _ = adapted(kind=kind, seed=1, **OPTIONS[name])
    inputs = MODELS["bert"].inputs
    with torch.no_grad():
        assert not torch.allclose(other(**inputs).logits, model(**inputs).logits, atol=1e-3)
        load_adapter(tmp_path, other, adapter)
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    assert config["use_dora"] == (kind is DoRA)
    # the rank and the scaling of each layer, as PEFT reads them
    for layer_name, layer in adapted_layers(model).items():
        rank = config["rank_pattern"].get(layer_name.replace(".", r"\."), config["r"])
        alpha = config["alpha_pattern"].get(layer_name.replace(".", r"\."), config["lora_alpha"])
        assert rank == layer.rank == layer.lora_A.shape[0]
        scaling = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
        assert scaling == pytest.approx(layer.scaling)
        assert layer_name in config["target_modules"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 7}, "has scaling 1.5, not 1.75; set alpha or rslora"),
        ({"rslora": True}, "has scaling 1.5, not 3; set alpha or rslora"),
        ({"rank": 2, "alpha": 3}, "has rank 4, not 2; set rank or rank_pattern"),
        ({"targets": ["query", "value", "key"]}, "it lacks 4 tensors"),
        ({"targets": ["query"]}, "it has 4 unexpected tensors"),
        ({"kind": DoRA}, "it is not a DoRA adapter"),
    ],
)
def test_an_adapter_with_other_options_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    written(tmp_path, targets=["query", "value"])
    model, adapter = adapted(**{"targets": ["query", "value"]} | options)
    before = {name: parameter.clone() for name, parameter in trainable(model).items()}
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path, model, adapter)
    assert all(torch.equal(before[name], parameter) for name, parameter in trainable(model).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_values_that_are_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    model, adapter, _ = written(tmp_path, targets=["query"])
    tensors = load_file(tmp_path / TENSORS)
    name = next(name for name in tensors if name.startswith(PREFIX) and name.endswith("lora_B.weight"))
    tensors[name][1, 1] = value
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(UserError, match="has NaN or infinite values"):
        load_adapter(tmp_path, model, adapter)


def test_an_adapter_without_a_head_leaves_the_head_of_the_model(tmp_path: Path) -> None:
    _, _, _ = written(tmp_path, targets=["query"])
    tensors = load_file(tmp_path / TENSORS)
    save_file({name: tensor for name, tensor in tensors.items() if "classifier" not in name}, tmp_path / TENSORS)
    model, adapter = adapted(seed=1, targets=["query"])
    head = model.classifier.weight.clone()
    load_adapter(tmp_path, model, adapter)
    assert torch.equal(model.classifier.weight, head)
    found = model.bert.encoder.layer[0].attention.self.query.lora_A
    assert torch.equal(found, tensors[f"{PREFIX}bert.encoder.layer.0.attention.self.query.lora_A.weight"])

"""Experts of a mixture, stacked in one parameter: PEFT's `target_parameters` and bitsandbytes as oracles."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from litpeft.adapters import DoRA, LoRA, QDoRA, QLoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.experts import StackedLinear4bit, _rows_by_expert, expert_weights
from litpeft.adapters.layers import AdaptedStackedLinear, adapted_layers
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.adapters.peft_format import load_adapter, write_adapter
from litpeft.errors import UserError

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "max_position_embeddings": 64}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": SIZES | {"num_local_experts": 4},
    "qwen3_moe": SIZES | {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
    "gpt_oss": SIZES
    | {"num_local_experts": 4, "layer_types": ["full_attention"] * 2},  # stored as (in, out), with biases
}
IDS = torch.randint(1, 50, (3, 12), generator=torch.Generator().manual_seed(1))
TARGETS = ["q_proj", "gate_up_proj", "down_proj"]


def small(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").to(dtype).eval()  # takes float64
    for name, parameter in model.named_parameters():
        if "experts" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def disturb(model: nn.Module) -> None:
    for name, parameter in trainable(model).items():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.2)


def loss(model: nn.Module) -> torch.Tensor:
    logits = model(IDS).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_gradients_and_merged_weights_equal_those_of_peft(kind: str, tmp_path: Path) -> None:
    model, adapter = small(kind), LoRA(rank=3, targets=TARGETS)
    plain = loss(copy.deepcopy(model)).item()
    adapter.apply(model).double()
    assert loss(model).item() == pytest.approx(plain, abs=1e-9)
    disturb(model)
    write_adapter(tmp_path, model, adapter, "base")
    theirs = peft.PeftModel.from_pretrained(small(kind), str(tmp_path), is_trainable=True, autocast_adapter_dtype=False)
    ours_loss, their_loss = loss(model), loss(theirs)
    assert abs(ours_loss.item() - plain) > 1e-3
    torch.testing.assert_close(ours_loss, their_loss, rtol=0, atol=1e-9)
    ours_loss.backward(), their_loss.backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert sum(g.square().sum() for g in gradients.values()).item() == pytest.approx(
        sum(p.grad.square().sum() for p in trainable(model).values()).item(), rel=1e-6
    )
    outer = gradients["base_model.model.model.layers.0.mlp.experts.lora_A.default.weight"]
    torch.testing.assert_close(model.model.layers[0].mlp.experts.down_proj.lora_A.grad, outer, rtol=1e-5, atol=1e-8)
    adapter.merge(model)
    assert isinstance(next(expert_weights(model))[1].down_proj, nn.Parameter)
    merged = theirs.merge_and_unload().state_dict()
    assert model.state_dict().keys() == merged.keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-9)
    torch.testing.assert_close(loss(model), their_loss, rtol=0, atol=1e-9)


def test_an_adapter_made_by_peft_is_read(tmp_path: Path) -> None:
    parameters = [f"mlp.experts.{leaf}" for leaf in ("gate_up_proj", "down_proj")]
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=parameters)
    theirs = peft.get_peft_model(small("qwen3_moe"), config, autocast_adapter_dtype=False)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    model = small("qwen3_moe")
    LoRA(rank=3, targets=TARGETS, init_from=str(tmp_path)).apply(model)
    torch.testing.assert_close(loss(model.double()), loss(theirs), rtol=0, atol=1e-6)


def test_the_format_survives_a_round_trip(tmp_path: Path) -> None:
    model, adapter = small("gpt_oss", torch.float32), LoRA(rank=2, targets=TARGETS)
    adapter.apply(model)
    disturb(model)
    write_adapter(tmp_path, model, adapter, "base")
    before = {name: p.clone() for name, p in trainable(model).items()}
    for parameter in trainable(model).values():
        parameter.data.zero_()
    load_adapter(tmp_path, model, adapter)
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_dora_equals_the_dense_formula(kind: str, tmp_path: Path) -> None:
    model, adapter = small(kind), DoRA(rank=3, targets=TARGETS)
    plain = loss(copy.deepcopy(model)).item()
    adapter.apply(model).double()
    assert loss(model).item() == pytest.approx(plain, abs=1e-6)  # the magnitude is stored in fp32
    disturb(model)
    for layer in adapted_layers(model).values():
        layer.magnitude.data.mul_(1.1)
    layer = model.model.layers[0].mlp.experts.gate_up_proj
    w = (layer.weight.mT if layer.transposed else layer.weight)[1]
    dense = w + layer.scaling * layer.lora_B.unflatten(0, (4, -1))[1] @ layer.lora_A.unflatten(0, (4, -1))[1]
    dense = dense * (layer.magnitude.unflatten(0, (4, -1))[1] / dense.norm(dim=1))[:, None]
    x = torch.randn(5, 32, dtype=torch.float64)
    torch.testing.assert_close(layer.by_expert(None)(x, 1), x @ dense.T, rtol=0, atol=1e-9)
    with pytest.raises(UserError, match="PEFT has no DoRA for the experts"):
        write_adapter(tmp_path, model, adapter, "base")
    trained = loss(model)
    adapter.merge(model)
    torch.testing.assert_close(loss(model), trained, rtol=0, atol=1e-9)


@pytest.mark.parametrize("adapter", [QLoRA(rank=3, targets=TARGETS), QDoRA(rank=3, targets=TARGETS), QLoRA(rank=3)])
@pytest.mark.parametrize("kind", KINDS)
def test_four_bit_experts_equal_bitsandbytes(kind: str, adapter: QLoRA) -> None:
    model = small(kind, torch.float32)
    reference = copy.deepcopy(model)
    adapter.targets = adapter.targets if len(adapter.targets) == 3 else ["q_proj"]
    adapter.apply(model)
    quantised = [m for m in model.modules() if isinstance(m, StackedLinear4bit)]
    assert len(quantised) == 4
    assert adapter.describe(model)["quantised"]["layers"] == 4 + 8
    for module in reference.modules():
        if type(module) is nn.Linear and module is not reference.lm_head:
            module.weight.data = _through_bitsandbytes(module.weight)
    for _, module, leaves in expert_weights(reference):
        for leaf in leaves:
            stack = getattr(module, leaf).data
            for matrix in stack.mT if module.is_transposed else stack:
                matrix.copy_(_through_bitsandbytes(matrix))
    torch.testing.assert_close(loss(model), loss(reference), rtol=0, atol=2e-6)
    counts, experts = adapter.describe(model), sum(p.numel() for n, p in reference.named_parameters() if "experts" in n)
    assert counts["quantised"]["params"] >= experts * 0.9
    assert counts["total_params"] == sum(p.numel() for p in reference.parameters()) + counts["trainable_params"]
    loss(model).backward()
    assert all(p.grad is not None for p in trainable(model).values())
    adapter.merge(model)
    torch.testing.assert_close(loss(model), loss(reference), rtol=0, atol=2e-6)
    assert not [m for m in model.modules() if isinstance(m, Linear4bit | AdaptedStackedLinear)]
    assert not trainable(model)


def _through_bitsandbytes(matrix: torch.Tensor) -> torch.Tensor:
    row = matrix.reshape(1, -1)  # as one row: see `dequantise`
    codes, state = bitsandbytes.functional.quantize_4bit(row, quant_type="nf4", compress_statistics=True)
    return bitsandbytes.functional.dequantize_4bit(codes.view(-1, 1), state).view(matrix.shape)


def test_a_fresh_adapter_draws_the_same_dropout_masks_in_backward() -> None:
    model = small("mixtral")
    LoRA(rank=3, dropout=0.5, targets=TARGETS).apply(model).double().train()
    disturb(model)
    parameter = model.model.layers[0].mlp.experts.gate_up_proj.lora_A
    torch.manual_seed(3)
    loss(model).backward()
    direction = torch.randn_like(parameter)
    values = []
    for step in (3e-5, -3e-5):  # a larger step changes the routing
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
        torch.manual_seed(3)
        values.append(loss(model).item())
        with torch.no_grad():
            parameter.add_(direction, alpha=-step)
    numeric = (values[0] - values[1]) / 6e-5
    assert (parameter.grad * direction).sum().item() == pytest.approx(numeric, rel=2e-2)


@pytest.mark.parametrize("place", ["fake", "meta"])
def test_in_an_estimate_the_experts_get_equal_shares_of_the_rows(place: str) -> None:
    with FakeTensorMode() if place == "fake" else torch.device("meta"):
        rows = _rows_by_expert(torch.zeros(7, 2, dtype=torch.int64), 4)
    assert rows == [4, 4, 3, 3]
    assert _rows_by_expert(torch.tensor([[0, 3], [3, 4]]), 4) == [1, 0, 0, 2, 1]  # 4: no expert

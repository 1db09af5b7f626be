"""LoRA against a dense float64 formula and against PEFT."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from litpeft.adapters import LoRA
from litpeft.adapters.layers import AdaptedLinear, LowRank
from litpeft.errors import UserError

SMALL = {"vocab_size": 50, "num_labels": 3, "pad_token_id": 0}
MODELS = {
    "bert": lambda: BertForSequenceClassification(
        BertConfig(**SMALL, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    ),
    "llama": lambda: LlamaForSequenceClassification(
        LlamaConfig(
            **SMALL,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
        )
    ),
    "t5": lambda: T5ForSequenceClassification(
        T5Config(
            **SMALL, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, eos_token_id=1, decoder_start_token_id=0
        )
    ),
}
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj", "down_proj"], "t5": ["q", "v", "wo"]}
HEADS = {"bert": "classifier", "llama": "score", "t5": "classification_head"}
IDS = torch.tensor([[2, 5, 6, 7, 3, 1], [2, 8, 9, 3, 11, 1]])


def layer(inputs: int, outputs: int, rank: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> AdaptedLinear:
    lora = AdaptedLinear(
        nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False), LowRank(rank, scaling=1.5)
    )
    nn.init.normal_(lora.lora_B)
    return lora


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 24),
    outputs=st.integers(1, 24),
    rank=st.integers(1, 32),
    rows=st.integers(0, 7),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_the_dense_formula_in_float64(
    inputs: int, outputs: int, rank: int, rows: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    lora = layer(inputs, outputs, rank, bias)
    x = torch.randn(2, rows, inputs, requires_grad=True)
    upstream = torch.randn(2, rows, outputs)
    lora(x).backward(upstream)
    dense = {name: p.detach().double().requires_grad_() for name, p in lora.named_parameters()}
    x64 = x.detach().double().requires_grad_()
    weight = dense["weight"] + 1.5 * dense["lora_B"] @ dense["lora_A"]
    out64 = F.linear(x64, weight, dense.get("bias"))
    out64.backward(upstream.double())
    close = {"rtol": 1e-5, "atol": 1e-5 * max(rank, 1)}
    torch.testing.assert_close(lora(x).double(), out64, **close)
    torch.testing.assert_close(x.grad.double(), x64.grad, **close)
    torch.testing.assert_close(lora.lora_A.grad.double(), dense["lora_A"].grad, **close)
    torch.testing.assert_close(lora.lora_B.grad.double(), dense["lora_B"].grad, **close)
    assert lora.weight.grad is None


def test_in_bf16_the_output_keeps_the_dtype_and_errs_by_no_more_than_bf16_does() -> None:
    torch.manual_seed(0)
    lora = layer(64, 48, 8, dtype=torch.bfloat16)
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    out = lora(x)
    assert out.dtype == torch.bfloat16
    assert lora.lora_A.dtype == lora.lora_B.dtype == torch.float32
    weight = lora.weight.double() + 1.5 * lora.lora_B.double() @ lora.lora_A.double()
    exact = F.linear(x.double(), weight, lora.bias.double())
    plain = F.linear(x, weight.bfloat16(), lora.bias)
    error, floor = (out.double() - exact).norm(), (plain.double() - exact).norm()
    assert error < 2 * floor


def test_dropout_falls_on_the_adapters_branch_alone() -> None:
    torch.manual_seed(0)
    lora = AdaptedLinear(nn.Linear(512, 16), LowRank(4, scaling=1.0, dropout=0.5))
    x = torch.randn(3, 512)
    plain = F.linear(x, lora.weight, lora.bias)
    torch.testing.assert_close(lora(x), plain)  # B is zero: what falls out cannot be seen yet
    nn.init.normal_(lora.lora_B)
    mean = torch.stack([lora(x) for _ in range(4000)]).mean(0)
    full = lora.eval()(x)
    assert (mean - full).abs().max() < 0.15 * (full - plain).abs().max()
    assert not torch.equal(lora.train()(x), full)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ten_steps_are_those_of_peft(name: str, dtype: torch.dtype) -> None:
    """Outputs, every gradient and ten optimizer steps; in float64 to the last digits that rounding leaves."""
    torch.manual_seed(0)
    ours = MODELS[name]()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name], modules_to_save=[HEADS[name]])
    theirs = peft.get_peft_model(copy.deepcopy(ours), config, autocast_adapter_dtype=False).to(dtype)
    LoRA(rank=4, alpha=8, targets=TARGETS[name]).apply(ours, head=[HEADS[name]])
    ours = ours.to(dtype)
    pairs = _pairs(ours, theirs)
    with torch.no_grad():
        for mine, other in pairs.values():
            mine.copy_(torch.randn_like(mine) * 0.1)
            other.copy_(mine)
    assert len(pairs) == sum(p.requires_grad for p in theirs.parameters())
    ours.eval(), theirs.eval()
    optimizers = [torch.optim.AdamW([p[i] for p in pairs.values()], lr=1e-2) for i in (0, 1)]
    labels = torch.tensor([0, 2])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for step in range(10):
        mine, other = ours(IDS, labels=labels), theirs(IDS, labels=labels)
        grow = 1 if dtype == torch.float64 else 2**step  # Adam's first steps carry rounding on, whatever its size
        torch.testing.assert_close(mine.logits, other.logits, rtol=tolerance * 10, atol=tolerance * grow)
        for model_output, optimizer in ((mine, optimizers[0]), (other, optimizers[1])):
            optimizer.zero_grad()
            model_output.loss.backward()
        if step == 0:
            for key, (p, q) in pairs.items():
                largest = q.grad.abs().max()
                assert (p.grad - q.grad).abs().max() <= tolerance * 2 * largest, key
        for optimizer in optimizers:
            optimizer.step()


def _pairs(ours: nn.Module, theirs: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    others = {
        name.removeprefix("base_model.model.").replace("modules_to_save.default.", "").replace(".default.weight", ""): p
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    return {name: (p, others[name]) for name, p in ours.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", MODELS)
def test_merged_layers_are_plain_and_give_the_same_output(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    kinds = {n: type(m) for n, m in model.named_modules()}
    adapter = LoRA(rank=4, targets=TARGETS[name])
    adapter.apply(model, head=[HEADS[name]])
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            nn.init.normal_(module.lora_B, std=0.1)
    before = model(IDS).logits
    adapter.merge(model)
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    torch.testing.assert_close(model(IDS).logits, before, rtol=1e-5, atol=1e-6)


def test_initial_values_are_drawn_as_the_paper_says() -> None:
    torch.manual_seed(0)
    lora = AdaptedLinear(nn.Linear(400, 30), LowRank(64, scaling=1.0))
    assert lora.lora_B.abs().max() == 0
    bound = 1 / 20  # uniform in 1/sqrt(in)
    assert lora.lora_A.abs().max() <= bound
    assert lora.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("options", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_options_out_of_range_are_refused_by_name(options: dict) -> None:
    with pytest.raises(UserError, match=f"model.adapter.{next(iter(options))} must"):
        LoRA(**options)


def test_what_is_trained_whole_gets_no_adapter_beside() -> None:
    model = MODELS["bert"]().to(torch.bfloat16)
    adapter = LoRA(rank=2, targets="all-linear")
    adapter.apply(model, head=["classifier"], new=["bert.pooler.dense.weight"])
    adapted = {name for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}
    assert len(adapted) == 12
    assert not adapted & {"classifier", "bert.pooler.dense"}
    nn.init.normal_(model.bert.encoder.layer[0].output.dense.lora_B, std=0.1)
    before = model.eval()(IDS).logits
    adapter.merge(model)
    torch.testing.assert_close(model(IDS).logits, before, rtol=2e-2, atol=2e-2)


def test_a_sub_class_of_a_layer_is_not_taken_for_it() -> None:
    class Other(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) ** 2

    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "other": Other(4, 4)})
    LoRA(rank=2, targets="all-linear").apply(model)
    assert type(model["plain"]) is AdaptedLinear
    assert type(model["other"]) is Other
    with pytest.raises(UserError, match="matches other, a Other, but this adapter acts on: Linear"):
        LoRA(rank=2, targets=["other"]).apply(nn.ModuleDict({"other": Other(4, 4)}))

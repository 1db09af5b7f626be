"""Compiled blocks: one graph per block without a break, and eager results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from litpeft.adapters import Adapter, DoRA, Full, LoRA, QDoRA, QLoRA
from litpeft.adapters.functional import adapted_linear
from litpeft.ops.attention import use_lean_attention
from litpeft.ops.compiled_blocks import compile_blocks
from litpeft.ops.dropout import use_lean_dropout
from tests.sampling import quick

STRATEGIES: dict[str, type[Adapter]] = {"full": Full, "lora": LoRA, "dora": DoRA, "qlora": QLoRA, "qdora": QDoRA}
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = torch.arange(32).view(2, 16)


@pytest.fixture(autouse=True)
def _no_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def llama(strategy: str, dropout: float, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Return a Llama of two blocks; its quantised strategies also have frozen four-bit layers."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, use_cache=False, attention_dropout=dropout, **SIZES)
    model = LlamaForCausalLM(config).to(torch.float32 if strategy == "full" else dtype)
    adapted = {"rank": 4, "targets": ["q_proj", "v_proj"], "dropout": dropout}
    STRATEGIES[strategy](**({} if strategy == "full" else adapted)).apply(model)
    use_lean_attention(model)
    use_lean_dropout(model)
    return model.train()


def steps(model: nn.Module, autocast: bool) -> None:
    """Run forward and backward for two lengths."""
    for tokens in (16, 12):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=IDS[:, :tokens]).logits
        logits.float().sum().backward()


CASES = [("full", 0.1), ("dora", 0.1), ("qdora", 0.1), ("lora", 0.0)]  # DoRA computes what LoRA does, and a norm
REST = [(strategy, dropout) for strategy in STRATEGIES for dropout in (0.0, 0.1) if (strategy, dropout) not in CASES]


@pytest.mark.parametrize(("strategy", "dropout"), quick([*CASES, *REST], CASES))
def test_no_block_breaks_the_graph_or_compiles_again(strategy: str, dropout: float) -> None:
    model = llama(strategy, dropout)
    compile_blocks(model, backend="eager")
    steps(model, autocast=strategy == "full")
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2  # the input of the first block needs no gradient
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_compiled_layer_with_dropout_equals_a_dense_layer_with_the_same_mask() -> None:
    torch.manual_seed(0)
    shapes = {"x": (3, 5, 8), "W": (6, 8), "b": (6,), "A": (2, 8), "B": (6, 2), "upstream": (3, 5, 6)}
    t = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    learned = {name: t[name].requires_grad_() for name in ("x", "A", "B")}
    compiled = torch.compile(adapted_linear, backend="aot_eager", fullgraph=True)

    def gradients(out: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(out, list(learned.values()), t["upstream"]))

    torch.manual_seed(1)
    out = compiled(t["x"], (t["W"],), lambda w, dtype: w, t["b"], t["A"], t["B"], 2.0, 0.3)
    torch.manual_seed(1)
    mask = (torch.rand(15, 8) >= 0.3).view(3, 5, 8)
    assert 0 < mask.double().mean() < 1
    expected = t["x"] @ t["W"].T + t["b"] + 2.0 * (t["x"] * mask / 0.7) @ t["A"].T @ t["B"].T
    torch.testing.assert_close(out, expected)
    for one, other in zip(gradients(out), gradients(expected), strict=True):
        torch.testing.assert_close(one, other)

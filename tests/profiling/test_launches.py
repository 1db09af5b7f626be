"""Kernel launches of a training step, against the largest number that is allowed.

On a GPU small models wait for launches, so fewer launches are more tokens per second.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.qlora import QDoRA, QLoRA
from litpeft.profiling.memory.cuda import cuda_choices
from litpeft.profiling.memory.meta_tensors import MetaValues, meta_execution
from tests.profiling.launches import Launches

STRATEGIES = {"lora": LoRA, "qlora": QLoRA, "dora": DoRA, "qdora": QDoRA}
# forward and backward of one bf16 layer. PEFT 0.21: 17, 23, 39, 49; with dropout 21, 27, 44, 54
PER_LAYER = {"lora": 8, "qlora": 14, "dora": 17, "qdora": 26}
DROPOUT = 5  # more with dropout
PER_STEP = {"lora": 1, "qlora": 1, "dora": 19, "qdora": 19}  # for all layers of one shape together
# forward and backward of a Llama with 22 layers. PEFT 0.21: 2824 and 3786; 4478 and 7857
WHOLE_STEP = {
    ("lora", "q,v"): 2371,
    ("dora", "q,v"): 2801,
    ("qlora", "q,v"): 3286,
    ("lora", "all-linear"): 2886,
    ("dora", "all-linear"): 4338,
    ("qlora", "all-linear"): 3801,
}


def step_launches(model: nn.Module, inputs: dict[str, Tensor]) -> Counter[str]:
    """Return the kernels of forward and backward of the second training step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with cuda_choices(), meta_execution(MetaValues()), Launches() as launches:
            out = model(**inputs)
            out = getattr(out, "logits", out)
        upstream = torch.empty_like(out)
        with launches:
            out.backward(upstream)
        optimizer.step()
    return launches.names


def layers_launches(strategy: str, layers: int, dropout: float) -> Counter[str]:
    """Return the kernels of a network of linear layers of one shape."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(layers))).to("meta", torch.bfloat16)
    STRATEGIES[strategy](rank=8, targets="all-linear", dropout=dropout).apply(model)
    # computed from a leaf, so that the first layer computes a gradient of its input too
    x = torch.empty(2, 16, 64, device="meta", dtype=torch.bfloat16, requires_grad=True).view(32, 64)
    return step_launches(model, {"input": x})


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_launches_of_a_layer(strategy: str, dropout: float) -> None:
    two, three = (layers_launches(strategy, layers, dropout) for layers in (2, 3))
    each = three - two
    assert each.total() == PER_LAYER[strategy] + (DROPOUT if dropout else 0), each
    assert (two - each - each).total() <= PER_STEP[strategy] + 1, two - each - each  # and the gradient of x is summed


@pytest.mark.parametrize(("strategy", "targets"), WHOLE_STEP)
def test_the_launches_of_a_whole_step(strategy: str, targets: str) -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 22}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=256, use_cache=False, **sizes, **heads)).bfloat16()
    names = ["q_proj", "v_proj"] if targets == "q,v" else targets
    STRATEGIES[strategy](rank=8, targets=names).apply(model)
    counted = step_launches(model.train(), {"input_ids": torch.zeros(2, 16, dtype=torch.int64, device="meta")})
    assert counted.total() <= WHOLE_STEP[strategy, targets], counted

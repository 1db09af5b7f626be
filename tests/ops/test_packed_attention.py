"""Packed rows: attention within documents equals a dense mask, and no tensor of T x T is made."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BloomConfig, GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from litpeft.adapters import LoRA
from litpeft.ops import packed_attention as ours
from litpeft.ops.attention import attention
from litpeft.ops.compiled_blocks import compile_blocks
from litpeft.profiling.memory.meta_tensors import MetaValues, meta_execution
from litpeft.tasks.packed_rows import attends_within_documents

LENGTHS = [[5, 1, 9, 3], [7, 2, 9]]  # documents of each row
TOKENS = sum(LENGTHS[0])
OFFSETS = torch.tensor([0, *torch.tensor([*LENGTHS[0], *LENGTHS[1]]).cumsum(0)], dtype=torch.int32)


def dense(q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None) -> Tensor:
    """Compute attention with a mask of T x T, head by head."""
    owner = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS])
    reach = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    mask = (owner[:, :, None] == owner[:, None]) & (reach >= 0) & (reach < (window or TOKENS))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT * scaling).masked_fill(~mask[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def varlen_by_hand(q: Tensor, k: Tensor, v: Tensor, first: Tensor, _: Tensor, longest: int, __: int, **options: Any):
    """Compute what torch's varlen_attn documents, for machines without its kernel: tensors are (tokens, H, D)."""
    assert longest == max(map(max, LENGTHS))
    assert options["enable_gqa"] == (q.shape[1] != k.shape[1])
    left, right = options["window_size"]
    assert right == 0  # causal
    out = []
    for start, end in pairwise(first.tolist()):
        one, two, three = (t[start:end].transpose(0, 1) for t in (q, k, v))
        two, three = (t.repeat_interleave(len(one) // len(t), 0) for t in (two, three))
        reach = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = (reach < 0) | ((reach > left) if left >= 0 else False)
        scores = (one @ two.mT * options["scale"]).masked_fill(hidden, -torch.inf)
        out.append((scores.softmax(-1) @ three).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [False, True], ids=["by document", "in one call"])
def test_attention_within_documents_equals_a_dense_mask(
    kernel: bool, groups: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel:
        monkeypatch.setattr(ours, "_in_one_call", lambda *_: True)
        monkeypatch.setattr(ours, "varlen_attn", varlen_by_hand)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, TOKENS, 8, requires_grad=True) for n in (4, groups, groups))
    module = nn.Module()
    module.num_key_value_groups = 4 // groups
    mask = ours.document_mask(OFFSETS, 9, torch.float32)
    out, _ = attention(module, q, k, v, mask, scaling=0.3, sliding_window=window)
    expected = dense(q, k, v, 0.3, window)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(out)
    for one, other in zip(*(torch.autograd.grad(y, (q, k, v), upstream) for y in (out, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_kernel_is_used_only_if_it_computes_what_each_document_alone_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    def by_hand(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        first: Tensor,
        last: Tensor,
        *longest: int,
        window_size: tuple[int, int],
        **_: Any,
    ) -> Tensor:
        assert window_size == (-1, 0)
        assert longest == (first.diff().max(),) * 2  # the kernel computes no token of a document beyond it
        parts = zip(*(t.split(first.diff().tolist()) for t in (q, k, v)), strict=True)
        return torch.cat([ours._alone(None, *(t.transpose(0, 1)[None] for t in part))[0][0] for part in parts])

    monkeypatch.setattr(ours, "_in_one_call", lambda *_: next(first))
    for kernel, works in ((by_hand, True), (lambda *a, **o: 2 * by_hand(*a, **o), False), (fails, False)):
        first = iter((True, False))
        monkeypatch.setattr(ours, "varlen_attn", kernel)
        ours._kernel_works.cache_clear()
        assert ours._kernel_works(torch.device("cpu"), torch.float32) is works
    ours._kernel_works.cache_clear()


class LargeTensors(TorchDispatchMode):
    """Keep the shapes of tensors with two dimensions of at least `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.shapes = tokens, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = (t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor))
        self.shapes |= {(str(func), tuple(t.shape)) for t in tensors if sum(n >= self.tokens for n in t.shape) > 1}
        return result


SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(vocab_size=50, num_key_value_heads=2, use_cache=False, **SIZES)
CONFIGS = {
    "llama": LLAMA,
    "mistral": MistralConfig(vocab_size=50, num_key_value_heads=2, use_cache=False, sliding_window=16, **SIZES),
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=160, use_cache=False, attn_pdrop=0.0),
    "bloom": BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4, use_cache=False),
}
DOCUMENTS = [60, 40, 10, 50]  # tokens
LONG = sum(DOCUMENTS)


def model_of(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(device):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](copy.deepcopy(config)).to(dtype)
    LoRA(rank=2, targets="all-linear").apply(model)
    return model


def inputs(model: PreTrainedModel, masked: bool) -> dict[str, Tensor]:
    ids = torch.arange(LONG, device=model.device)[None] % 50
    positions = torch.cat([torch.arange(n, device=model.device) for n in DOCUMENTS])[None]
    offsets = torch.tensor([0, *torch.tensor(DOCUMENTS).cumsum(0)], dtype=torch.int32).to(model.device)
    mask = {"attention_mask": ours.document_mask(offsets, max(DOCUMENTS), model.dtype)} if masked else {}
    return {"input_ids": ids, "position_ids": positions} | mask


@pytest.mark.parametrize(("dtype", "calls"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 3)])
def test_one_call_computes_all_documents_in_half_precision(dtype: torch.dtype, calls: int) -> None:
    """On meta tensors, which take the path of a GPU; three documents of at most 8 tokens."""
    if ours.varlen_attn is None:
        pytest.skip("this torch has no attention for variable lengths")
    given = torch.zeros(1, 2, 24, 8, device="meta", dtype=dtype)
    mask = ours.document_mask(torch.zeros(4, dtype=torch.int32, device="meta"), 8, dtype)
    alone: list[int] = []

    def count(module: nn.Module, query: Tensor, *_: Any) -> tuple[Tensor, None]:
        alone.append(query.shape[2])
        return query.transpose(1, 2), None

    with meta_execution(MetaValues()):
        out, _ = ours.packed_attention(nn.Module(), given, given, given, mask, 0.0, None, None, count)
    assert out.shape == (1, 24, 2, 8)
    assert alone == ([] if calls == 1 else [8] * calls)


@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta tensors take the path of a GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_packed_step_makes_no_tensor_of_the_square_of_its_tokens(name: str, dtype: torch.dtype, device: str) -> None:
    model = model_of(CONFIGS[name], dtype, device).eval()
    with meta_execution(MetaValues()):
        assert attends_within_documents(model)
    model.train()
    seen = {}
    for masked in (True, False):
        with meta_execution(MetaValues(answer=False)), LargeTensors(LONG) as large:
            model(**inputs(model, masked)).logits.float().sum().backward()
        seen[masked] = large.shapes
    assert not seen[True]
    assert seen[False]  # the mask that transformers makes


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_logits_and_gradients_equal_those_of_each_document_alone(name: str) -> None:
    model = model_of(CONFIGS[name]).eval()
    assert attends_within_documents(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    packed = model(**inputs(model, True)).logits
    alone = [model(input_ids=ids).logits for ids in inputs(model, True)["input_ids"].split(DOCUMENTS, 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(packed)
    gradients = [torch.autograd.grad(logits, trained, upstream) for logits in (packed, torch.cat(alone, 1))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_model_that_adds_to_its_mask_keeps_the_mask_of_transformers() -> None:
    assert not attends_within_documents(model_of(CONFIGS["bloom"]))


def test_a_layer_that_hides_its_window_keeps_the_mask_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(LLAMA)
    assert attends_within_documents(model)
    model.config.sliding_window = 16  # Llama's attention does not know it
    assert not attends_within_documents(model)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("name", "whole"), [("mistral", "sliding_attention"), ("llama", "full_attention")])
def test_layers_that_attend_to_chunks_keep_the_mask_of_transformers(name: str, whole: str, device: str) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.num_hidden_layers = 1
    for kind, expected in ((whole, True), ("chunked_attention", False)):
        model = model_of(config, device=device)
        model.config.layer_types = [kind]
        with meta_execution(MetaValues()):
            assert attends_within_documents(model) is expected


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def test_packing_breaks_no_graph_of_compiled_blocks(fresh_compiler: None) -> None:
    model = model_of(LLAMA, torch.bfloat16, "meta").train()
    with meta_execution(MetaValues()):
        assert attends_within_documents(model)
    compile_blocks(model, backend="eager")
    model(**inputs(model, True)).logits.float().sum().backward()
    assert counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]

"""Products of 16-bit numbers in fp32, for CPUs without instructions for them: any CPU is made to look like one here."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from litpeft.adapters import Adapter, DoRA, LoRA, QLoRA
from litpeft.errors import UserError
from litpeft.ops import products
from litpeft.ops.attention import attention, use_lean_attention
from litpeft.ops.dropout import use_lean_dropout
from litpeft.ops.kernels import use_kernels
from litpeft.ops.native import library
from litpeft.profiling.flops import FlopCounter, measured_peak

CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS: dict[str, Any] = {
    "bert": lambda: BertModel(
        BertConfig(vocab_size=50, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **SIZES)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=1, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=64, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    ),
    "t5": lambda: T5Model(
        T5Config(vocab_size=50, d_model=64, d_kv=32, d_ff=96, num_layers=2, num_heads=2, dropout_rate=0)
    ),
    "vit": lambda: ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES)),
}
TARGETS = {
    "bert": ["query", "value"], "llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn"], "t5": ["q", "v"], "vit": ["q_proj", "v_proj"]
}  # fmt: skip


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the CPU look like one without AVX-512 and AMX."""
    monkeypatch.setattr(products, "SLOW", frozenset(HALVES))
    monkeypatch.setattr(library, "available", lambda: False)
    monkeypatch.setattr(library, "has_bf16_products", lambda: False)


class HalfProducts(TorchDispatchMode):
    """While active, collect torch's products of 16-bit numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        factors = [a for a in args if isinstance(a, Tensor)][-2:]
        if any(kind in name for kind in ("mm", "convolution", "attention")) and any(f.dtype in HALVES for f in factors):
            self.found.append(f"{name} {[tuple(f.shape) for f in factors]}")
        return func(*args, **(kwargs or {}))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("part", [1, 200, 1 << 22])  # one row or column at a time; some; all
@pytest.mark.parametrize("transposed", [False, True])
def test_each_product_is_that_in_float64_rounded_once(
    dtype: torch.dtype, part: int, transposed: bool, plain_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "PART", part)
    monkeypatch.setattr(products, "FEWEST", 1)
    a, b, c = (random(*shape, seed=i).to(dtype) for i, shape in enumerate([(13, 24), (24, 17), (13, 17)]))
    bias = random(17, seed=3).to(dtype)
    if transposed:  # in the memory's order
        a, b, c = (t.T.contiguous().T for t in (a, b, c))
    exact = a.double() @ b.double()
    scaled = torch.empty_like(c)
    assert products.scaled_mm(a, b, 0.3, scaled) is scaled
    added = c.clone()
    assert products.addmm(added, a, b) is added
    for found, expected in (
        (products.linear(a, b.T), exact),
        (products.linear(a, b.T, bias), exact + bias.double()),
        (products.mm(a, b), exact),
        (scaled, 0.3 * exact),
        (added, c.double() + exact),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)
    wide = products.mm(a, b, torch.float32)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_gradient_of_no_row_is_zero(transposed: bool, plain_cpu: None) -> None:
    """An expert, or a trained head, may get no row of a batch."""
    no_rows = torch.empty(5, 0) if transposed else torch.empty(0, 5).T
    for dtype in HALVES:
        found = products.mm(random(0, 7).to(dtype).T, no_rows.to(dtype).T)
        assert torch.equal(found, torch.zeros(7, 5, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_elsewhere_the_products_are_torchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SLOW", frozenset())
    a, b, bias = random(5, 8).to(dtype), random(8, 6, seed=1).to(dtype), random(6, seed=2).to(dtype)
    assert torch.equal(products.linear(a, b.T, bias), nn.functional.linear(a, b.T, bias))
    assert torch.equal(products.mm(a, b), a @ b)
    assert products.mm(a, b, torch.float32).dtype == torch.float32
    out = random(5, 6, seed=3).to(dtype)
    expected = torch.addmm(out, a, b)
    assert torch.equal(products.addmm(out, a, b), expected)
    assert torch.equal(products.scaled_mm(a, b, 2.0, out), torch.addmm(out, a, b, beta=0, alpha=2.0))


def test_parts_of_a_factor_bound_the_memory_in_fp32(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output layer of 262,144 tokens would be 600 MiB in fp32."""
    monkeypatch.setattr(products, "PART", 1 << 14)
    monkeypatch.setattr(products, "FEWEST", 16)
    largest: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            largest.append(out.numel() if isinstance(out, Tensor) and out.dtype == torch.float32 else 0)
            return out

    x, weight, dy = (random(*shape, seed=shape[1]).bfloat16() for shape in [(80, 32), (20_000, 32), (80, 20_000)])
    for call in (lambda: products.linear(x, weight), lambda: products.mm(dy, weight), lambda: products.mm(dy.T, x)):
        with Sizes():
            call()
        assert 1 << 11 < max(largest) <= 1 << 14
        largest.clear()


@pytest.mark.parametrize(("rows", "expected"), [(1, True), (4, True), (5, False)])
def test_few_rows_are_multiplied_by_torch(
    rows: int, expected: bool, plain_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In generation, where W would be widened for each token."""
    with HalfProducts() as seen:
        found = products.linear(random(rows, 32).bfloat16(), weight := random(16, 32, seed=1).bfloat16())
    assert bool(seen.found) is expected
    exact = random(rows, 32).bfloat16().double() @ weight.double().T
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0.02)


def loss_of(model: nn.Module, name: str) -> Tensor:
    """Return a loss that depends on all of the model's output."""
    if name == "vit":
        out = model(pixel_values=random(5, 3, 16, 16).to(next(model.parameters()).dtype))
    else:
        ids = torch.randint(50, (5, 7), generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[1] * n + [0] * (7 - n) for n in (7, 6, 5, 4, 1)])
        more = {"decoder_input_ids": ids} if name == "t5" else {}
        out = model(input_ids=ids, attention_mask=mask, **more)
    return out[0].float().square().mean()


def built(name: str, adapter: Adapter | None, dtype: torch.dtype, kernels: str) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    if adapter is not None:
        model = adapter.apply(model)
        for each, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in each:  # zeros would hide the products with B
                parameter.data.copy_(0.1 * random(*parameter.shape))
    use_lean_attention(model)
    use_lean_dropout(model)
    used = use_kernels(model, kernels, CPU, torch.bfloat16)
    return model.train(), used


def gradients(model: nn.Module, name: str) -> dict[str, Tensor]:
    loss_of(model, name).backward()
    return {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert found
    squares = sum((found[n] - expected[n]).square().sum() for n in expected)
    return float((squares / sum(e.square().sum() for e in expected.values())).sqrt())


ADAPTERS: dict[str, Any] = {
    "full": lambda name: None,
    "lora": lambda name: LoRA(rank=4, alpha=8, targets=TARGETS[name]),
    "dropout": lambda name: LoRA(rank=4, alpha=8, dropout=0.5, targets=TARGETS[name]),
    "dora": lambda name: DoRA(rank=4, alpha=8, targets=TARGETS[name]),
    "qlora": lambda name: QLoRA(rank=4, alpha=8, targets=TARGETS[name]),
}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", MODELS)
def test_no_product_of_a_training_step_is_left_in_16_bits(name: str, kind: str, plain_cpu: None) -> None:
    model, used = built(name, ADAPTERS[kind](name), torch.bfloat16, "auto")
    assert used == "products in fp32"
    with HalfProducts() as seen:
        loss_of(model, name).backward()
    assert not without_norms(seen.found, kind)
    model.eval()
    with HalfProducts() as seen, torch.no_grad():
        loss_of(model, name)
    assert not [each for each in without_norms(seen.found, kind) if "attention" not in each]  # its forward is quick


def without_norms(found: list[str], kind: str) -> list[str]:
    """Return the products without DoRA's W Aᵀ, which are few: once per update of the weights."""
    return [each for each in found if not (kind == "dora" and each.startswith("mm") and each.endswith(", 4)]"))]


@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_no_farther_from_those_in_fp32_than_torchs(name: str, kind: str, plain_cpu: None) -> None:
    exact = gradients(built(name, ADAPTERS[kind](name), torch.float32, "none")[0], name)
    torchs = gradients(built(name, ADAPTERS[kind](name), torch.bfloat16, "none")[0], name)
    ours = gradients(built(name, ADAPTERS[kind](name), torch.bfloat16, "auto")[0], name)
    assert 0 < distance(ours, exact) < 1.3 * distance(torchs, exact) + 1e-4


def test_full_fine_tuning_rounds_factors_as_autocast_does(plain_cpu: None) -> None:
    """Trained weights are fp32; autocast rounds them, and the input, to bf16."""
    x, layer, other = random(6, 16).requires_grad_(), nn.Linear(16, 8), nn.Linear(16, 8)
    other.load_state_dict(layer.state_dict())
    use_kernels(layer, "auto", CPU, torch.bfloat16)
    outs = []
    for each in (layer, other):
        with torch.autocast("cpu", torch.bfloat16):
            out = each(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        outs.append((out, each.weight.grad, each.bias.grad, x.grad))
        assert each.weight.grad.dtype == torch.float32
        x.grad = None
    for found, expected in zip(*outs, strict=True):
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("tokens", [20, 600])  # torch's attention takes the longer rows
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_in_training_computes_in_fp32(tokens: int, dropout: float, kind: str, plain_cpu: None) -> None:
    module = SimpleNamespace(training=True, is_causal=True, native=True, num_key_value_groups=2)
    tensors = [random(2, heads, tokens, 16, seed=heads + i).bfloat16() for i, heads in enumerate((4, 2, 2))]
    mask = None
    if kind != "none":
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None].expand(2, 1, -1, -1)
        mask = mask if kind == "bool" else torch.zeros(2, 1, tokens, tokens).masked_fill(~mask, -1e9).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(1)  # for the dropout masks
        query, key, value = (t.detach().to(dtype, copy=True).requires_grad_() for t in tensors)
        fitting = mask.to(dtype) if kind == "added" else mask
        with HalfProducts() as seen:
            out, _ = attention(module, query, key, value, fitting, dropout)
            out.backward(random(*out.shape, seed=9).to(dtype))
        assert not seen.found
        assert out.dtype == query.grad.dtype == dtype
        results.append([t.float() for t in (out, query.grad, key.grad, value.grad)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-7 * float(expected.abs().max()))


def test_kernels_none_and_compiled_blocks_compute_with_torch(plain_cpu: None) -> None:
    assert use_kernels(nn.Linear(2, 2), "auto", CPU, torch.bfloat16, compiled=True) == "none"
    model, used = built("llama", ADAPTERS["lora"]("llama"), torch.bfloat16, "none")
    assert used == "none"
    assert type(model.lm_head) is nn.Linear
    with HalfProducts() as seen:
        loss_of(model, "llama").backward()
    assert seen.found
    with pytest.raises(UserError, match=r"^model\.kernels native runs on CPUs in bf16, and this run is in float16"):
        use_kernels(nn.Linear(2, 2), "native", CPU, torch.float16)


@pytest.mark.parametrize(("dtype", "device"), [(torch.float32, CPU), (torch.bfloat16, torch.device("meta"))])
def test_other_dtypes_and_devices_are_left_alone(dtype: torch.dtype, device: torch.device, plain_cpu: None) -> None:
    layer = nn.Linear(4, 4, device=device, dtype=dtype)
    if device == CPU:
        assert use_kernels(layer, "auto", device, dtype) == "none"
        assert type(layer) is nn.Linear
    assert not products.are_slow(layer.weight)


def test_operations_are_counted_as_without(plain_cpu: None) -> None:
    counts = []
    for kernels in ("none", "auto"):
        model, _ = built("bert", ADAPTERS["lora"]("bert"), torch.bfloat16, kernels)
        with FlopCounter() as counter:
            loss_of(model, "bert")
        counts.append(counter.flops)
    assert counts[0] == counts[1] > 0


def test_the_peak_of_the_processor_is_that_of_fp32(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    multiply = torch.mm

    def spy(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        seen.append(a.dtype)
        return multiply(a, b, out=out)

    monkeypatch.setattr(torch, "mm", spy)
    ticks: Iterator[int] = iter(range(1000))
    measured_peak(CPU, torch.bfloat16, clock=lambda: next(ticks))
    assert set(seen) == {torch.float32}

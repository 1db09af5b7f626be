"""Every layer type with LoRA and DoRA: identity, merging, gradients, dtypes, checkpointing, compiling, DoRA's norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.layers import ADAPTED, AdaptedLayer, LowRank
from litpeft.adapters.layers import base as layer_base
from litpeft.adapters.linear4bit import Linear4bit, bitsandbytes
from litpeft.adapters.targets import layer_type
from litpeft.errors import UserError
from tests.adapters.small_models import disturb

SCALING = 1.5
PAD = 2


def linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(24, 20, bias=bias)


def conv1d() -> Conv1D:
    layer = Conv1D(20, 24)
    nn.init.normal_(layer.bias)
    return layer


def four_bit() -> Linear4bit:
    return Linear4bit.from_linear(nn.Linear(24, 20).requires_grad_(False))


def vectors() -> Tensor:
    return torch.randn(2, 5, 24)


def images() -> Tensor:
    return torch.randn(2, 4, 7, 6)


def sequences() -> Tensor:
    return torch.randn(2, 4, 7)


def ids() -> Tensor:
    return torch.tensor([[3, PAD, 7, 7], [0, 29, PAD, 1]])


@dataclass(frozen=True)
class Kind:
    """Functions that build a frozen layer and its input."""

    make: Callable[[], nn.Module]
    feed: Callable[[], Tensor]


KINDS = {
    "linear": Kind(linear, vectors),
    "linear without bias": Kind(lambda: linear(False), vectors),
    "conv1d": Kind(conv1d, vectors),
    "4-bit": Kind(four_bit, vectors),
    "embedding": Kind(lambda: nn.Embedding(30, 12), ids),
    "embedding with padding": Kind(lambda: nn.Embedding(30, 12, padding_idx=PAD), ids),
    "embedding, scaled": Kind(lambda: Gemma3TextScaledWordEmbedding(30, 12, PAD, embed_scale=3.3), ids),
    "embedding, scaled by a number": Kind(lambda: BartScaledWordEmbedding(30, 12, PAD, embed_scale=3.3), ids),
    "convolution of sequences": Kind(lambda: nn.Conv1d(4, 6, 3, padding=1), sequences),
    "convolution of sequences, grouped": Kind(lambda: nn.Conv1d(4, 6, 3, groups=2, padding=1), sequences),
    "conv2d": Kind(lambda: nn.Conv2d(4, 6, 3), images),
    "conv2d without bias": Kind(lambda: nn.Conv2d(4, 6, (3, 2), bias=False), images),
    "conv2d strided": Kind(lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2)), images),
    "conv2d dilated": Kind(lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same"), images),
    "conv2d grouped": Kind(lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), images),
    "conv2d reflected": Kind(lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect", stride=2), images),
    "conv2d circular, same": Kind(lambda: nn.Conv2d(4, 6, (2, 3), padding="same", padding_mode="circular"), images),
}
every_kind = pytest.mark.parametrize("name", KINDS)
both_strategies = pytest.mark.parametrize("magnitude", [False, True], ids=["lora", "dora"])


def frozen(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layer = KINDS[name].make().requires_grad_(False)
    return Linear4bit.from_linear(linear().to(dtype).requires_grad_(False)) if name == "4-bit" else layer.to(dtype)


def fed(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    x = KINDS[name].feed()
    return x.to(dtype).requires_grad_() if x.is_floating_point() else x


def adapted(base: nn.Module, magnitude: bool, rank: int = 4, dropout: float = 0.0) -> AdaptedLayer:
    torch.manual_seed(2)
    base = copy.deepcopy(base)  # the adapted layer changes a 4-bit base
    return ADAPTED[layer_type(base)](base, LowRank(rank, SCALING, dropout, magnitude=magnitude))


def trained(name: str, magnitude: bool, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> AdaptedLayer:
    """Return a layer with an adapter whose values look trained."""
    layer = adapted(frozen(name, dtype), magnitude, dropout=dropout)
    disturb(layer)
    return layer


def parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in layer.named_parameters() if p.requires_grad}


def dense(base: nn.Module, layer: AdaptedLayer, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the layer's formula in float64 through a dense merged weight with plain autograd, and its leaves with x.

    W + s BA is computed group by group, DoRA's norm is detached, the bias is not scaled.
    """
    leaves = {name: p.detach().double().requires_grad_() for name, p in parameters(layer).items()}
    if x.is_floating_point():
        leaves["x"] = x = x.detach().double().requires_grad_()
    A, B = leaves["lora_A"].flatten(1), leaves["lora_B"].flatten(1)
    if isinstance(base, nn.Embedding) and base.padding_idx is not None:
        A = torch.where(
            torch.arange(A.shape[1]) == base.padding_idx, A.detach(), A
        )  # the column of the padding token does not train
    weight = base.weight.detach().double()
    matrix = weight.T if isinstance(base, Conv1D | nn.Embedding) else weight.flatten(1)
    groups = getattr(base, "groups", 1)
    composed = torch.cat(
        [w + SCALING * b @ a for w, a, b in zip(matrix.chunk(groups), A.chunk(groups), B.chunk(groups), strict=True)]
    )
    if "magnitude" in leaves:
        composed = (leaves["magnitude"] / composed.norm(dim=1).detach())[:, None] * composed
    bias = None if getattr(base, "bias", None) is None else base.bias.detach().double()
    return plain_product(base, x, composed, bias), leaves


def plain_product(base: nn.Module, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return torch's output with this weight (out, in)."""
    if isinstance(base, nn.Embedding):
        return F.embedding(x, matrix.T) * float(getattr(base, "embed_scale", 1.0))
    if not isinstance(base, nn.Conv1d | nn.Conv2d):
        return F.linear(x, matrix, bias)
    fresh = copy.deepcopy(base).to(matrix.dtype)
    values = {"weight": matrix.view(base.weight.shape), **({} if bias is None else {"bias": bias})}
    return torch.func.functional_call(fresh, values, (x,))


def gradients(layer: nn.Module, x: Tensor, upstream: Tensor, call: Callable | None = None) -> dict[str, Tensor]:
    """Return output and gradients of one forward and backward pass."""
    x = x.detach().requires_grad_(x.is_floating_point())
    layer.zero_grad()
    out = (layer if call is None else call)(x)  # a compiled module has no truth value
    out.backward(upstream.to(out.dtype))
    found = {name: p.grad.clone() for name, p in parameters(layer).items()}
    return found | {"output": out.detach()} | ({"x": x.grad} if x.requires_grad else {})


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def upstream_of(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        shape = layer(x).shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def distance(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())


# --- what a layer computes


@pytest.mark.parametrize("training", [True, False])
@both_strategies
@every_kind
def test_a_new_layer_equals_the_replaced_layer_bit_by_bit(name: str, magnitude: bool, training: bool) -> None:
    base = frozen(name)
    layer = adapted(base, magnitude, dropout=0.5).train(training)
    out, expected = layer(fed(name)), base(fed(name))
    if magnitude and name.startswith(
        ("conv2d", "convolution")
    ):  # some kernels add the bias before rounding, DoRA after
        assert distance(out, expected) < 2**-23
    else:
        assert torch.equal(out, expected)


@both_strategies
@every_kind
def test_a_new_bf16_layer_differs_by_at_most_the_bias_rounding(name: str, magnitude: bool) -> None:
    base = frozen(name, torch.bfloat16)
    layer = adapted(base, magnitude)
    out, expected = layer(fed(name, torch.bfloat16)), base(fed(name, torch.bfloat16))
    assert out.dtype == expected.dtype == torch.bfloat16
    if not magnitude or getattr(base, "bias", None) is None:
        assert torch.equal(out, expected)
    else:  # DoRA adds the bias after the factor, to a rounded product
        product = (
            expected - base.bias.view(-1, *[1] * (expected.ndim - 2))
            if name.startswith(("conv2d", "convolution"))
            else expected - base.bias
        )
        bound = 2**-8 * (product.abs() + 2 * expected.abs()) * 1.02
        assert ((out - expected).abs() <= bound).all()


@both_strategies
@every_kind
def test_a_trained_layer_equals_its_merged_plain_layer(name: str, magnitude: bool) -> None:
    layer = trained(name, magnitude, dropout=0.5).eval()
    merged = layer.merged()
    base = frozen(name)
    assert type(merged) is (nn.Linear if name == "4-bit" else type(base))
    assert not parameters(merged)
    out = merged(fed(name))
    torch.testing.assert_close(out, layer(fed(name)), rtol=1e-5, atol=1e-5)
    assert distance(out, base(fed(name))) > 1e-2  # the adapter makes a difference


@pytest.mark.parametrize("rank", [1, 4, 40])  # 40 is larger than all inputs and outputs
@both_strategies
@every_kind
def test_output_and_every_gradient_equal_the_dense_formula(name: str, magnitude: bool, rank: int) -> None:
    base = frozen(name)
    if rank == 1 and getattr(base, "groups", 1) > 1:
        rank = 2
    layer = adapted(base, magnitude, rank)
    disturb(layer)
    x = fed(name)
    upstream = upstream_of(layer, x)
    found = gradients(layer, x, upstream)
    expected, leaves = dense(base, layer, x)
    expected.backward(upstream.double())
    exact = {key: leaf.grad for key, leaf in leaves.items()} | {"output": expected}
    assert found.keys() == exact.keys()
    assert found.keys() >= {"lora_A", "lora_B", *(["magnitude"] if magnitude else [])}
    for key in found:
        assert exact[key].abs().max() > 0, key
        assert distance(found[key], exact[key]) < 2e-6, key
    assert {p.grad for n, p in layer.named_parameters() if n not in found} <= {None}


@both_strategies
def test_the_padding_token_does_not_train(magnitude: bool) -> None:
    layer = trained("embedding with padding", magnitude)
    layer(ids()).sum().backward()
    assert (layer.lora_A.grad[:, PAD] == 0).all()
    assert (layer.lora_A.grad[:, 7] != 0).all()


@both_strategies
@every_kind
def test_batches_may_be_empty(name: str, magnitude: bool) -> None:
    layer = trained(name, magnitude)
    x = fed(name).detach()[:0]
    out = layer(x)
    assert out.shape == frozen(name)(x).shape
    out.sum().backward()
    assert all((p.grad == 0).all() for p in parameters(layer).values())


@both_strategies
@every_kind
def test_dropout_changes_the_output_in_training_only(name: str, magnitude: bool) -> None:
    layer = trained(name, magnitude, dropout=0.5)
    without = trained(name, magnitude)
    assert torch.equal(layer.eval()(fed(name)), without(fed(name)))
    differs = not torch.equal(layer.train()(fed(name)), without(fed(name)))
    assert differs == (not name.startswith("embedding"))


@both_strategies
@every_kind
def test_bf16_error_is_at_most_twice_that_of_the_merged_layer(name: str, magnitude: bool) -> None:
    base = frozen(name, torch.bfloat16)
    layer = trained(name, magnitude, torch.bfloat16)
    assert {p.dtype for p in parameters(layer).values()} == {torch.float32}
    x = fed(name, torch.bfloat16)
    out = layer(x)
    assert out.dtype == torch.bfloat16
    exact, leaves = dense(base, layer, x)
    composed = layer.merged_matrix(layer.matrix().double()).bfloat16()  # merged in float64, rounded once
    assert not composed.requires_grad
    plain = plain_product(base, x, composed, getattr(base, "bias", None))
    assert distance(out, exact) <= 2 * distance(plain, exact)
    upstream = upstream_of(layer, x)
    found = gradients(layer, x, upstream.bfloat16())
    exact.backward(upstream.bfloat16().double())
    for key, leaf in leaves.items():
        assert distance(found[key], leaf.grad) < 1e-2, key


@both_strategies
@every_kind
def test_autocast_gives_the_dtype_of_the_plain_layer_and_fp32_gradients(name: str, magnitude: bool) -> None:
    base, layer = frozen(name), trained(name, magnitude)
    plain = base.plain() if name == "4-bit" else base
    x = fed(name)
    upstream = upstream_of(layer, x)

    def under_autocast(given: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            expected, out = plain(given), layer(given)
        assert expected.dtype == (torch.float32 if name.startswith("embedding") else torch.bfloat16)
        assert out.dtype == expected.dtype
        return out

    found, exact = gradients(layer, x, upstream, under_autocast), gradients(layer, x, upstream)
    for key in found.keys() - {"output"}:
        assert found[key].dtype == torch.float32, key
    for key in found:
        assert distance(found[key], exact[key]) < 2e-2, key


# --- in training


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("use_reentrant", [True, False])
@both_strategies
@every_kind
def test_gradient_checkpointing_changes_no_bit(name: str, magnitude: bool, use_reentrant: bool, dropout: float) -> None:
    layer = trained(name, magnitude, dropout=dropout)
    x = fed(name)
    upstream = upstream_of(layer, x)
    tie = torch.zeros((), requires_grad=True)  # reentrant checkpointing needs an input with requires_grad

    def checkpointed(given: Tensor) -> Tensor:
        return checkpoint(lambda _, inner: layer(inner), tie, given, use_reentrant=use_reentrant)

    torch.manual_seed(7)
    straight = gradients(layer, x, upstream)
    torch.manual_seed(7)
    assert_equal(gradients(layer, x, upstream, checkpointed), straight)
    if dropout and not name.startswith("embedding"):
        torch.manual_seed(8)
        assert not torch.equal(gradients(layer, x, upstream, checkpointed)["lora_B"], straight["lora_B"])


class Stack(nn.Module):
    """A small network of the layers with a custom autograd function."""

    def __init__(self, magnitude: bool, quantised: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        second = nn.Linear(64, 24).requires_grad_(False)
        self.first = adapted(nn.Linear(24, 64).requires_grad_(False), magnitude)
        self.second = adapted(Linear4bit.from_linear(second) if quantised else second, magnitude)
        self.third = adapted(nn.Linear(24, 5).requires_grad_(False), magnitude)
        disturb(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(x + self.second(F.gelu(self.first(x))))


def assert_compiled_equals_eager(magnitude: bool, quantised: bool, **options: object) -> None:
    torch._dynamo.reset()
    eager, compiled = Stack(magnitude, quantised), Stack(magnitude, quantised)
    call = torch.compile(compiled, **options)
    optimizers = [torch.optim.AdamW(parameters(model).values(), lr=1e-2, fused=True) for model in (eager, compiled)]
    torch.manual_seed(4)
    for _ in range(3):  # the norm must not be a constant of the trace
        x, upstream = torch.randn(6, 24), torch.randn(6, 5)
        one, other = gradients(eager, x, upstream), gradients(compiled, x, upstream, call)
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
        for optimizer in optimizers:
            optimizer.step()


plain_and_quantised = pytest.mark.parametrize("quantised", [False, True], ids=["plain", "4-bit"])


@pytest.mark.parametrize(  # a graph without a break is also compiled in parts
    "fullgraph", [pytest.param(False, id="in parts", marks=pytest.mark.whole), pytest.param(True, id="in one graph")]
)
@plain_and_quantised
@both_strategies
def test_compiled_layers_give_equal_results_over_three_steps(magnitude: bool, quantised: bool, fullgraph: bool) -> None:
    assert_compiled_equals_eager(magnitude, quantised, backend="aot_eager", fullgraph=fullgraph)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("magnitude", "quantised"),
    [
        pytest.param(False, False, id="lora-plain", marks=pytest.mark.whole),
        pytest.param(True, False, id="dora-plain", marks=pytest.mark.whole),
        pytest.param(False, True, id="lora-4-bit", marks=pytest.mark.whole),
        pytest.param(True, True, id="dora-4-bit"),
    ],
)
def test_inductor_layers_give_equal_results_over_three_steps(magnitude: bool, quantised: bool) -> None:
    assert_compiled_equals_eager(magnitude, quantised, backend="inductor")


@pytest.mark.parametrize("name", ["linear", "linear without bias", "conv1d", "4-bit", "conv2d", "conv2d without bias"])
@both_strategies
def test_an_output_may_be_changed_in_place(name: str, magnitude: bool) -> None:
    """Outputs may be changed in place, as `nn.ReLU(inplace=True)` and `x += ...` do; plain layers allow it.

    But for DoRA without a bias, which keeps its output for the magnitude's gradient, and says so loudly.
    """
    layer = trained(name, magnitude)
    x, upstream = fed(name), upstream_of(layer, fed(name))
    copied = gradients(layer, x, upstream, lambda given: F.relu(layer(given)))
    frozen(name)(x).relu_().sum().backward()  # the plain layer allows it
    if magnitude and name.endswith("without bias"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(layer, x, upstream, lambda given: layer(given).relu_())
        return
    assert_equal(gradients(layer, x, upstream, lambda given: layer(given).relu_()), copied)


class _Clones(TorchDispatchMode):
    """Count the copies that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.count += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [False, True])
@both_strategies
def test_falcon_may_add_to_an_output_which_is_copied_only_where_it_is_needed(magnitude: bool, bias: bool) -> None:
    """Falcon adds the attention to the output of its last layer, in place; each copy costs memory."""
    torch.manual_seed(0)
    layer = adapted(FalconLinear(*linear().weight.shape[::-1], bias=bias).requires_grad_(False), magnitude)
    disturb(layer)
    x, upstream = vectors(), upstream_of(layer, vectors())
    expected = gradients(layer, x, upstream, lambda given: F.relu(layer(given)))
    with _Clones() as clones:
        assert_equal(gradients(layer, x, upstream, lambda given: layer(given).relu_()), expected)
    plain = adapted(nn.Linear(*linear().weight.shape[::-1], bias=bias).requires_grad_(False), magnitude)
    with _Clones() as clones_of_plain:
        plain(x)
    with _Clones() as clones:
        layer(x)
    assert clones.count - clones_of_plain.count == (magnitude and not bias)


# --- DoRA's norm


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list with one entry per computation of a norm."""
    calls: list[int] = []
    real = layer_base.low_rank_norm

    def counted(*arguments: object) -> Tensor:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(layer_base, "low_rank_norm", counted)
    return calls


def exact_norm(layer: AdaptedLayer) -> Tensor:
    w, A, B = (tensor.detach().double() for tensor in layer.grouped(layer.matrix()))
    return (w + layer.scaling * B @ A).norm(dim=-1).flatten()


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adamw 8-bit": lambda p: bitsandbytes().optim.AdamW8bit(p, lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@every_kind
def test_the_norm_is_computed_once_per_optimizer_step_and_validation(
    name: str, optimizer: str, worked_out: list[int]
) -> None:
    layer = adapted(frozen(name), magnitude=True, dropout=0.1)
    steps = OPTIMIZERS[optimizer](list(parameters(layer).values()))
    if name.startswith("embedding"):
        nn.init.normal_(layer.lora_A, std=0.1)
    tie = torch.zeros((), requires_grad=True)
    for step in range(3):
        worked_out.clear()
        steps.zero_grad()
        layer.train()
        for use_reentrant in (True, False, True):  # micro-batches
            out = checkpoint(lambda _, x: layer(x), tie, fed(name), use_reentrant=use_reentrant)
            out.square().mean().backward()
        layer(fed(name)).square().mean().backward()
        first = step == 0 and not name.startswith("embedding")  # the norm of the constructor is still valid
        assert len(worked_out) == (0 if first else 1)
        layer.eval()
        with torch.inference_mode():
            layer(fed(name).detach()), layer(fed(name).detach())
        assert len(worked_out) == (1 if first else 2)  # weight averaging may have swapped weights for validation
        torch.testing.assert_close(layer.norm().double(), exact_norm(layer), rtol=1e-5, atol=1e-5)
        before = {key: p.detach().clone() for key, p in parameters(layer).items()}
        steps.step()
        assert any(not torch.equal(p, before[key]) for key, p in parameters(layer).items())
        assert layer.norm_is_stale()


@every_kind
def test_training_continues_after_inference_mode_computed_the_norm(name: str) -> None:
    layer = trained(name, magnitude=True)
    expected = gradients(trained(name, magnitude=True), fed(name), upstream_of(layer, fed(name)))
    layer = trained(name, magnitude=True)
    assert layer.norm_is_stale()
    with torch.inference_mode():
        layer.eval()(fed(name).detach())
    assert not layer.norm_is_stale()
    assert_equal(gradients(layer.train(), fed(name), upstream_of(layer, fed(name))), expected)


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_a_four_bit_weight_is_dequantised_once_for_the_norm_and_the_product(
    monkeypatch: pytest.MonkeyPatch, compute_dtype: torch.dtype | None
) -> None:
    from litpeft.adapters import linear4bit

    base = Linear4bit.from_linear(linear().requires_grad_(False), compute_dtype=compute_dtype)
    layer = adapted(base, magnitude=True)
    disturb(layer)
    dtypes: list[torch.dtype] = []
    real = linear4bit.dequantise

    def counted(*held: Tensor, **how: object) -> Tensor:
        dtypes.append(how["dtype"])
        return real(*held, **how)

    monkeypatch.setattr(linear4bit, "dequantise", counted)
    wanted = [compute_dtype or torch.float32]
    assert layer.norm_is_stale()
    out = layer(fed("4-bit"))
    assert dtypes == wanted  # for the norm and for the product
    dtypes.clear()
    out.sum().backward()
    assert dtypes == wanted  # that of backward
    dtypes.clear()
    layer(fed("4-bit"))
    assert dtypes == wanted  # the norm is cached


@every_kind
def test_a_copy_with_other_values_computes_its_own_norm(name: str) -> None:
    layer = adapted(frozen(name), magnitude=True)
    other = trained(name, magnitude=True)
    copied = copy.deepcopy(layer)
    copied.load_state_dict(other.state_dict())
    assert torch.equal(copied(fed(name)), other(fed(name)))


@every_kind
def test_loading_a_full_state_gives_the_same_output(name: str) -> None:
    """The base's weight with it: what is derived from a weight must follow it."""
    one = trained(name, magnitude=True)
    other = adapted(frozen(name, seed=9), magnitude=True)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other(fed(name)), one(fed(name)), rtol=1e-5, atol=1e-5)


@every_kind
def test_values_set_by_hand_change_the_norm(name: str) -> None:
    layer = adapted(frozen(name), magnitude=True)
    layer(fed(name))
    disturb(layer)
    torch.testing.assert_close(layer.norm().double(), exact_norm(layer), rtol=1e-5, atol=1e-5)


# --- a whole network


class Mixed(nn.Module):
    """An embedding, a convolution, linear layers of both types, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 24)
        self.inner = nn.Linear(24, 24)
        self.outer = Conv1D(24, 24)
        self.image = nn.Conv2d(4, 24, 3, stride=2)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 3)

    def forward(self, words: Tensor, pixels: Tensor) -> Tensor:
        x = self.words(words)
        x = self.norm(x + self.outer(torch.tanh(self.inner(x))))
        return self.head(x.mean(1) + self.image(pixels).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_only_adapter_and_head_change_in_training_and_the_base_stays_bit_stable(
    kind: type[LoRA], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = Mixed().to(dtype)
    kind(rank=4, targets=["words", "inner", "outer", "image"], dropout=0.1).apply(model, head=["head"])
    names = set(parameters(model))
    assert names >= {"head.weight", "head.bias", "words.lora_A", "image.lora_B"}
    assert {name.rpartition(".")[2] for name in names} - {"weight", "bias"} == {
        *("lora_A", "lora_B"),
        *(["magnitude"] if kind is DoRA else []),
    }
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(parameters(model).values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(ids(), images().to(dtype)).float(), torch.tensor([0, 2])).backward()
        optimizer.step()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key not in names), key


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, True), ({"max_norm": 1.0}, False), ({"scale_grad_by_freq": True}, False), ({"sparse": True}, False),
        ({"padding_idx": 0}, True), ({"max_norm": 1.0, "sparse": True}, False), ({"norm_type": 1.0}, True),
    ],
)  # fmt: skip
def test_an_embedding_that_computes_more_than_a_lookup_is_refused(options: dict, taken: bool) -> None:
    model = nn.ModuleDict({"table": nn.Embedding(20, 8, **options)})
    if taken:
        LoRA(rank=2, targets=["table"]).apply(model)
    else:
        with pytest.raises(UserError, match="max_norm"):
            LoRA(rank=2, targets=["table"]).apply(model)

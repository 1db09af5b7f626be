"""Counted FLOPs, compared with formulas and with torch's counter of executed operations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from litpeft.adapters import Adapter, DoRA, Full, LoRA, QDoRA, QLoRA
from litpeft.adapters.full import Frozen
from litpeft.ops.attention import NAME, use_lean_attention
from litpeft.ops.head_loss import head_loss
from litpeft.profiling import flops
from litpeft.profiling.flops import FlopCounter, measured_peak
from tests.architectures import one_pass

ROWS, LENGTH, WIDTH, INNER, LAYERS, VOCABULARY, RANK = 3, 10, 32, 48, 2, 50, 4
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "vocab_size": VOCABULARY,
}
POSITIONS = ROWS * LENGTH
SCORES = ROWS * LENGTH * LENGTH * WIDTH  # multiply-adds of q kᵀ, and of P v


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SIZES))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def prepare(make: Callable[[], PreTrainedModel], adapter: Adapter, attention: str = "") -> PreTrainedModel:
    torch.manual_seed(0)
    model = make()
    if not adapter.trains_base:
        model.bfloat16()
    adapter.apply(model, ["classifier"] if hasattr(model, "classifier") else [])
    use_lean_attention(model)
    if attention:
        model.set_attn_implementation(attention)
    return model.train()


def loss_of(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(POSITIONS).view(ROWS, LENGTH) % VOCABULARY
    labels = torch.zeros(ROWS, dtype=torch.long) if hasattr(model, "classifier") else ids
    return model(input_ids=ids, labels=labels).loss


def count_flops(model: PreTrainedModel) -> int:
    with FlopCounter() as counter:
        loss_of(model)
    return counter.flops


def linear(rows: int, fan_in: int, fan_out: int, products: int) -> int:
    """Return the FLOPs of a linear layer; `products` is 1 for forward, plus 1 for each gradient needed (input, weight)."""
    return 2 * rows * fan_in * fan_out * products


def adapted(fan_in: int, fan_out: int, below: bool) -> int:
    """Return the FLOPs of a frozen layer with LoRA; `below`: its input needs a gradient."""
    frozen = linear(POSITIONS, fan_in, fan_out, 1 + below)
    return frozen + linear(POSITIONS, fan_in, RANK, 2 + below) + linear(POSITIONS, RANK, fan_out, 3)


def llama_expected(name: str) -> int:
    """Return the FLOPs with an adapter on all linear layers except the head, or with full fine-tuning."""
    shapes = [*[(WIDTH, WIDTH)] * 4, *[(WIDTH, INNER)] * 2, (INNER, WIDTH)]
    attention = LAYERS * 2 * 2 * SCORES * 3
    if name == "full":
        body = LAYERS * sum(linear(POSITIONS, *shape, 3) for shape in shapes)
        return body + attention + linear(POSITIONS, WIDTH, VOCABULARY, 3)
    body = LAYERS * sum(adapted(*shape, below=True) for shape in shapes)
    # the input of q, k and v of the first layer needs no gradient
    body -= 3 * (adapted(WIDTH, WIDTH, below=True) - adapted(WIDTH, WIDTH, below=False))
    return body + attention + linear(POSITIONS, WIDTH, VOCABULARY, 2)


def bert_expected(name: str) -> int:
    """Return the FLOPs with an adapter on query and value, with full fine-tuning, or with only the classifier trained."""
    rest = [(WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH)]
    if name in ("full", "frozen"):
        times = 3 if name == "full" else 1
        body = LAYERS * sum(linear(POSITIONS, *shape, times) for shape in [*[(WIDTH, WIDTH)] * 3, *rest])
        body += LAYERS * 2 * 2 * SCORES * times + linear(ROWS, WIDTH, WIDTH, times)  # attention, pooler
        return body + linear(ROWS, WIDTH, 2, 3 if name == "full" else 2)
    first = 2 * adapted(WIDTH, WIDTH, below=False) + linear(POSITIONS, WIDTH, WIDTH, 1)
    first += 2 * SCORES * 2 + 2 * SCORES * 3  # the first key needs no gradient: 2 of 3 products
    others = 2 * adapted(WIDTH, WIDTH, below=True) + linear(POSITIONS, WIDTH, WIDTH, 2) + 2 * 2 * SCORES * 3
    body = first + (LAYERS - 1) * others + LAYERS * sum(linear(POSITIONS, *shape, 2) for shape in rest)
    return body + linear(ROWS, WIDTH, WIDTH, 2) + linear(ROWS, WIDTH, 2, 3)


ADAPTERS: dict[str, type[Adapter]] = {"full": Full, "lora": LoRA, "dora": DoRA, "qlora": QLoRA, "qdora": QDoRA}


@pytest.mark.parametrize("name", ADAPTERS)
def test_llama_matches_the_formula(name: str) -> None:
    adapter = Full() if name == "full" else ADAPTERS[name](rank=RANK, targets="all-linear", dropout=0.1)
    assert count_flops(prepare(llama, adapter)) == llama_expected(name)


@pytest.mark.parametrize("name", ["frozen", *ADAPTERS])
def test_bert_matches_the_formula(name: str) -> None:
    adapter = {"full": Full, "frozen": Frozen}[name]() if name in ("full", "frozen") else ADAPTERS[name](rank=RANK)
    assert count_flops(prepare(bert, adapter)) == bert_expected(name)


@pytest.mark.parametrize("attention", ["eager", "sdpa", NAME])
def test_the_attention_implementation_does_not_change_the_count(attention: str) -> None:
    assert count_flops(prepare(bert, LoRA(rank=RANK), attention)) == bert_expected("lora")


# torch's counter knows addmm, but not addmm_
IN_PLACE = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert,
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, bos_token_id=1, eos_token_id=1)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=INNER, num_layers=LAYERS, num_heads=4,
                 decoder_start_token_id=0, pad_token_id=0)
    ),
}  # fmt: skip


class _UpperLayer(Adapter):
    """Train only the second layer, so that no gradient flows below it."""

    name, trains_base = "upper_layer", True

    def adapt(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = ".1." in name and "decoder.block" not in name


@pytest.mark.parametrize(
    "adapter", [Full(), LoRA(rank=RANK, targets="all-linear"), _UpperLayer()], ids=lambda a: a.name
)
@pytest.mark.parametrize("name", MODELS)
def test_the_count_equals_the_operations_that_torch_executes(name: str, adapter: Adapter) -> None:
    """Eager attention repeats no product, and autograd computes only the gradients needed."""
    model = prepare(MODELS[name], adapter, "eager")
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as executed:
        loss_of(model).backward()
    assert count_flops(model) == executed.get_total_flops() > 0


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=RANK, targets=["projection", "query"])], ids=lambda a: a.name)
def test_convolutions_are_counted(adapter: Adapter) -> None:
    """Use the patch embedding of a vision transformer; its pixels need no gradient."""
    sizes = {name: value for name, value in SIZES.items() if name != "vocab_size"}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4))
    adapter.apply(model, ["classifier"])
    model.set_attn_implementation("eager")
    pixels = torch.rand(2, 3, 16, 16)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as executed:
        model(pixels).logits.sum().backward()
    with FlopCounter() as counter:
        model(pixels)
    assert counter.flops == executed.get_total_flops() > 0


@pytest.mark.parametrize("trained", [False, True])
def test_the_head_is_counted_only_for_rows_with_a_label(trained: bool) -> None:
    """The gradients of the head are computed in the forward pass, chunk by chunk."""
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(trained)
    hidden = torch.rand(POSITIONS, WIDTH, requires_grad=True)
    labelled = torch.arange(POSITIONS) % 3 == 0
    with FlopCounter() as counter:
        head_loss(hidden[labelled], torch.zeros(int(labelled.sum()), dtype=torch.long), head, VOCABULARY)
    assert counter.flops == linear(int(labelled.sum()), WIDTH, VOCABULARY, 2 + trained)


def test_grouped_query_attention_and_einsum_are_counted() -> None:
    query = torch.rand(2, 4, 5, 8, requires_grad=True)
    key, value = torch.rand(2, 2, 2, 7, 8)
    with FlopCounter() as counter:
        nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    assert counter.flops == 2 * (2 * 4 * 5 * 7 * 8) * (2 + 2)
    with FlopCounter() as counter:
        torch.einsum("bhqd,bhkd->bhqk", query, torch.rand(2, 4, 7, 8, requires_grad=True))
    assert counter.flops == 2 * (2 * 4 * 5 * 7 * 8) * 3


@pytest.mark.parametrize(("left", "right"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("equation", ["ij,jk->ik", "ij, jk -> ik", "ij,jk"])
def test_an_einsum_of_two_matrices_is_their_product(equation: str, left: bool, right: bool) -> None:
    one, other = torch.rand(3, 4, requires_grad=left), torch.rand(4, 5, requires_grad=right)
    with FlopCounter() as counter:
        torch.einsum(equation, one, other)
    assert counter.flops == 2 * (3 * 4 * 5) * (1 + left + right)


def test_an_einsum_of_one_or_three_factors_is_not_counted() -> None:
    one = torch.rand(4, 4, requires_grad=True)
    with FlopCounter() as counter:
        torch.einsum("ij->ji", one)
        torch.einsum("ij,jk,kl->il", one, one, one)
    assert counter.flops == 0


@pytest.mark.parametrize(("left", "right"), [(False, False), (True, False), (False, True), (True, True)])
def test_each_product_of_torch_counts_twice_its_multiply_adds_for_itself_and_each_gradient(
    left: bool, right: bool
) -> None:
    a, b, bias = torch.rand(3, 4, requires_grad=left), torch.rand(4, 5, requires_grad=right), torch.rand(5)
    times = 2 * 3 * 4 * 5 * (1 + left + right)
    for product in (
        lambda: a @ b,
        lambda: torch.mm(a, b),
        lambda: a.matmul(b),
        lambda: torch.addmm(bias, a, b),
        lambda: torch.addmm(bias, a, b, beta=0.5, alpha=2.0),
        lambda: torch.zeros(3, 5).addmm_(a, b),
        lambda: torch.bmm(a[None], b[None]),
        lambda: torch.baddbmm(bias, a[None], b[None]),
        lambda: torch.zeros(1, 3, 5).baddbmm_(a[None], b[None]),
        lambda: nn.functional.linear(a, b.t(), bias),
        lambda: nn.functional.linear(a, b.t(), bias=bias),
        lambda: nn.functional.conv1d(a.t()[None], b.t()[..., None]),
        lambda: nn.functional.conv2d(a.t()[None, ..., None], b.t()[..., None, None], bias),
        lambda: nn.functional.conv3d(a.t()[None, ..., None, None], b.t()[..., None, None, None]),
    ):
        with FlopCounter() as counter:
            product()
        assert counter.flops == times
    with FlopCounter() as counter:  # three channels in, each filter is three wide and reaches two places
        nn.functional.conv1d(torch.rand(2, 3, 4, requires_grad=left), torch.rand(5, 3, 3, requires_grad=right))
    assert counter.flops == 2 * (2 * 5 * 2) * (3 * 3) * (1 + left + right)


@pytest.mark.parametrize("needs", range(8))
def test_attention_counts_the_scores_and_the_weighted_sums(needs: int) -> None:
    q, k, v = ((needs >> place) % 2 == 1 for place in range(3))
    query, key = torch.rand(2, 4, 5, 8, requires_grad=q), torch.rand(2, 4, 7, 8, requires_grad=k)
    value = torch.rand(2, 4, 7, 6, requires_grad=v)
    with FlopCounter() as counter:
        nn.functional.scaled_dot_product_attention(query, key, value)
    pairs = 2 * 4 * 5 * 7
    assert counter.flops == 2 * pairs * 8 * (1 + q + k) + 2 * pairs * 6 * (1 + (q or k) + v)


def test_nothing_is_counted_under_no_grad_or_outside_the_counter() -> None:
    x, w = torch.rand(2, 3, requires_grad=True), torch.rand(3, 4)
    with FlopCounter() as counter, torch.no_grad():
        x @ w
    x @ w
    assert counter.flops == 0


def test_the_peak_is_the_best_rate_of_growing_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake device does 1000 operations per second, and takes 1 s to start a product."""
    monkeypatch.setattr(flops, "MIN_WIDTH", 4)
    monkeypatch.setattr(flops, "LONG_ENOUGH", 40.0)
    now, widths, multiply = [0.0], [], torch.mm

    def fake_mm(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        widths.append(len(left))
        now[0] += 1 + 2 * len(left) ** 3 / 1000 + (5 if widths.count(len(left)) == 1 else 0)  # the first one is slow
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", fake_mm)
    state = torch.get_rng_state()
    peak = measured_peak(torch.device("cpu"), torch.bfloat16, lambda: now[0])
    assert sorted(set(widths)) == [4, 8, 16, 32]
    assert peak == pytest.approx(2 * 32**3 / (1 + 2 * 32**3 / 1000))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_largest_matrices_of_the_peak_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device so fast that no product takes long: widths up to the limit, and the best rate, not the last one."""
    monkeypatch.setattr(flops, "MIN_WIDTH", 4)
    monkeypatch.setattr(flops, "MAX_WIDTH", 16)
    now, widths, multiply = [0.0], [], torch.mm

    def fake_mm(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        widths.append(len(left))
        now[0] += {4: 1e-3, 8: 1e-4, 16: 5e-3}[len(left)]
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", fake_mm)
    assert measured_peak(torch.device("cpu"), torch.float32, lambda: now[0]) == pytest.approx(2 * 8**3 / 1e-4)
    assert widths == [4] * 5 + [8] * 5 + [16] * 5


@pytest.mark.parametrize(("seconds", "number"), [(0.0099, 2), (0.0101, 1)])
def test_a_product_of_ten_milliseconds_is_long_enough(
    seconds: float, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, widths, multiply = [0.0], [], torch.mm

    def fake_mm(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        widths.append(len(left))
        now[0] += seconds if len(left) == 4 else 1.0
        return multiply(left, right, out=out)

    monkeypatch.setattr(flops, "MIN_WIDTH", 4)
    monkeypatch.setattr(torch, "mm", fake_mm)
    measured_peak(torch.device("cpu"), torch.float32, lambda: now[0])
    assert len(set(widths)) == number


@pytest.mark.parametrize("before", [(), (3,), (2, 3)])  # dimensions before positions and width
def test_attention_counts_each_pair_of_positions_in_whole_numbers(before: tuple[int, ...]) -> None:
    query, key, value = (torch.ones(*before, *shape) for shape in ((5, 4), (7, 4), (7, 6)))
    key.requires_grad_()
    with FlopCounter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, value)
    pairs = math.prod(before) * 5 * 7
    # scores, and their gradient for the keys; weighted sums, and their gradient for the scores
    assert counter.flops == 2 * pairs * 4 * 2 + 2 * pairs * 6 * 2
    assert isinstance(counter.flops, int)


# factors given by name, indices of einsum behind dots, a tuple of factors, experts, scans
@pytest.mark.parametrize("kind", ["bloom", "longt5", "prophetnet", "longformer", "xlnet", "mamba", "deberta-v2"])
def test_operations_of_own_attention_are_those_that_torch_counts(kind: str) -> None:
    model = one_pass.model_of(kind, False, torch.float32, "none").requires_grad_(False)
    with FlopCounterMode(display=False) as executed:
        one_pass.loss_of(model, kind)
    with FlopCounter() as counter:
        one_pass.loss_of(model, kind)
    assert counter.flops > 0
    assert counter.flops == pytest.approx(executed.get_total_flops(), rel=0.002)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 6)]), ("i...,j...->ij...", [(3, 1, 4), (5, 2, 4)])],
)
def test_indices_behind_dots_broadcast(equation: str, shapes: list[tuple[int, ...]]) -> None:
    tensors = [torch.ones(shape) for shape in shapes]
    with FlopCounter() as counter:
        out = torch.einsum(equation, tensors)
    summed = 4 if equation.startswith("...") else 1
    assert counter.flops == 2 * out.numel() * summed


X, W = torch.ones(3, 5, 8, requires_grad=True), torch.ones(8, 8, requires_grad=True)
KERNEL = torch.ones(8, 4, 3, requires_grad=True)
KEYS = torch.ones(3, 7, 8, requires_grad=True)
ATTENTION = nn.MultiheadAttention(8, 2, batch_first=True)


@pytest.mark.parametrize(
    "compute",
    [
        lambda: torch.tensordot(X, W, dims=1),
        lambda: torch.tensordot(X, KEYS, dims=([2, 0], [2, 0])),
        lambda: torch.inner(X, W),
        lambda: torch.linalg.matmul(X, W),
        lambda: nn.functional.conv_transpose1d(X.transpose(1, 2), KERNEL),
        lambda: nn.functional.conv_transpose1d(X.transpose(1, 2), KERNEL, stride=2, padding=1),
        # with weights, so that torch computes and counts plain products
        lambda: ATTENTION(X, X, X, need_weights=True)[0],
        lambda: ATTENTION(X, KEYS, KEYS, need_weights=True)[0],
        lambda: ATTENTION(X[0], KEYS[0], KEYS[0], need_weights=True)[0],
    ],
)
def test_functions_of_torch_that_multiply_are_counted_as_they_are_executed(compute: Callable[[], torch.Tensor]) -> None:
    with FlopCounter() as counter:
        compute()
    with FlopCounterMode(display=False) as executed:
        compute().sum().backward()
    assert counter.flops == executed.get_total_flops() > 0


def test_a_product_into_a_given_tensor_is_counted() -> None:
    left, right, out = torch.ones(2, 3), torch.ones(3, 4), torch.empty(2, 4)
    with FlopCounter() as counter:
        torch.mm(left, right, out=out)
        torch.matmul(left, right, out=out)
    assert counter.flops == 2 * 2 * (2 * 3 * 4)

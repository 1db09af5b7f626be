"""Four-bit layers against bitsandbytes, and QLoRA and QDoRA against LoRA and DoRA on dequantised weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from litpeft.adapters import DoRA, LoRA, QDoRA, QLoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.layers import AdaptedConv1D, AdaptedLinear, AdaptedQuantisedLinear, LowRank, adapted_layers
from litpeft.adapters.linear4bit import Linear4bit, bitsandbytes, dequantise, quantisation_failure
from litpeft.adapters.quantised_model import quantised_layers
from litpeft.errors import UserError
from tests.adapters.small_models import IDS, LABELS, MODELS, disturb, small

SHAPES = [(64, 64), (48, 96), (10, 130), (33, 50), (5, 7), (300, 64), (8, 16), (1, 3)]  # (out, in)
every_quantisation = pytest.mark.parametrize(
    ("quant_type", "double_quant"), [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)]
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# code tables from the papers, not from the library: NF4 from appendix E of arXiv:2305.14314
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
FP4 = sorted({s * v for s in (-1, 1) for v in (0, 0.0625 / 12, 4 / 12, 6 / 12, 8 / 12, 12 / 12, 2 / 12, 3 / 12)})


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(shape).to(dtype)


def frozen(
    shape: tuple[int, int] = (48, 96), dtype: torch.dtype = torch.float32, bias: bool = True, **options: Any
) -> Linear4bit:
    """Return a four-bit layer with a frozen bias."""
    drawn = nn.Parameter(weight((1, shape[0]), dtype, 1)[0], requires_grad=False) if bias else None
    return Linear4bit(weight(shape, dtype), drawn, **options)


# --- storage


@pytest.mark.parametrize("shape", SHAPES)
@both_dtypes
@every_quantisation
def test_codes_constants_and_weight_equal_bitsandbytes_bit_by_bit(
    quant_type: str, double_quant: bool, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    functional = bitsandbytes().functional
    codes, state = functional.quantize_4bit(
        weight(shape, dtype), blocksize=64, quant_type=quant_type, compress_statistics=double_quant
    )
    layer = frozen(shape, dtype, quant_type=quant_type, double_quant=double_quant)
    assert torch.equal(layer.codes, codes)
    assert torch.equal(layer.absmax, state.absmax)
    if double_quant:
        assert torch.equal(layer.nested_absmax, state.state2.absmax)
        assert torch.equal(layer.offset, state.offset)
    assert layer.weight.dtype == dtype
    assert layer.weight.shape == shape
    # blocks continue over the ends of rows, so the result must not depend on the row length: the CPU kernel
    # uses wrong constants for row lengths that are multiples of 16 but not of 64, and right ones for a single row
    state.shape = torch.Size((1, weight(shape).numel()))
    assert torch.equal(layer.weight, functional.dequantize_4bit(codes, state).view(shape))
    assert (layer.out_features, layer.in_features) == shape


@pytest.mark.parametrize(("quant_type", "table"), [("nf4", NF4), ("fp4", FP4)])
@pytest.mark.parametrize("shape", [(16, 128), (16, 96), (64, 32), (128, 50)])
def test_each_number_is_the_nearest_code_times_its_absmax(
    quant_type: str, table: list[float], shape: tuple[int, int]
) -> None:
    w = weight(shape)
    blocks = w.view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    choices = torch.tensor(table)
    nearest = choices[(blocks[..., None] / largest[..., None] - choices).abs().argmin(-1)] * largest
    layer = Linear4bit(w, None, quant_type, double_quant=False)
    held = layer.weight.view(-1, 64)
    # a number halfway between two codes may get either
    assert ((held - blocks).abs() <= (nearest - blocks).abs() + 1e-3 * largest).all()
    assert (held - nearest).abs().gt(1e-3 * largest).double().mean() < 0.01
    assert torch.equal(layer.absmax, largest.flatten())


@pytest.mark.parametrize("shape", SHAPES)
@every_quantisation
def test_stored_bytes_equal_the_formula(quant_type: str, double_quant: bool, shape: tuple[int, int]) -> None:
    numbers = shape[0] * shape[1]
    blocks = -(-numbers // 64)
    maxima = blocks + 4 * -(-blocks // 256) + 4 if double_quant else 4 * blocks
    layer = frozen(shape, quant_type=quant_type, double_quant=double_quant)
    assert layer.stored_bytes == -(-numbers // 2) + maxima
    assert layer.stored_bytes == sum(buffer.nbytes for buffer in layer.buffers())  # no other tensors are stored


@every_quantisation
def test_a_large_weight_takes_the_bits_per_number_of_the_paper(quant_type: str, double_quant: bool) -> None:
    layer = frozen((512, 512), quant_type=quant_type, double_quant=double_quant)
    assert 8 * layer.stored_bytes / 512**2 == pytest.approx(4.127 if double_quant else 4.5, abs=1e-3)


# --- outputs


@pytest.mark.parametrize("shape", [(48, 96), (33, 50)])
@both_dtypes
@every_quantisation
def test_output_and_gradients_equal_a_plain_layer_with_the_dequantised_weight(
    quant_type: str, double_quant: bool, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    layer = frozen(shape, dtype, quant_type=quant_type, double_quant=double_quant)
    layer.bias.requires_grad = True
    x, y = (weight((6, shape[1]), dtype, 2).view(2, 3, -1).requires_grad_() for _ in range(2))
    bias = layer.bias.detach().clone().requires_grad_()
    out, expected = layer(x), F.linear(y, layer.weight, bias)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    upstream = torch.randn_like(out)
    out.backward(upstream), expected.backward(upstream)
    close = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 6e-2}
    torch.testing.assert_close(x.grad, y.grad, **close)
    torch.testing.assert_close(layer.bias.grad, bias.grad, **close)


@both_dtypes
def test_only_the_stored_tensors_are_saved_for_backward(dtype: torch.dtype) -> None:
    layer = frozen(dtype=dtype)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(weight((4, 96), dtype).requires_grad_())
    assert saved == [tensor.data_ptr() for tensor in layer.stored]


def test_the_compute_dtype_applies_to_the_product_not_the_output() -> None:
    layer = frozen(compute_dtype=torch.bfloat16)
    x = weight((4, 96), seed=2)
    out = layer(x)
    assert out.dtype == torch.float32
    rounded = dequantise(*layer.stored, shape=(48, 96), quant_type="nf4", dtype=torch.bfloat16)
    assert torch.equal(out, F.linear(x.bfloat16(), rounded, layer.bias.bfloat16()).float())
    assert not torch.equal(out, frozen()(x))


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@both_dtypes
@every_quantisation
def test_a_converted_layer_of_bitsandbytes_gives_the_same_output(
    quant_type: str, double_quant: bool, dtype: torch.dtype, bias: bool, compute_dtype: torch.dtype | None
) -> None:
    theirs = theirs_layer(quant_type, double_quant, dtype, bias, compute_dtype)
    mine = Linear4bit.from_bitsandbytes(theirs)
    x = weight((4, 128), dtype, 2)
    expected = theirs(x)
    assert mine(x).dtype == expected.dtype
    torch.testing.assert_close(mine(x), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 0)
    assert torch.equal(mine.codes, theirs.weight.data)
    assert torch.equal(mine.weight, bitsandbytes().functional.dequantize_4bit(theirs.weight, theirs.weight.quant_state))


def theirs_layer(
    quant_type: str = "nf4",
    double_quant: bool = True,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    compute_dtype: torch.dtype | None = None,
) -> nn.Module:
    """Return a quantised layer of bitsandbytes in training mode; in evaluation mode it repacks its codes on a CPU."""
    library = bitsandbytes().nn
    layer = library.Linear4bit(
        128, 64, bias=bias, compute_dtype=compute_dtype, quant_type=quant_type, compress_statistics=double_quant
    )
    layer.weight = library.Params4bit(
        weight((64, 128), dtype), requires_grad=False, quant_type=quant_type, compress_statistics=double_quant
    )
    if bias:
        layer.bias = nn.Parameter(weight((1, 64), dtype, 1)[0], requires_grad=False)
    return layer.to("cpu").train()


def test_a_repacked_layer_of_bitsandbytes_is_converted_or_refused() -> None:
    theirs = theirs_layer()
    expected = Linear4bit.from_bitsandbytes(theirs).weight
    with torch.inference_mode():
        theirs.eval()(weight((4, 128)))  # now its codes may have another order
    try:
        adopted = Linear4bit.from_bitsandbytes(theirs)
    except UserError:
        return
    assert torch.equal(adopted.weight, expected)


@every_quantisation
def test_a_copy_is_the_same_and_shares_nothing(quant_type: str, double_quant: bool) -> None:
    layer = frozen(quant_type=quant_type, double_quant=double_quant)
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.weight, layer.weight)
    assert not {t.data_ptr() for t in copied.stored} & {t.data_ptr() for t in layer.stored}
    expected = layer.weight.clone()
    copied.codes.zero_()
    assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float64])
@every_quantisation
def test_casting_a_model_does_not_change_the_stored_tensors(
    quant_type: str, double_quant: bool, to: torch.dtype
) -> None:
    layer = frozen(quant_type=quant_type, double_quant=double_quant)
    before = [tensor.clone() for tensor in layer.stored]
    expected = layer.weight
    model = nn.Sequential(layer).to("cpu").to(to)
    assert model[0].bias.dtype == to
    for tensor, kept in zip(model[0].stored, before, strict=True):
        assert tensor.dtype == kept.dtype
        assert torch.equal(tensor, kept)
    assert torch.equal(model[0].weight.float(), expected.float())


def test_a_state_dict_loads_bit_by_bit() -> None:
    one, other = frozen(), Linear4bit(weight((48, 96), seed=5), nn.Parameter(torch.zeros(48)))
    other.load_state_dict(one.state_dict())
    x = weight((4, 96), seed=2)
    assert torch.equal(other(x), one(x))


def test_a_quantised_conv1d_stores_its_weight_transposed() -> None:
    base = Conv1D(48, 128).requires_grad_(False)
    layer = Linear4bit.from_linear(base)
    assert (layer.out_features, layer.in_features) == (48, 128)
    assert (layer.weight - base.weight.T).norm() < 0.12 * base.weight.norm()
    assert torch.equal(layer.weight, Linear4bit(base.weight.T.contiguous(), None).weight)


# --- with an adapter


@pytest.mark.parametrize("magnitude", [False, True])
@both_dtypes
@every_quantisation
def test_an_adapter_on_four_bits_equals_one_on_the_dequantised_weight(
    quant_type: str, double_quant: bool, dtype: torch.dtype, magnitude: bool
) -> None:
    base = frozen(dtype=dtype, quant_type=quant_type, double_quant=double_quant)
    plain = base.plain()
    options = LowRank(4, 1.5, magnitude=magnitude)
    layers = []
    for kind, module in ((AdaptedQuantisedLinear, base), (AdaptedLinear, plain)):
        torch.manual_seed(3)
        layer = kind(module, options)
        disturb(layer)
        layers.append(layer)
    results = []
    for layer in layers:
        x = weight((6, 96), dtype, 2).requires_grad_()
        out = layer(x)
        out.backward(weight((6, 48), dtype, 4))
        results.append([out, x.grad, *(p.grad for p in trainable(layer).values())])
    assert len(results[0]) == (5 if magnitude else 4)
    assert all(torch.equal(mine, other) for mine, other in zip(*results, strict=True))
    merged = layers[0].merged()
    assert type(merged) is nn.Linear
    assert torch.equal(merged.weight, layers[1].merged().weight)


def test_codes_stay_packed_in_the_graph_of_an_adapted_layer() -> None:
    layer = AdaptedQuantisedLinear(frozen((256, 256), torch.bfloat16), LowRank(4, 1.5))
    x = weight((2, 256), torch.bfloat16).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    assert max(tensor.nbytes for tensor in saved) == 256 * 256 // 2  # the codes, not the dequantised weight
    assert {t.data_ptr() for t in layer.stored} <= {t.data_ptr() for t in saved}


ADAPTERS = {"qlora": QLoRA, "qdora": QDoRA}
every_adapter = pytest.mark.parametrize("kind", ADAPTERS.values(), ids=ADAPTERS)


def steps(model: nn.Module, inputs: dict[str, Tensor], count: int = 3) -> None:
    """Train some steps on two examples."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    for _ in range(count):
        optimizer.zero_grad()
        model(**inputs, labels=LABELS).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", MODELS)
@every_adapter
def test_a_four_bit_model_equals_its_dequantised_model_in_output_and_gradients(kind: type[QLoRA], name: str) -> None:
    quantised = small(name)
    options = {"rank": 4, "targets": "all-linear"}
    kind(**options).apply(quantised, head=MODELS[name].head)
    plain = small(name)
    opened = {n.removesuffix(".base"): m for n, m in quantised.named_modules() if isinstance(m, Linear4bit)}
    assert opened
    with torch.no_grad():
        for part, layer in opened.items():
            own = plain.get_submodule(part)
            own.weight.copy_(layer.weight.T if isinstance(own, Conv1D) else layer.weight)
    (DoRA if kind is QDoRA else LoRA)(**options).apply(plain, head=MODELS[name].head)
    assert trainable(quantised).keys() == trainable(plain).keys()
    with torch.no_grad():
        disturb(plain)
        for key, parameter in trainable(quantised).items():
            parameter.copy_(trainable(plain)[key])
    outputs = [model(**MODELS[name].inputs, labels=LABELS) for model in (quantised, plain)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.loss.backward()
    largest = max(float(p.grad.abs().max()) for p in trainable(plain).values())
    for key, parameter in trainable(quantised).items():
        assert (parameter.grad - trainable(plain)[key].grad).abs().max() <= 1e-4 * largest, key


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("double_quant", [True, False])
@every_adapter
def test_codes_and_all_of_the_base_stay_bit_stable_in_training(
    kind: type[QLoRA], double_quant: bool, name: str
) -> None:
    model = small(name).to(torch.bfloat16)
    kind(rank=4, targets=MODELS[name].targets, double_quant=double_quant).apply(model, head=MODELS[name].head)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert sum(key.endswith("codes") for key in before) == len(quantised_layers(model)) > 0
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in MODELS[name].inputs.items()}
    steps(model, inputs)
    names = set(trainable(model))
    for key, tensor in model.state_dict().items():
        changed = not torch.equal(tensor, before[key])
        assert changed == (key in names), key


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@every_adapter
def test_the_state_of_a_trained_model_loads_into_a_fresh_one_bit_by_bit(kind: type[QLoRA], name: str) -> None:
    models = [small(name, seed) for seed in (0, 1)]  # the second has another base too
    for model in models:
        kind(rank=4, targets=MODELS[name].targets).apply(model, head=MODELS[name].head)
    steps(models[0], MODELS[name].inputs)
    state = {key: tensor.clone() for key, tensor in models[0].state_dict().items()}
    result = models[1].load_state_dict(state)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert all(torch.equal(tensor, state[key]) for key, tensor in models[1].state_dict().items())
    logits = [model.eval()(**MODELS[name].inputs).logits for model in models]
    assert torch.equal(*logits)


@every_adapter
def test_a_model_equals_its_quantised_base_right_after_it_is_adapted(kind: type[QLoRA]) -> None:
    model = small("bert")
    adapter = kind(rank=4, dropout=0.5)
    adapter.apply(model, head=["classifier"])
    base = small("bert")
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            base.get_submodule(name.removesuffix(".base")).weight.data = layer.weight
    assert torch.equal(model.train()(**MODELS["bert"].inputs).logits, base.train()(**MODELS["bert"].inputs).logits)


def test_a_model_quantised_by_bitsandbytes_is_converted() -> None:
    model = nn.ModuleDict({"query": theirs_layer(), "out": nn.Linear(64, 3)})
    x = weight((4, 128), seed=2)
    expected = model["query"](x)
    LoRA(rank=4, targets=["query"]).apply(model, head=["out"])
    assert type(model["query"]) is AdaptedQuantisedLinear
    torch.testing.assert_close(model["query"](x), expected, rtol=0, atol=1e-6)


# --- options, and systems where bitsandbytes does not work


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> str:
    reason = "no kernel for this device"
    monkeypatch.setattr("litpeft.adapters.bases.quantisation_failure", lambda device: reason)
    return reason


def test_quantisation_works_here_and_otherwise_gives_a_one_line_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantisation_failure(torch.device("cpu")) is None

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("libcuda.so:\n  cannot open.")

    monkeypatch.setattr(bitsandbytes().functional, "quantize_4bit", broken)
    assert quantisation_failure(torch.device("cpu")) == "libcuda.so: cannot open"


@every_adapter
def test_the_quantisation_error_gives_the_reason_and_the_option(kind: type[QLoRA], unavailable: str) -> None:
    for use in (lambda: kind().apply(small("bert")), lambda: kind().loading(torch.device("cpu"))):
        with pytest.raises(UserError) as caught:
            use()
        assert unavailable in str(caught.value)
        assert "--model.adapter.on_unavailable full_precision" in str(caught.value)
        assert "\n" not in str(caught.value)


@every_adapter
def test_full_precision_trains_like_the_plain_adapter_and_records_the_reason(
    kind: type[QLoRA], unavailable: str
) -> None:
    model, plain = small("bert"), small("bert")
    adapter = kind(rank=4, on_unavailable="full_precision")
    assert adapter.loading(torch.device("cpu")) == {}
    for one, strategy in ((model, adapter), (plain, (DoRA if kind is QDoRA else LoRA)(rank=4))):
        torch.manual_seed(3)
        strategy.apply(one, head=["classifier"])
    assert not quantised_layers(model)
    steps(model, {"input_ids": IDS}), steps(plain, {"input_ids": IDS})
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    description = adapter.describe(model)
    assert description["not_quantised_because"] == unavailable
    assert description["quantised"] == {"layers": 0, "params": 0, "bytes": 0}


@pytest.mark.parametrize("skip", [["head"], ["head", "value", "0.output.dense"], ["intermediate.dense"]])
def test_skipped_layers_are_not_quantised(skip: list[str]) -> None:
    model = small("bert")
    before = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    QLoRA(rank=4, targets=["query", "value"], skip=skip).apply(model, head=["classifier"])
    quantised = {n.removesuffix(".base") for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    ends = [part for part in skip if part != "head"]
    stays = {name for name in before if name == "classifier" or any(f".{name}".endswith(f".{end}") for end in ends)}
    assert quantised == before.keys() - stays
    for name in stays - {"classifier"}:
        kind = AdaptedLinear if name.endswith("value") else nn.Linear
        assert type(model.get_submodule(name)) is kind
        assert model.get_submodule(name).weight is before[name].weight


def lm() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).eval()


@pytest.mark.parametrize("skip", [["head"], []])
@every_adapter
def test_an_output_layer_tied_to_the_embedding_stays_tied_and_is_not_quantised(
    kind: type[QLoRA], skip: list[str]
) -> None:
    model = lm()
    before = model.transformer.wte.weight.clone()
    kind(rank=4, targets=["c_attn"], skip=skip).apply(model)
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, before)
    assert len(quantised_layers(model)) == 2 * 4
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in trainable(model).values())


def test_an_untied_output_layer_is_quantised_if_nothing_is_skipped() -> None:
    model = lm()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    QLoRA(rank=4, targets=["c_attn"], skip=[]).apply(model)
    assert type(model.lm_head) is Linear4bit


def test_nothing_to_quantise_is_an_error() -> None:
    with pytest.raises(UserError, match="ModuleDict has no layer to quantise outside skip"):
        QLoRA(targets=["query"], skip=["query"]).apply(nn.ModuleDict({"query": nn.Linear(64, 64)}))


@pytest.mark.parametrize("double_quant", [True, False])
@every_adapter
def test_the_description_counts_layers_parameters_and_bytes(kind: type[QLoRA], double_quant: bool) -> None:
    model, whole = small("bert"), small("bert")
    adapter = kind(rank=4, double_quant=double_quant)
    adapter.apply(model, head=["classifier"])
    description = adapter.describe(model)
    shapes = [(32, 32)] * 4 + [(64, 32), (32, 64)]
    numbers = 2 * sum(a * b for a, b in shapes) + 32 * 32  # two blocks and the pooler
    blocks = [a * b // 64 for a, b in [*shapes, *shapes, (32, 32)]]
    size = sum(32 * n + (n + 4 + 4 if double_quant else 4 * n) for n in blocks)
    assert description["quantised"] == {"layers": 13, "params": numbers, "bytes": size}
    added = 4 * 4 * (32 + 32) + (4 * 32 if kind is QDoRA else 0)
    assert description["trainable_params"] == added + 3 * 32 + 3
    assert description["total_params"] == sum(p.numel() for p in whole.parameters()) + added
    squares = 4 * 4 * 32 if kind is QDoRA else 0  # bytes of one buffer per adapted layer
    others = sum(b.nbytes for b in whole.buffers())
    plain = sum(p.numel() for p in whole.parameters()) - numbers
    assert description["model_bytes"] == 4 * (plain + added) + size + squares + others
    assert description["adapted_layers"] == {"query": 2, "value": 2}
    assert adapter.name == f"{'qdora' if kind is QDoRA else 'qlora'}-nf4"
    assert all(type(layer) is AdaptedQuantisedLinear for layer in adapted_layers(model).values())


def test_gpt2s_layers_are_adapted_as_linear_ones_in_four_bits_and_as_conv1d_where_skipped() -> None:
    model = small("gpt2")
    QLoRA(rank=4, targets=["c_attn", "c_proj"], skip=["c_proj"]).apply(model, head=["score"])
    kinds = {name.rpartition(".")[2]: type(layer) for name, layer in adapted_layers(model).items()}
    assert kinds == {"c_attn": AdaptedQuantisedLinear, "c_proj": AdaptedConv1D}


@pytest.mark.parametrize(("given", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32), (None, None)])
def test_the_compute_dtype_reaches_every_layer(given: str | None, dtype: torch.dtype | None) -> None:
    model = small("bert")
    QLoRA(rank=4, compute_dtype=given).apply(model, head=["classifier"])
    assert {layer.compute_dtype for layer in quantised_layers(model)} == {dtype}
    out = model(IDS, labels=LABELS)
    assert out.logits.dtype == torch.float32
    out.loss.backward()
    assert {p.grad.dtype for p in trainable(model).values()} == {torch.float32}

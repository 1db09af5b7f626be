"""Models whose products of 16-bit numbers are computed in fp32; any CPU is made to look like one that is slow in them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.ops.head_loss import head_loss
from litpeft.ops.products import FEW
from litpeft.ops.wide_modules import use_wide_products, wide_products
from litpeft.profiling.flops import FlopCounter
from tests.architectures.models import ARCHITECTURES, VISION
from tests.architectures.one_pass import loss_of, model_of
from tests.ops.test_products import HALVES, HalfProducts, distance, plain_cpu, random  # noqa: F401

# own attention, a bias in the product, experts, a scan and convolutions, einsum, windows, three-dimensional products
SAMPLE = ("deberta-v2", "bloom", "mixtral", "mamba", "xlnet", "longformer", "falcon", "convbert", "gpt2", "swin")
# not siglip, whose pooling is torch's nn.MultiheadAttention: a mode sees it as one function
REST = [kind for kind in [*ARCHITECTURES, *VISION] if kind not in (*SAMPLE, "siglip")]
NO_STEP = ("ibert",)  # its layers are no linear layers
FEW_ROWS = ("switch_transformers",)  # an expert with up to four rows, which torch multiplies

Function = Callable[..., Tensor]
OFFS = torch.tensor([2, 2, 7], dtype=torch.int32)  # the second expert has no row, and the last row no expert
PRODUCTS: dict[str, tuple[Function, list[tuple[int, ...]]]] = {
    "linear": (F.linear, [(3, 7, 16), (5, 16), (5,)]),
    "linear without bias": (F.linear, [(7, 16), (5, 16)]),
    "@": (lambda a, b: a @ b, [(2, 3, 7, 16), (2, 3, 16, 5)]),
    "broadcast": (torch.matmul, [(2, 1, 7, 16), (3, 16, 5)]),
    "matrix times matrices": (torch.matmul, [(7, 16), (3, 16, 5)]),
    "times a matrix": (Tensor.matmul, [(3, 7, 16), (16, 5)]),
    "times a vector": (torch.matmul, [(3, 7, 16), (16,)]),
    "a vector times": (torch.matmul, [(16,), (3, 16, 5)]),
    "mm": (torch.mm, [(7, 16), (16, 5)]),
    "bmm": (torch.bmm, [(3, 7, 16), (3, 16, 5)]),
    "addmm": (torch.addmm, [(5,), (7, 16), (16, 5)]),
    "scaled addmm": (lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), [(7, 5), (7, 16), (16, 5)]),
    "baddbmm": (lambda c, a, b: c.baddbmm(batch1=a, batch2=b, beta=0.5), [(3, 7, 5), (3, 7, 16), (3, 16, 5)]),
    "einsum": (lambda a, b: torch.einsum("bik,bjk->bij", a, b), [(3, 7, 16), (3, 5, 16)]),
    "einsum of a list": (lambda a, b: torch.einsum("ik,kj->ij", [a, b]), [(7, 16), (16, 5)]),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, bias=b, padding=1), [(2, 4, 9), (6, 4, 3), (6,)]),
    "conv2d": (lambda x, w: F.conv2d(x, w, stride=2), [(2, 3, 8, 8), (6, 3, 2, 2)]),
}
if hasattr(F, "grouped_mm"):  # torch 2.10 and newer; before, transformers multiplies in a loop
    PRODUCTS["grouped_mm"] = (lambda a, b: F.grouped_mm(a, b, offs=OFFS)[:7], [(8, 16), (3, 16, 8)])


def in_float64(name: str, tensors: list[Tensor]) -> Tensor:
    if name != "grouped_mm":
        return PRODUCTS[name][0](*tensors)
    a, b = tensors  # torch's has no float64
    return torch.cat([a[:2] @ b[0], a[2:7] @ b[2]])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_each_function_and_its_gradients_are_those_in_float64_rounded(
    name: str,
    dtype: torch.dtype,
    plain_cpu: None,  # noqa: F811
) -> None:
    function, shapes = PRODUCTS[name]
    given = [random(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    found = [each.clone().requires_grad_() for each in given]
    exact = [each.double().requires_grad_() for each in given]
    expected = in_float64(name, exact)
    dy = random(*expected.shape, seed=9).to(dtype)
    with HalfProducts() as seen:
        with wide_products():
            out = function(*found)
        out.backward(dy)
    assert not seen.found
    assert out.dtype == dtype
    expected.backward(dy.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=eps, atol=2e-5)
    often = 4 if name in ("broadcast", "matrix times matrices") else 0.5  # their gradients are sums of rounded products
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=eps, atol=often * eps)


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "grouped_mm"])  # which autocast does not cast
def test_autocast_rounds_as_without(name: str, plain_cpu: None) -> None:  # noqa: F811
    function, shapes = PRODUCTS[name]
    results = []
    for wide in (True, False):
        given = [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
        with torch.autocast("cpu", torch.bfloat16):
            if wide:
                with wide_products(), HalfProducts() as seen:
                    out = function(*given)
                assert not seen.found
            else:
                out = function(*given)
        assert out.dtype == torch.bfloat16
        out.backward(random(*out.shape, seed=9).bfloat16())
        assert {each.grad.dtype for each in given} == {torch.float32}
        results.append([out, *(each.grad for each in given)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_numbers_are_left_to_torch(dtype: torch.dtype, plain_cpu: None) -> None:  # noqa: F811
    a, b = random(7, 16).to(dtype), random(16, 5, seed=1).to(dtype)
    integers = torch.arange(6).view(2, 3)
    with wide_products():
        assert torch.equal(a @ b, torch.mm(a, b))
        assert torch.equal(integers @ integers.T, torch.tensor([[5, 14], [14, 50]]))
        with torch.autocast("cpu", torch.bfloat16):
            assert (a.double() @ b.double()).dtype == torch.float64


def test_factors_of_two_dtypes_are_refused_as_without(plain_cpu: None) -> None:  # noqa: F811
    with wide_products(), pytest.raises(RuntimeError, match="same dtype"):
        random(7, 16) @ random(16, 5).bfloat16()


def test_a_result_can_be_written_to_a_tensor(plain_cpu: None) -> None:  # noqa: F811
    a, b, out = random(7, 16).bfloat16(), random(16, 5, seed=1).bfloat16(), torch.empty(7, 5, dtype=torch.bfloat16)
    with wide_products():
        assert torch.mm(a, b, out=out) is out
    torch.testing.assert_close(out, a @ b)


def test_large_batches_are_widened_in_parts(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    a, b = random(6, 8, 16).bfloat16(), random(6, 16, 4, seed=1).bfloat16()
    expected = (a.float() @ b.float()).bfloat16()
    sizes = []
    bmm = torch.bmm
    monkeypatch.setattr("litpeft.ops.products.PART", 2 * 8 * 16)
    monkeypatch.setattr("litpeft.ops.products.torch.bmm", lambda *each: (sizes.append(len(each[0])), bmm(*each))[1])
    with wide_products():
        assert torch.equal(a @ b, expected)
    assert sizes == [2, 2, 2]


def test_outside_of_a_forward_pass_torch_computes(plain_cpu: None) -> None:  # noqa: F811
    """Also after an error in one, and in one that another has called."""

    class Failing(nn.Module):
        def forward(self, x: Tensor, inner: nn.Module | None) -> Tensor:
            out = x @ x if inner is None else inner(x, None)
            if inner is None and x.sum() > 0:
                raise KeyboardInterrupt
            return out @ x

    model, inner = Failing(), Failing()
    assert use_wide_products(model) == use_wide_products(model) == "products in fp32"
    assert type(model).__mro__[1] is Failing  # the second time changed nothing
    use_wide_products(inner)
    for x in (torch.ones(8, 8), -torch.ones(8, 8)):
        with HalfProducts() as seen:
            if x.sum() > 0:
                with pytest.raises(KeyboardInterrupt):
                    model(x.bfloat16(), inner)
            else:
                model(x.bfloat16(), inner)
        assert not seen.found
        with HalfProducts() as seen:
            x.bfloat16() @ x.bfloat16()
        assert len(seen.found) == 1


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("kind", [*SAMPLE, *(pytest.param(kind, marks=pytest.mark.whole) for kind in REST)])
def test_no_architecture_has_a_product_left_in_16_bits(kind: str, adapter: bool, plain_cpu: None) -> None:  # noqa: F811
    if adapter and kind in NO_STEP:
        pytest.skip("LoRA refuses its layers")
    model = model_of(kind, adapter, torch.bfloat16, "auto")
    with HalfProducts() as seen:
        loss_of(model, kind).backward()
    assert not [each for each in seen.found if kind not in FEW_ROWS or int(re.search(r"\d+", each)[0]) > FEW]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_an_output_layer_that_the_loss_calls_computes_in_fp32(kind: str, plain_cpu: None) -> None:  # noqa: F811
    head = model_of(kind, False, torch.bfloat16, "auto").get_output_embeddings()
    hidden = random(20, 32).bfloat16().requires_grad_()
    with HalfProducts() as seen:
        head_loss(hidden, torch.arange(20), head, 30).backward()
    assert not seen.found
    assert hidden.grad.any()


@pytest.mark.parametrize("kind", SAMPLE)
def test_gradients_are_no_farther_from_those_in_fp32_than_torchs(kind: str, plain_cpu: None) -> None:  # noqa: F811
    found = {}
    for name, dtype, kernels in (
        ("exact", torch.float32, "none"),
        ("torch", torch.bfloat16, "none"),
        ("ours", torch.bfloat16, "auto"),
    ):
        model = model_of(kind, False, dtype, kernels)
        loss_of(model, kind).backward()
        found[name] = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    assert 0 < distance(found["ours"], found["exact"]) < 1.3 * distance(found["torch"], found["exact"]) + 1e-4


@pytest.mark.parametrize("kind", ["deberta-v2", "mixtral"])
def test_recomputed_blocks_compute_as_the_first_time(kind: str, plain_cpu: None) -> None:  # noqa: F811
    gradients = []
    for checkpointing in (False, True):
        model = model_of(kind, False, torch.bfloat16, "auto")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with HalfProducts() as seen:
            loss_of(model, kind).backward()
        assert not seen.found
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("kind", ["deberta-v2", "bloom", "xlnet", "falcon", "gpt2"])
def test_operations_are_counted_as_without(kind: str, plain_cpu: None) -> None:  # noqa: F811
    counts = []
    for kernels in ("none", "auto"):
        with FlopCounter() as counter:
            loss_of(model_of(kind, True, torch.bfloat16, kernels), kind)
        counts.append(counter.flops)
    assert counts[0] == counts[1] > 0


def test_a_model_stays_what_it_was_for_others(plain_cpu: None) -> None:  # noqa: F811
    """Its class has the same name and signature; a copy, and generation, work."""
    plain, model = (model_of("gpt2", False, torch.bfloat16, kernels).eval() for kernels in ("none", "auto"))
    assert isinstance(model, type(plain))
    assert type(model).__name__ == type(plain).__name__
    ids = torch.randint(5, 30, (6, 9), generator=torch.Generator().manual_seed(1))
    for each in (model, copy.deepcopy(model)):
        torch.testing.assert_close(each(ids).logits, plain(ids).logits, rtol=2**-6, atol=2**-6)
        assert each.generate(ids, max_new_tokens=3, do_sample=False).shape == (6, 12)

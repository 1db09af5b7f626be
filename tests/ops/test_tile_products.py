"""Products in C of bf16 numbers, on any processor: a stand-in in Python reads and writes the same memory.

The stand-in checks the sizes that the C functions need. What it does not see is the C code itself, which
`test_native.py` runs where the processor has such products.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from litpeft.adapters import DoRA, LoRA
from litpeft.ops.native import adapter_products, frozen_products, library
from litpeft.ops.native_modules import use_native_kernels

HALF = torch.bfloat16


def whole(count: int) -> int:
    return (count + 31) // 32 * 32


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(HALF)


def write(out: Tensor, exact: Tensor) -> None:
    out.copy_(exact.to(out.dtype))


class StandIn:
    """The C functions on strided memory, in float64.

    Attributes:
        called: names of the functions that were called.
    """

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, name: str, *arguments: Any) -> None:
        self.called.append(name)
        getattr(self, name)(*arguments)

    def times_few(
        self, x: Tensor, x_stride: int, factor: Tensor, row: int, column: int, scale: float, low: Tensor,
        low_stride: int, rows: int, k: int, r: int,
    ) -> None:  # fmt: skip
        assert k % 32 == 0
        assert whole(r) * k <= 1 << 19
        left, right = x.as_strided((rows, k), (x_stride, 1)), factor.as_strided((k, r), (row, column))
        write(low.as_strided((rows, r), (low_stride, 1)), scale * left.double() @ right.double())

    def add_few(
        self, low: Tensor, low_stride: int, factor: Tensor, row: int, column: int, y: Tensor, rows: int, n: int, r: int
    ) -> None:
        assert n % 32 == 0
        assert whole(r) * n <= 1 << 19
        left, right = low.as_strided((rows, r), (low_stride, 1)), factor.as_strided((r, n), (row, column))
        out = y.as_strided((rows, n), (n, 1))
        write(out, out.double() + left.double() @ right.double())

    def sum_of_few(
        self, low: Tensor, low_stride: int, x: Tensor, x_stride: int, out: Tensor, row: int, column: int, rows: int,
        n: int, r: int, scratch: Tensor,
    ) -> None:  # fmt: skip
        assert n % 32 == 0
        assert out.dtype == torch.float32
        assert (scratch.dtype, scratch.numel()) == (HALF, whole(r) * whole(rows))
        left, right = low.as_strided((rows, r), (low_stride, 1)), x.as_strided((rows, n), (x_stride, 1))
        write(out.as_strided((r, n), (row, column)), left.double().T @ right.double())

    def times_gain(self, z: Tensor, gain: Tensor, bias: Tensor | None, out: Tensor, rows: int, width: int) -> None:
        assert width % 16 == 0
        assert z.shape == out.shape == (rows, width)
        write(z, z.double() * gain.double())
        if bias is not None:
            write(out, z.double() + bias.double())

    def times_gain_backward(
        self, dy: Tensor, y: Tensor, gain: Tensor, dz: Tensor, sums: Tensor, rows: int, width: int
    ) -> None:
        assert width % 16 == 0
        assert dy.shape == y.shape == dz.shape == (rows, width)
        assert sums.dtype == torch.float32
        write(dz, dy.double() * gain.double())
        write(sums, (dy.double() * y.double()).sum(0))

    def product_with_frozen(
        self, x: Tensor, x_stride: int, multiplier: Tensor | None, weight: Tensor, transposed: int, low: Tensor | None,
        low_stride: int, factor: Tensor | None, row: int, column: int, r: int, bias: Tensor | None, kind: int,
        out: Tensor, slope: Tensor | None, rows: int, n: int, k: int, scratch: Tensor,
    ) -> None:  # fmt: skip
        assert n % 32 == k % 32 == 0
        wide = (1 << 19) // k // 32 * 32
        assert scratch.dtype == HALF
        wide = 32 if wide < 32 else min(wide, n)
        assert scratch.numel() >= (k + whole(r)) * wide  # as product_with_frozen counts
        matrix = weight.as_strided((n, k), (k, 1)).T if transposed else weight.as_strided((k, n), (n, 1))
        left = x.as_strided((rows, k), (x_stride, 1))
        if multiplier is not None:
            left = left * multiplier.as_strided((rows, k), (k, 1))
        exact = left.double() @ matrix.double() + (0 if bias is None else bias.double())
        if r:
            few = low.as_strided((rows, r), (low_stride, 1)).double()
            exact += few @ factor.as_strided((r, n), (row, column)).double()
        target = out.as_strided((rows, n), (n, 1))
        if kind == frozen_products.GELU:
            return self.gelu(exact.to(HALF), out, slope, rows * n)
        write(target, exact + (target.double() if kind == frozen_products.ADD else 0))

    def gelu(self, x: Tensor, out: Tensor, slope: Tensor, count: int) -> None:
        assert x.numel() == out.numel() == slope.numel() == count
        exact = x.double().requires_grad_()
        with torch.enable_grad():
            (derivative,) = torch.autograd.grad(F.gelu(exact).sum(), exact)
        write(out, F.gelu(exact.detach()))
        write(slope, derivative)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor, count: int) -> None:
        assert a.numel() == b.numel() == out.numel() == count
        write(out, a.double() * b.double())


@pytest.fixture
def c(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn()
    monkeypatch.setattr(library, "has_bf16_products", lambda: True)
    monkeypatch.setattr(library, "available", lambda: True)
    monkeypatch.setattr(library, "call", stand_in)
    return stand_in


def close(found: Tensor, exact: Tensor, roundings: float = 1) -> None:
    exact, limit = exact.detach(), roundings * 2**-8
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(found.detach().double(), exact, rtol=limit, atol=limit / 2 * largest + 1e-30)


@pytest.mark.parametrize("rank", [1, 31, 32, 33])
@pytest.mark.parametrize("rows", [1, 32, 33])
@pytest.mark.parametrize("width", [32, 96, 40])  # 40 is left to torch
def test_products_with_the_factors_of_an_adapter(width: int, rows: int, rank: int, c: StandIn) -> None:
    x, low = random(rows, width + 32)[:, :width], random(rows, rank + 3, seed=1)[:, :rank]
    for factor in (random(width, rank, seed=2), random(rank, width, seed=3).T):  # in both orders of storage
        whole_low = torch.full((rows, rank + 2), 7.0, dtype=HALF)
        found = whole_low[:, :rank]
        assert adapter_products.times_few(x, factor, 0.5, found) is found
        close(found, 0.5 * x.double() @ factor.double())
        assert (whole_low[:, rank:] == 7).all()  # nothing beside it is written
        y = random(rows, width, seed=4)
        expected = y.double() + low.double() @ factor.double().T
        assert adapter_products.add_few(y, low, factor.T) is y
        close(y, expected, 2)
    for dtype in (torch.float32, HALF):
        expected = low.double().T @ x.double()
        for transposed in (False, True):
            found = adapter_products.sum_of_few(low, x, dtype, transposed)
            assert (found.dtype, found.is_contiguous()) == (dtype, True)
            close(found, expected.T if transposed else expected, 4)
    assert c.called == ([] if width == 40 else ["times_few", "add_few"] * 2 + ["sum_of_few"] * 2)


@pytest.mark.parametrize(
    ("width", "rank", "in_c"),
    [
        (2048, 256, True), (2048, 257, False), (64, 256, True), (64, 257, False), (2080, 256, False),
        (1 << 14, 32, True), (1 << 14, 33, False), ((1 << 14) + 32, 32, False), ((1 << 14) + 32, 1, False),
        (33, 4, False), (31, 4, False), (32, 4, True), (0, 4, True),
    ],
)  # fmt: skip
def test_the_sizes_that_the_functions_take(width: int, rank: int, in_c: bool, c: StandIn) -> None:
    x, factor = torch.zeros(2, width, dtype=HALF), torch.zeros(width, rank, dtype=HALF)
    low = torch.zeros(2, rank, dtype=HALF)
    adapter_products.times_few(x, factor, 1.0, low)
    adapter_products.sum_of_few(low, x, torch.float32)
    adapter_products.add_few(x, low, factor.T)
    assert c.called == (["times_few", "sum_of_few", "add_few"] if in_c else [])


def test_other_dtypes_orders_and_empty_batches_are_left_to_torch(c: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    x, factor, low = random(4, 64), random(64, 8, seed=1), torch.zeros(4, 8, dtype=HALF)
    given = [
        (x.float(), factor.float(), low.float()),
        (x[:0], factor, low[:0]),
        (x.T.contiguous().T, factor, low),  # rows are not contiguous
    ]
    for left, right, out in given:
        close(adapter_products.times_few(left, right, 1.0, out.clone()), left.double() @ right.double())
    close(adapter_products.sum_of_few(low, x, HALF), low.double().T @ x.double())
    wide = random(64, 4).T  # not contiguous
    exact = wide.double() + x[:, :8].double() @ factor.T.double()
    close(adapter_products.add_few(wide, x[:, :8], factor.T), exact, 2)
    with monkeypatch.context() as patch:
        patch.setattr(library, "has_bf16_products", lambda: False)
        adapter_products.times_few(x, factor, 1.0, low)
    assert c.called == []
    adapter_products.times_few(x, factor, 1.0, low)
    assert c.called == ["times_few"]


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize(("wide", "deep"), [(32, 32), (96, 64), (64, 160), (64, 16416), (256, 4096)])
def test_products_with_frozen_matrices(rows: int, wide: int, deep: int, c: StandIn) -> None:
    weight, bias = random(wide, deep), random(wide, seed=1)
    x, dy = random(rows, deep + 32, seed=2)[:, :deep], random(rows, wide, seed=3)
    for b in (None, bias):
        exact = x.double() @ weight.double().T + (0 if b is None else b.double())
        close(frozen_products.linear(x, weight, b), exact, 2)
    back = dy.double() @ weight.double()
    close(frozen_products.input_gradient(dy, weight), back, 2)
    onto = random(rows, deep, seed=4)
    more = onto.double() + back
    assert frozen_products.input_gradient(dy, weight, onto) is onto
    close(onto, more, 2)
    assert c.called == ["product_with_frozen"] * 4


@pytest.mark.parametrize(
    ("x", "weight", "in_c"),
    [
        ((4, 64), (32, 64), True), ((0, 64), (32, 64), False), ((4, 40), (32, 40), False), ((4, 64), (40, 64), False),
        ((2, 1 << 15), (32, 1 << 15), True), ((2, (1 << 15) + 32), (32, (1 << 15) + 32), False),
        ((2, 2048), (2048, 2048), True), ((2, 2048), (2080, 2048), False),
    ],
)  # fmt: skip
def test_the_matrices_that_the_function_takes(
    x: tuple[int, int], weight: tuple[int, int], in_c: bool, c: StandIn
) -> None:
    rows, matrix = torch.zeros(x, dtype=HALF), torch.zeros(weight, dtype=HALF)
    assert frozen_products.linear(rows, matrix, None).shape == (x[0], weight[0])
    assert c.called == (["product_with_frozen"] if in_c else [])


def test_matrices_in_another_order_or_dtype_are_left_to_torch(c: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = random(4, 64), random(32, 64), random(32)
    given = [
        (x, random(64, 32).T, bias), (x.T.contiguous().T, weight, bias), (x.float(), weight.float(), bias.float()),
        (x.double(), weight.double(), None),
    ]  # fmt: skip
    for left, matrix, b in given:
        exact = left.double() @ matrix.double().T + (0 if b is None else b.double())
        close(frozen_products.linear(left, matrix, b), exact, 2)
    dy = random(4, 32)
    close(frozen_products.input_gradient(dy.float(), weight.float()), dy.double() @ weight.double())
    onto = random(4, 64, seed=5).float()
    more = onto.double() + dy.double() @ weight.double()
    close(frozen_products.input_gradient(dy.float(), weight.float(), onto), more)
    monkeypatch.setattr(library, "has_bf16_products", lambda: False)
    frozen_products.linear(x, weight, None)
    assert c.called == []


def test_a_frozen_layer_has_the_gradient_of_its_input_only(c: StandIn) -> None:
    x, weight, bias = random(2, 3, 64).requires_grad_(), random(32, 64, seed=1), random(32, seed=2)
    out = frozen_products.frozen_linear(x, weight, bias)
    close(out, x.double() @ weight.double().T + bias.double(), 2)
    grad = random(2, 3, 32, seed=3)
    out.backward(grad)
    close(x.grad, grad.double() @ weight.double(), 2)
    assert c.called == ["product_with_frozen"] * 2


@pytest.mark.parametrize("rank", [1, 32, 256, 257])
@pytest.mark.parametrize("width", [64, 40])  # 40 is left to torch, and so is a rank of 257
def test_products_with_frozen_matrices_and_what_an_adapter_adds(width: int, rank: int, c: StandIn) -> None:
    x, weight, bias = random(33, width), random(96, width, seed=1), random(96, seed=2)
    low, b, a = random(33, rank, seed=3) / 4, random(96, rank, seed=4) / 4, random(rank, width, seed=5) / 4
    exact = x.double() @ weight.double().T + bias.double() + low.double() @ b.double().T
    close(frozen_products.linear(x, weight, bias, frozen_products.LowRankUpdate(low, b.T)), exact, 3)
    dy, onto = random(33, 96, seed=6), random(33, width, seed=7)
    back = dy.double() @ weight.double() + low.double() @ a.double()
    adapter = frozen_products.LowRankUpdate(low, a)
    close(frozen_products.input_gradient(dy, weight, None, adapter), back, 3)
    more = onto.double() + back
    assert frozen_products.input_gradient(dy, weight, onto, adapter) is onto
    close(onto, more, 4)
    assert c.called.count("product_with_frozen") == (3 if width == 64 and rank < 257 else 0)
    assert ("add_few" in c.called) is (width == 40 and rank < 257)  # onto the 96 columns of the result


@pytest.mark.parametrize("width", [64, 40])  # 40 is left to torch
def test_gelu_of_a_frozen_layer_has_the_gradient_of_its_input_only(width: int, c: StandIn) -> None:
    x, weight, bias = random(2, 3, width).requires_grad_(), random(32, width, seed=1) / 8, random(32, seed=2)
    out = frozen_products.frozen_linear_gelu(x, weight, bias)
    same = x.detach().double().requires_grad_()
    exact = F.gelu(F.linear(same, weight.double(), bias.double()))
    close(out, exact, 4)
    grad = random(2, 3, 32, seed=3)
    out.backward(grad)
    exact.backward(grad.double())
    close(x.grad, same.grad, 4)
    assert c.called == (["product_with_frozen"] * 2 if width == 64 else ["gelu", "multiply"])


def test_numbers_that_python_and_c_must_share_are_the_same() -> None:
    text = Path(library.__file__).with_name("frozen_products.c").read_text()
    deep, number, shift = re.search(r"DEEP = (\d+),.* PACKED = (\d+) << (\d+)", text).groups()
    assert int(number) << int(shift) == frozen_products.PACKED
    assert int(deep) == frozen_products.DEEP
    assert [frozen_products.PLAIN, frozen_products.ADD, frozen_products.GELU] == [0, 1, 2]
    assert "enum { PLAIN, ADD, GELU };" in text


def test_a_function_gets_addresses_and_is_not_called_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []

    def function(name: str, kinds: tuple[type, ...]) -> Any:
        return lambda *values: called.append((name, kinds, values))

    monkeypatch.setattr(library, "_function", function)
    x = torch.zeros(4)
    library.call("f", x, None, 3, 0.5)
    assert called == [("f", (Tensor, type(None), int, float), (x.data_ptr(), None, 3, 0.5))]
    library.call("f", torch.empty(4, device="meta"), 3)
    with FakeTensorMode():
        library.call("f", torch.empty(4), 3)
    assert len(called) == 1


@pytest.mark.parametrize(("shapes", "taken"), [([(16,), (4, 8)], True), ([(16,), (3, 5)], False), ([(8,)], False)])
def test_tensors_must_have_whole_lanes(shapes: list[tuple[int, ...]], taken: bool) -> None:
    tensors = [torch.zeros(shape) for shape in shapes]
    if taken:
        library.check_whole(*tensors)
    else:
        with pytest.raises(ValueError, match="the numbers of a tensor must be a multiple of 16"):
            library.check_whole(*tensors)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("adapter", [LoRA(rank=4, targets=["layer"]), DoRA(rank=4, targets=["layer"])])
def test_an_adapted_layer_computes_in_c_only_where_the_model_asks_for_it(
    adapter: LoRA, native: bool, c: StandIn
) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(64, 96)}).to(HALF)
    adapter.apply(model).train()
    layer = model["layer"]
    nn.init.normal_(layer.lora_B, std=0.1)
    layer.native = native
    x = random(5, 64).requires_grad_()
    layer(x).float().square().sum().backward()
    products = ["times_few", "product_with_frozen", "sum_of_few"]
    products += ["times_gain", "times_gain_backward"] if isinstance(adapter, DoRA) else []
    assert set(c.called) == (set(products) if native else set())
    if native:
        assert c.called.count("sum_of_few") == 2  # of A and of B
        assert c.called.count("times_few") == c.called.count("product_with_frozen") == 2
    assert all(tensor.grad.isfinite().all() for tensor in (x, layer.lora_A, layer.lora_B))


@pytest.mark.parametrize("supported", [False, True])
@pytest.mark.parametrize("granted", [False, True])
def test_tiles_are_used_where_the_processor_has_them_and_the_system_grants_them(
    supported: bool, granted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: granted)
    assert library.has_tiles.__wrapped__() is (supported and granted)
    monkeypatch.setattr(library, "available", lambda: supported)
    monkeypatch.setattr(
        library, "compiled", lambda: SimpleNamespace(**{"product_with_frozen": None} if granted else {})
    )
    assert library.has_bf16_products.__wrapped__() is (supported and granted)


def test_a_linear_layer_computes_in_c_while_it_trains_in_bf16_with_frozen_weights(
    c: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "compiled", lambda: None)
    monkeypatch.setattr(library, "has_bf16_products", lambda: True)
    layer = nn.Linear(64, 96).to(HALF).requires_grad_(False)
    plain = copy.deepcopy(layer)
    trained = nn.Linear(64, 96).to(HALF)
    assert "linear" in use_native_kernels(layer)
    assert "linear" not in use_native_kernels(trained)
    assert isinstance(layer, nn.Linear)
    x = random(5, 64)

    def in_c(x: Tensor) -> bool:
        c.called.clear()
        close(layer(x), plain.to(layer.weight.dtype)(x).double(), 2)
        return bool(c.called)

    layer.train()
    assert in_c(x)
    layer.bias.requires_grad_(True)
    assert not in_c(x)
    layer.bias.requires_grad_(False)
    layer.weight.requires_grad_(True)
    assert not in_c(x)
    layer.weight.requires_grad_(False)
    layer.eval()
    assert not in_c(x)
    layer.train().float()
    assert not in_c(x.float())
    layer.to(HALF)
    with torch.autocast("cpu", HALF):
        c.called.clear()
        layer(x)
        assert not c.called
    monkeypatch.setattr(library, "has_bf16_products", lambda: False)
    assert "linear" not in use_native_kernels(nn.Linear(64, 96).requires_grad_(False))


def test_tensors_of_other_devices_are_left_to_torch(c: StandIn) -> None:
    """A GPU's, for one: the C functions read the memory of the host."""
    x, factor, low = (torch.empty(shape, dtype=HALF, device="meta") for shape in ((4, 64), (64, 32), (4, 32)))
    assert adapter_products.times_few(x, factor, 1.0, low) is low
    assert adapter_products.add_few(x, low, factor.T) is x
    assert adapter_products.sum_of_few(low, x, torch.float32).shape == (32, 64)
    assert frozen_products.linear(x, factor.T.contiguous(), None).shape == (4, 32)
    assert frozen_products.input_gradient(low, factor.T.contiguous()).shape == (4, 64)
    assert c.called == []

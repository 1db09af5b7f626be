"""CUDA's kernels and autocast simulated on meta tensors: their memory, compared with shapes and with the CPU's autocast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from litpeft.profiling.memory import MemoryTracker
from litpeft.profiling.memory.cuda import context_bytes, cuda_choices, prepare_bitsandbytes, workspaces

HEADS, TOKENS, HEAD = 4, 512, 64


def saved_bytes(dtype: torch.dtype, groups: int, mask: Tensor | None = None, **options: float | bool) -> int:
    """Return the bytes that attention saves for backward, without its arguments."""
    query, key = (torch.empty(1, n, TOKENS, HEAD, dtype=dtype, device="meta") for n in (HEADS, groups))
    query.requires_grad_()
    tracker = MemoryTracker(torch.device("meta"))
    tracker.label([query, key], "base_weights")
    with cuda_choices(), tracker:
        options = {"is_causal": mask is None, "enable_gqa": groups != HEADS} | options
        out = F.scaled_dot_product_attention(query, key, key, mask, **options)
    assert out.shape == query.shape
    return tracker.peak(tracker.operations).split["activations"]


def test_attention_in_bf16_or_without_grouped_heads_saves_no_scores() -> None:
    out = HEADS * TOKENS * HEAD
    for groups in (HEADS, 1):
        assert 2 * out < saved_bytes(torch.bfloat16, groups) < 2.2 * out  # the output, and one number per row
    assert 4 * out < saved_bytes(torch.float32, HEADS) < 4.2 * out


def test_grouped_query_attention_in_fp32_saves_the_scores() -> None:
    """Neither the flash nor the memory-efficient kernel supports it: docs of scaled_dot_product_attention, GQA."""
    square = 4 * HEADS * TOKENS**2
    for groups in (1, 2):
        assert square < saved_bytes(torch.float32, groups) < 1.6 * square


def test_where_heads_share_no_keys_scores_are_not_saved_whatever_is_allowed() -> None:
    assert saved_bytes(torch.float32, HEADS, enable_gqa=True) == saved_bytes(torch.float32, HEADS)


def test_dropped_scores_are_drawn_again_by_the_kernels_and_kept_without_one() -> None:
    for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4)):
        dropped, whole = (saved_bytes(dtype, HEADS, **more) for more in ({"dropout_p": 0.1}, {}))
        assert whole <= dropped < whole + size * HEADS * TOKENS  # a seed, but no mask
    square = HEADS * TOKENS**2
    dropped, whole = (saved_bytes(torch.float32, 1, **more) for more in ({"dropout_p": 0.1}, {}))
    assert whole + square <= dropped  # a mask of one byte per score, or more


def test_with_a_mask_attention_saves_the_output_and_the_mask_in_its_own_dtype() -> None:
    out, rows = HEADS * TOKENS * HEAD, HEADS * TOKENS * 4  # elements; bytes of one fp32 number per row
    boolean = torch.empty(1, 1, TOKENS, TOKENS, dtype=torch.bool, device="meta")
    for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4)):
        for mask in (boolean, boolean.to(dtype)):
            saved = saved_bytes(dtype, HEADS, mask)
            kept = size * TOKENS**2 if mask is boolean else 0  # the caller's own mask existed before
            assert size * out + kept <= saved <= size * out + kept + 2 * rows + 64, (dtype, mask.dtype)


@pytest.mark.parametrize(("keys", "stored"), [(64, 64), (65, 80), (79, 80), (80, 80), (81, 96)])
def test_rows_of_a_mask_are_padded_to_sixteen_numbers(keys: int, stored: int) -> None:
    query, key = (torch.empty(1, HEADS, n, HEAD, device="meta") for n in (TOKENS, keys))
    mask = torch.empty(1, 1, TOKENS, keys, device="meta")
    query.requires_grad_()
    tracker = MemoryTracker(torch.device("meta"))
    tracker.label([query, key, mask], "base_weights")
    with cuda_choices(), tracker:
        out = F.scaled_dot_product_attention(query, key, key, mask)
    assert out.shape == query.shape
    saved = tracker.peak(tracker.operations).split["activations"] - out.nbytes
    padded = TOKENS * stored * 4 if stored > keys else 0
    assert 0 <= saved - padded - HEADS * TOKENS * 4 <= 64  # and one fp32 number per row


@pytest.mark.parametrize(("width", "stored"), [(64, 64), (60, 64), (57, 64), (65, 72), (256, 256), (264, None)])
def test_heads_are_padded_to_eight_numbers_for_the_flash_kernel(width: int, stored: int | None) -> None:
    given = [torch.empty(1, HEADS, TOKENS, width, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    for tensor in given:
        tensor.requires_grad_()
    tracker = MemoryTracker(torch.device("meta"))
    tracker.label(given, "base_weights")
    with cuda_choices(), tracker:
        out = F.scaled_dot_product_attention(*given)
    assert (out.shape, out.dtype) == (given[0].shape, torch.bfloat16)
    saved = tracker.peak(tracker.operations).split["activations"] / (HEADS * TOKENS * 2)  # numbers per row
    padded = 4 * stored if stored and stored > width else width  # query, key and value too
    assert padded <= saved < padded + 5
    assert tracker.peak().split["temporaries"] <= 3 * HEADS * TOKENS * 2 * (stored or width)  # no matrix of scores


def test_the_flash_kernel_takes_grouped_heads_of_up_to_256_numbers() -> None:
    for width, scores in ((256, False), (264, True)):
        query = torch.empty(1, HEADS, TOKENS, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
        key = torch.empty(1, 2, TOKENS, width, dtype=torch.bfloat16, device="meta")
        tracker = MemoryTracker(torch.device("meta"))
        tracker.label([query, key], "base_weights")
        with cuda_choices(), tracker:
            F.scaled_dot_product_attention(query, key, key, enable_gqa=True)
        assert (tracker.peak(tracker.operations).split["activations"] > 2 * HEADS * TOKENS * (width + TOKENS)) == scores


def test_without_a_gradient_attention_keeps_nothing_per_row() -> None:
    mask = torch.zeros(1, 1, TOKENS, TOKENS, device="meta")
    query = torch.empty(1, HEADS, TOKENS, HEAD, device="meta")
    trained = query.clone().requires_grad_()
    bytes_of = {}
    for name, given in (("frozen", query), ("trained", trained), ("no_grad", trained)):
        tracker = MemoryTracker(torch.device("meta"))
        tracker.label([given, mask], "base_weights")
        with cuda_choices(), tracker, nullcontext() if name == "trained" else torch.no_grad():
            F.scaled_dot_product_attention(given, given, given, mask)
        bytes_of[name] = tracker.peak(tracker.operations).bytes
    assert bytes_of["trained"] - bytes_of["frozen"] == pytest.approx(4 * HEADS * TOKENS, abs=64)
    assert bytes_of["no_grad"] == bytes_of["frozen"]


def test_dropout_keeps_a_mask_of_one_byte_and_nothing_where_nothing_is_dropped() -> None:
    x = torch.empty(100, 10, device="meta", requires_grad=True)
    for p, train, new in ((0.5, True, 4 + 1), (0.0, True, 0), (0.5, False, 0)):
        tracker = MemoryTracker(torch.device("meta"))
        tracker.label([x], "base_weights")
        with cuda_choices(), tracker:
            y = F.dropout(x, p, train)
        assert (y is x) == (new == 0)
        assert y.dtype == torch.float32
        assert tracker.peak().bytes - x.nbytes == new * x.numel()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [(), (5,), (2, 3)])
def test_a_linear_layer_gives_the_shapes_of_torch(rows: tuple[int, ...], biased: bool) -> None:
    x, weight = torch.empty(*rows, 4, device="meta"), torch.empty(7, 4, device="meta")
    bias = torch.empty(7, device="meta") if biased else None
    tracker = MemoryTracker(torch.device("meta"))
    tracker.label([x, weight], "base_weights")
    tracker.label([] if bias is None else [bias], "base_weights")
    with cuda_choices(), tracker:
        out = F.linear(x, weight, bias)
    assert out.shape == (*rows, 7)
    assert tracker.peak().split["temporaries"] == out.nbytes  # the bias is added in the product


@pytest.mark.parametrize(
    ("dtype", "asked", "copied"),
    [
        (torch.float16, torch.float32, False),  # one kernel
        (torch.bfloat16, torch.float32, True),
        (torch.bfloat16, None, False),
        (torch.float16, torch.float16, False),
        (torch.float32, torch.float32, False),
        (torch.float32, torch.bfloat16, True),
    ],
)
def test_softmax_in_fp32_copies_its_input_unless_that_is_fp16(
    dtype: torch.dtype, asked: torch.dtype | None, copied: bool
) -> None:
    x, result = torch.empty(8, 512, dtype=dtype, device="meta"), asked or dtype
    tracker = MemoryTracker(torch.device("meta"))
    tracker.label([x], "base_weights")
    with cuda_choices(), tracker:
        assert F.softmax(x, -1, dtype=asked).dtype == result
    assert tracker.peak().split["temporaries"] == (1 + copied) * x.numel() * result.itemsize


@pytest.mark.parametrize("capability", [7, 8, 9, 10, 11, 12])
def test_workspaces_are_those_of_cublas(capability: int) -> None:
    """By default :4096:2:16:8, two of 4096 KiB and 16 of 8 KiB; 32 MiB on Hopper and data-centre Blackwell."""
    new = capability in (9, 10)
    assert workspaces(capability) == (2 * (32 * 2**20,) if new else 2 * ((2 * 4096 + 16 * 8) * 1024,))
    assert context_bytes(capability) == (750 if new else 500) * 2**20


class Paged:
    """What bitsandbytes' optimizers have of which an estimate makes use."""

    def __init__(self, paged: bool) -> None:
        self.is_paged, self.filled = paged, 0

    def fill_qmap(self) -> None:
        self.filled += 1

    def get_state_buffer(self, parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros_like(parameter, dtype=dtype)


@pytest.mark.parametrize(
    ("numbers", "device", "on_host"),
    [(100_000, "meta", True), (100_001, "meta", True), (99_999, "meta", False), (200_000, "cpu", False)],
)
def test_paged_states_of_large_parameters_take_no_memory_of_the_device(
    numbers: int, device: str, on_host: bool
) -> None:
    optimizer, parameter = Paged(True), torch.empty(numbers, device=device)
    prepare_bitsandbytes(optimizer)
    assert (optimizer.filled, optimizer.is_paged) == (1, False)  # the driver's memory is not asked for
    tracker = MemoryTracker(torch.device("meta"))
    with tracker:
        states = [optimizer.get_state_buffer(parameter), optimizer.get_state_buffer(parameter, torch.uint8)]
    assert [(state.shape, state.dtype) for state in states] == [((numbers,), d) for d in (torch.float32, torch.uint8)]
    assert [getattr(state, "is_paged", False) for state in states] == [on_host] * 2
    # what the states hold on the host is one number
    assert [state.untyped_storage().nbytes() for state in states] == ([4, 1] if on_host else [4 * numbers, numbers])


def test_other_optimizers_keep_their_states_where_they_are() -> None:
    optimizer = Paged(False)
    prepare_bitsandbytes(optimizer)
    assert optimizer.filled == 1
    assert not hasattr(optimizer.get_state_buffer(torch.empty(200_000, device="meta")), "is_paged")
    plain = torch.optim.SGD([torch.zeros(2, requires_grad=True)], 0.1)
    prepare_bitsandbytes(plain)
    assert not hasattr(plain, "get_state_buffer")


A = torch.empty(16, 16, device="meta")
PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda a: a @ a,
    "addmm": lambda a: torch.addmm(a[0], a, a),
    "bmm": lambda a: torch.bmm(a[None], a[None]),
    "baddbmm": lambda a: torch.baddbmm(a[None], a[None], a[None]),
    "einsum": lambda a: torch.einsum("ij,jk->ik", a, a),
    "linear": lambda a: F.linear(a, a, a[0]),
    "conv2d": lambda a: F.conv2d(a[None, :, :, None], a[..., None, None]),
    "attention": lambda a: F.scaled_dot_product_attention(a[None, None], a[None, None], a[None, None]),
}
PRODUCTS |= {
    "mm": lambda a: torch.mm(a, a),
    "mv": lambda a: torch.mv(a, a[0]),
    "addmv": lambda a: torch.addmv(a[0], a, a[0]),
    "addbmm": lambda a: torch.addbmm(a, a[None], a[None]),
    "prelu": lambda a: F.prelu(a, a[0, :1]),
    "conv1d": lambda a: F.conv1d(a[None], a[..., None]),
    "conv3d": lambda a: F.conv3d(a[None, :, :, None, None], a[..., None, None, None]),
    "conv_transpose1d": lambda a: F.conv_transpose1d(a[None], a[..., None]),
    "conv_transpose2d": lambda a: F.conv_transpose2d(a[None, :, :, None], a[..., None, None]),
    "conv_transpose3d": lambda a: F.conv_transpose3d(a[None, :, :, None, None], a[..., None, None, None]),
}
IN_FP32: dict[str, Callable[[Tensor], Tensor]] = {
    "pow": lambda a: torch.pow(a, 3.0),
    "rsqrt": lambda a: a.rsqrt(),
    "softmax": lambda a: a.softmax(-1),
    "log_softmax": lambda a: a.log_softmax(-1),
    "layer_norm": lambda a: F.layer_norm(a, (16,)),
    "mse_loss": lambda a: F.mse_loss(a, a),
    "l1_loss": lambda a: F.l1_loss(a, a),
    "smooth_l1_loss": lambda a: F.smooth_l1_loss(a, a),
    "kl_div": lambda a: F.kl_div(a, a),
    "nll_loss": lambda a: F.nll_loss(a, torch.zeros(16, dtype=torch.int64, device="meta")),
    "bce": lambda a: F.binary_cross_entropy_with_logits(a, a),
    "group_norm": lambda a: F.group_norm(a, 4),
    "cosine": lambda a: F.cosine_similarity(a, a),
    "logsumexp": lambda a: a.logsumexp(-1),
    "power_of_tensor": lambda a: torch.pow(a, a),
    "power_of_number": lambda a: torch.pow(2.0, a),
    **{name: getattr(torch, name) for name in ("exp", "expm1", "log", "log10", "log1p", "log2", "reciprocal")},
    "softplus": F.softplus,
    "cross_entropy": lambda a: F.cross_entropy(a, torch.zeros(16, dtype=torch.int64, device="meta")),
}
UNCHANGED: dict[str, Callable[[Tensor], Tensor]] = {"add": lambda a: a + a, "silu": F.silu, "mean": lambda a: a.mean()}


@pytest.mark.parametrize("name", [*PRODUCTS, *IN_FP32, *UNCHANGED])
def test_autocast_uses_the_dtypes_of_cuda(name: str) -> None:
    operation = (PRODUCTS | IN_FP32 | UNCHANGED)[name]
    for dtype in (torch.float32, torch.bfloat16):
        expected = torch.bfloat16 if name in PRODUCTS else torch.float32 if name in IN_FP32 else dtype
        with cuda_choices():
            with torch.autocast("cpu", torch.bfloat16):
                assert operation(A.to(dtype)).dtype == expected
                with torch.autocast("cpu", enabled=False):
                    assert operation(A.to(dtype)).dtype == dtype
            assert operation(A.to(dtype)).dtype == dtype


def test_the_cpus_autocast_rules_are_restored_afterwards() -> None:
    ones = torch.ones(2, 2)
    with cuda_choices():
        pass
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.addmm(ones[0], ones, ones).dtype == torch.bfloat16
        assert torch.pow(ones.bfloat16(), 3.0).dtype == torch.bfloat16  # CUDA would use fp32


class Stack(nn.Module):
    """Matrix products, and SiLU, which autocast does not change."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            layer for _ in range(4) for layer in (Conv1D(64, 64), nn.Linear(64, 64, bias=False))
        )
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
            x = F.silu(x)
        return x


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_cast_weights_live_as_long_as_in_torchs_autocast(checkpointed: bool, with_gradient: bool) -> None:
    """Each weight is cast once, also under no_grad, and the copy is kept until autocast ends."""
    found = {}
    for device in ("cpu", "meta"):
        with torch.device(device):
            model, x = Stack(checkpointed), torch.ones(8, 64)
        tracker = MemoryTracker(torch.device(device))
        tracker.follow(model, {"base_weights": model.parameters()})
        with cuda_choices() if device == "meta" else nullcontext(), tracker:
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    model(x)
                if with_gradient:
                    loss = model(x).float().sum()
            if with_gradient:
                loss.backward()
        found[device] = tracker.peak().bytes
    copies = sum(p.numel() for p in model.parameters() if p.dim() == 2) * 2
    assert found["meta"] == pytest.approx(found["cpu"], rel=0.002)
    assert found["meta"] > sum(p.nbytes for p in model.parameters()) + copies


def test_numbers_in_fp64_and_whole_numbers_are_not_cast() -> None:
    double, whole = A.double(), torch.empty(16, 16, dtype=torch.int64, device="meta")
    with cuda_choices(), torch.autocast("cpu", torch.bfloat16):
        assert (double @ double).dtype == double.exp().dtype == double.softmax(-1).dtype == torch.float64
        assert (whole @ whole).dtype == torch.int64
        assert A.softmax(-1, dtype=torch.bfloat16).dtype == torch.bfloat16  # as asked
        assert A.bfloat16().log_softmax(-1, dtype=torch.float64).dtype == torch.float64

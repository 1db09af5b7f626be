"""Floating-point operations: the number that a training step needs, and the number per second of a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from litpeft.ops.products import cpu_multiplies

Product = tuple[int, bool, bool]  # multiply-adds; whether the left and the right factor need a gradient


class FlopCounter(TorchFunctionMode):
    """Count the operations of forward and backward from the forward pass inside the with block.

    Each matrix product counts two operations per multiply-add, and the same again for each factor that needs a
    gradient. So a frozen weight counts in forward and, if a layer below is trained, for the gradient of its input, but
    not for a gradient of its own.

    Work that depends on the implementation is not counted: recomputation, dequantisation, weight norms and everything
    without a gradient. Attention counts all pairs of positions, including masked ones.

    Leave the with block before backward, where gradient checkpointing recomputes blocks. Reentrant checkpointing cannot
    be counted, because its forward pass runs without gradients.

    Example:
        >>> x, frozen, trained = torch.ones(5, 4), torch.ones(3, 4), torch.ones(2, 3, requires_grad=True)
        >>> with FlopCounter() as counter:
        ...     y = torch.nn.functional.linear(torch.nn.functional.linear(x, frozen), trained)
        >>> counter.flops == 2 * 5 * 4 * 3 + 2 * (2 * 5 * 3 * 2)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        products = PRODUCTS.get(getattr(func, "__name__", ""))
        if products is not None and torch.is_grad_enabled():
            given = {name: value for name, value in kwargs.items() if name != "out"}  # the result, where it is given
            self.flops += sum(2 * count * (1 + left + right) for count, left, right in products(result, *args, **given))
        return result


def _matrices(out: Tensor, *tensors: Any, **named: Any) -> Iterator[Product]:
    """A product of the last two tensors of floating-point numbers; before them may be one that it is added to."""
    given = (*tensors, *named.values())
    left, right = [each for each in given if isinstance(each, Tensor) and each.is_floating_point()][-2:]
    yield out.numel() * left.shape[-1], left.requires_grad, right.requires_grad


def _linear(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    return _matrices(out, input, weight)


def _convolution(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    yield out.numel() * math.prod(weight.shape[1:]), input.requires_grad, weight.requires_grad


def _transposed_convolution(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    yield input.numel() * math.prod(weight.shape[1:]), input.requires_grad, weight.requires_grad


def _tensordot(out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    """One multiply-add per combination of all indices; those that are summed over are in both factors."""
    yield math.isqrt(out.numel() * a.numel() * b.numel()), a.requires_grad, b.requires_grad


def _einsum(out: Tensor, equation: str, *factors: Any) -> Iterator[Product]:
    """Two factors: one multiply-add per combination of all indices, those of "..." included."""
    given = factors[0] if isinstance(factors[0], (list, tuple)) else factors
    if len(given) != 2:
        return
    sizes: dict[Any, int] = {}
    for names, factor in zip(equation.replace(" ", "").partition("->")[0].split(","), given, strict=True):
        before, dots, after = names.partition("...")
        others = (
            range(factor.ndim - len(before + after)) if dots else ()
        )  # counted from the last one, as they broadcast
        for name, size in zip([*before, *reversed(others), *after], factor.shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    yield math.prod(sizes.values()), given[0].requires_grad, given[1].requires_grad


def _scaled_dot_product(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> Iterator[Product]:
    """Scores and weighted sums of query (..., T, D), key (..., S, D), value (..., S, E); heads may share keys."""
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    yield scores * query.shape[-1], query.requires_grad, key.requires_grad
    yield scores * value.shape[-1], query.requires_grad or key.requires_grad, value.requires_grad


def _attention(out: Any, module: Any, *tensors: Tensor, **_: Any) -> Iterator[Product]:
    return _scaled_dot_product(out, *tensors)


def _multi_head_attention(
    out: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: int,
    heads: int,
    in_proj: Tensor | None,
    *rest: Any,
    **_: Any,
) -> Iterator[Product]:
    """Four projections and the attention of `torch.nn.MultiheadAttention`; tensors are (T, B, D) or (T, D)."""
    trained = in_proj is None or in_proj.requires_grad
    for each in (query, key, value):
        yield each.numel() * size, each.requires_grad, trained
    pairs = query.numel() // query.shape[-1] * len(key)  # of a query and a key, in all rows
    before = [each.requires_grad or trained for each in (query, key, value)]
    yield pairs * size, before[0], before[1]
    yield pairs * size, before[0] or before[1], before[2]
    last = rest[5]  # weight of the output projection
    yield query.numel() // query.shape[-1] * size * size, any(before), last.requires_grad


def _frozen_linear(out: Tensor, x: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    yield out.numel() * x.shape[-1], x.requires_grad, False


def _adapted_linear(
    out: Tensor, x: Tensor, stored: Any, to_matrix: Any, bias: Any, A: Tensor, B: Tensor, *_: Any, **__: Any
) -> Iterator[Product]:
    yield from _frozen_linear(out, x)
    yield x.numel() * len(A), x.requires_grad, A.requires_grad
    yield out.numel() * len(A), x.requires_grad or A.requires_grad, B.requires_grad


def _adapted_linears(
    outs: tuple[Tensor, ...], x: Tensor, calls: Sequence[Any], *_: Any, **__: Any
) -> Iterator[Product]:
    for out, call in zip(outs, calls, strict=True):
        yield from _adapted_linear(out, x, call.stored, call.to_matrix, call.bias, call.A, call.B)


PRODUCTS: dict[
    str, Callable[..., Iterator[Product]]
] = {  # function name -> its matrix products; add new functions here
    **dict.fromkeys(("matmul", "mm", "bmm", "_grouped_mm", "grouped_mm"), _matrices),
    **dict.fromkeys(("addmm", "addmm_", "baddbmm", "baddbmm_"), _matrices),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("linalg_matmul", "inner"), _matrices),
    "tensordot": _tensordot,
    "multi_head_attention_forward": _multi_head_attention,
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _scaled_dot_product,
    # functions of litpeft.ops and litpeft.adapters
    "attention": _attention,
    **dict.fromkeys(("frozen_linear", "frozen_linear_gelu"), _frozen_linear),
    "adapted_linear": _adapted_linear,
    "adapted_linears": _adapted_linears,
    "wide_linear": _linear,
    **dict.fromkeys(("wide_matmul", "wide_grouped_mm"), _matrices),
}

LONG_ENOUGH = 0.01  # seconds; the launch overhead of a product is negligible from here
MIN_WIDTH, MAX_WIDTH = 1024, 16384  # of the square matrices


def measured_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the peak operations per second of products of two square matrices of growing size.

    Args:
        device: device to measure, with torch's current number of threads.
        dtype: dtype of the matrices; fp32 is measured in its place where a CPU computes such products in fp32.
        clock: function that returns the time in seconds.
    """
    generator = torch.Generator(device).manual_seed(
        0
    )  # a separate generator leaves the random state of the run unchanged
    if device.type == "cpu" and not cpu_multiplies(dtype):
        dtype = torch.float32
    best, seconds, width = 0.0, 0.0, MIN_WIDTH
    while seconds < LONG_ENOUGH and width <= MAX_WIDTH:
        # random values: products of constants need less power, so a GPU would raise its clock
        left, right = (torch.rand(width, width, device=device, generator=generator).to(dtype) for _ in range(2))
        out = left @ right  # warm-up
        times = []
        for _ in range(5):
            settle(device)
            start = clock()
            torch.mm(left, right, out=out)
            settle(device)
            times.append(clock() - start)
        seconds = min(times)
        best = max(best, 2 * width**3 / seconds)
        width *= 2
    if device.type == "cuda":  # keep this memory out of the peaks of the run
        del left, right, out
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best


def settle(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

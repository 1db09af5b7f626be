"""Floating-point operations: those that a model needs for a step, and those that a device can make in a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Product = tuple[int, bool, bool]  # multiply-adds; whether backward needs the gradient of its left, its right factor


class FlopCounter(TorchFunctionMode):
    """Within it, forward is counted, and backward by what forward shows that it needs.

    Counted are matrix products, a multiplication and an addition each two operations: the product itself, and another
    one of the same size for each factor that needs a gradient. So a frozen weight is charged for forward and for the
    gradient of its input, where anything below is trained, and not for its own.

    What an implementation adds is not counted: attention that is worked out again in backward, dequantisation, a norm
    of weights, and whatever else is computed without a gradient. Attention is charged for all pairs of positions, also
    the masked ones.

    It is to be left before backward, in which gradient checkpointing computes blocks again. The reentrant kind cannot
    be counted: its blocks are computed without gradients at first.

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
            self.flops += sum(
                2 * count * (1 + left + right) for count, left, right in products(result, *args, **kwargs)
            )
        return result


def _matrices(out: Tensor, left: Tensor, right: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    yield out.numel() * left.shape[-1], left.requires_grad, right.requires_grad


def _linear(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    return _matrices(out, input, weight)


def _plus_matrices(out: Tensor, _: Tensor, left: Tensor, right: Tensor, *__: Any, **___: Any) -> Iterator[Product]:
    return _matrices(out, left, right)


def _convolution(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    yield out.numel() * math.prod(weight.shape[1:]), input.requires_grad, weight.requires_grad


def _einsum(out: Tensor, equation: str, *factors: Tensor) -> Iterator[Product]:
    """Of two factors, each index is gone through once."""
    names = equation.replace(" ", "").partition("->")[0].split(",")
    if len(factors) == 2 and "." not in equation:
        sizes = dict(zip("".join(names), [*factors[0].shape, *factors[1].shape], strict=True))
        yield math.prod(sizes.values()), factors[0].requires_grad, factors[1].requires_grad


def _scaled_dot_product(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> Iterator[Product]:
    """Of (..., T, D), (..., S, D), (..., S, E): the scores, and what they weigh. Heads of the query may share keys."""
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    yield scores * query.shape[-1], query.requires_grad, key.requires_grad
    yield scores * value.shape[-1], query.requires_grad or key.requires_grad, value.requires_grad


def _attention(out: Any, module: Any, *tensors: Tensor, **_: Any) -> Iterator[Product]:
    return _scaled_dot_product(out, *tensors)


def _frozen_linear(out: Tensor, x: Tensor, *_: Any, **__: Any) -> Iterator[Product]:
    yield out.numel() * x.shape[-1], x.requires_grad, False


def _adapted_linear(
    out: Tensor, x: Tensor, held: Any, open_: Any, bias: Any, A: Tensor, B: Tensor, *_: Any, **__: Any
) -> Iterator[Product]:
    yield from _frozen_linear(out, x)
    yield x.numel() * len(A), x.requires_grad, A.requires_grad
    yield out.numel() * len(A), x.requires_grad or A.requires_grad, B.requires_grad


PRODUCTS: dict[str, Callable[..., Iterator[Product]]] = {  # name of a function -> its products: the place to add one
    **dict.fromkeys(("matmul", "mm", "bmm", "_grouped_mm", "grouped_mm"), _matrices),
    **dict.fromkeys(("addmm", "addmm_", "baddbmm", "baddbmm_"), _plus_matrices),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _scaled_dot_product,
    # of litpeft.ops and litpeft.adapters.functional
    "attention": _attention,
    "frozen_linear": _frozen_linear,
    "adapted_linear": _adapted_linear,
}

LONG_ENOUGH = 0.01  # seconds: beside them, starting a product does not matter
SMALLEST, GREATEST = 1024, 16384  # width of the matrices


def measured_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """The most operations a second that a product of two square matrices reaches, of ever larger ones.

    Args:
        device: that it is measured on, with the threads that torch uses now.
        dtype: of the matrices.
        clock: seconds.
    """
    generator = torch.Generator(device).manual_seed(0)  # its own: the run's random numbers stay what they are
    best, seconds, width = 0.0, 0.0, SMALLEST
    while seconds < LONG_ENOUGH and width <= GREATEST:
        # not ones: products of few set bits take less power, for which a GPU raises its clock
        left, right = (torch.rand(width, width, device=device, generator=generator).to(dtype) for _ in range(2))
        out = left @ right  # warm-up
        times = []
        for _ in range(5):
            settle(device)
            begun = clock()
            torch.mm(left, right, out=out)
            settle(device)
            times.append(clock() - begun)
        seconds = min(times)
        best = max(best, 2 * width**3 / seconds)
        width *= 2
    if device.type == "cuda":  # what was held for this is not to be seen in the run's own peaks
        del left, right, out
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Products with DoRA's gain in bf16 on a CPU, in C: one pass each way, where torch would copy rows to fp32 first."""

from __future__ import annotations

import torch
from torch import Tensor

from litpeft.ops.native import library


def can_compute(z: Tensor, gain: Tensor) -> bool:
    """Return whether the functions take these tensors: (N, width) in bf16, and the gain (width) in fp32."""
    half = z.dtype == torch.bfloat16 and z.device.type == "cpu" and z.is_contiguous() and z.dim() == 2
    return half and gain.dtype == torch.float32 and z.shape[-1] % library.LANES == 0 and library.available()


def times_gain(z: Tensor, gain: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Multiply z (N, width) in place with gain (width), and write z + bias to `out` if there is a bias (width)."""
    library.call("times_gain", z, gain.contiguous(), bias, out, *z.shape)


def times_gain_backward(dy: Tensor, scaled: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Return dy ⊙ gain and the fp32 sums Σ dy ⊙ scaled (width) over the rows."""
    dz, sums = torch.empty_like(dy), gain.new_empty(gain.shape)
    library.call("times_gain_backward", dy, scaled, gain.contiguous(), dz, sums, *dy.shape)
    return dz, sums

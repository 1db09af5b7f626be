"""The dtypes that products can be computed in, and whether a device suits them."""

from __future__ import annotations

import sys

import torch

from litpeft.errors import UserError
from litpeft.ops.products import cpu_multiplies

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def check_dtype(name: str, device: torch.device, kernels: bool = True) -> None:
    """Print a sentence if the device is slow in a dtype.

    Args:
        name: name of the dtype.
        device: the device.
        kernels: whether litpeft's own products may be used.

    Raises:
        UserError: torch cannot compute fp16 products on this CPU.
    """
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        print(
            f"litpeft: model.dtype bf16: {torch.cuda.get_device_name(device)} has no units for bf16 and is slow in it; "
            "give --model.dtype fp16.",
            file=sys.stderr,
        )
    if not kernels and device.type == "cpu" and not cpu_multiplies(DTYPES[name]):
        print(
            f"litpeft: model.dtype {name}: this processor has no instructions for it, and with --model.kernels none or "
            "--model.compile_blocks true a step takes about ten times as long as in fp32; leave them out, or give "
            "--model.dtype fp32.",
            file=sys.stderr,
        )
    if name == "fp16" and device.type == "cpu":
        try:
            one = torch.ones(2, 2, dtype=torch.float16)
            torch.nn.functional.scaled_dot_product_attention(*[(one @ one)[None, None]] * 3)
        except RuntimeError as error:
            raise UserError("model.dtype fp16: torch cannot compute it on this CPU; give bf16 or fp32.") from error


def multiplies_bf16() -> bool:
    """Return whether the CPU has instructions for products of bf16 matrices.

    Without them, but with AVX-512, oneDNN still computes such products (`cpu_multiplies`), more slowly than in fp32.
    """
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private functions of torch
    return not torch.backends.mkldnn.is_available() or any(getattr(torch.cpu, name, bool)() for name in known)


def use_tf32(tf32: bool, device: torch.device) -> None:
    """Set whether the factors of fp32 products on an NVIDIA GPU are rounded to TF32."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

"""The dtypes that products can be computed in, and whether a device suits them."""

from __future__ import annotations

import sys

import torch

from litpeft.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def check_dtype(name: str, device: torch.device) -> None:
    """Print a sentence if the GPU or the processor has no units for bf16.

    Raises:
        UserError: torch cannot compute fp16 products on this CPU.
    """
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        print(
            f"litpeft: model.dtype bf16: {torch.cuda.get_device_name(device)} has no units for bf16 and is slow in it; "
            "give --model.dtype fp16.",
            file=sys.stderr,
        )
    if name == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        print(
            "litpeft: model.dtype bf16: this processor has no instructions for it, and a step takes about ten times as "
            "long as in fp32; give --model.dtype fp32.",
            file=sys.stderr,
        )
    if name == "fp16" and device.type == "cpu":
        try:
            one = torch.ones(2, 2, dtype=torch.float16)
            torch.nn.functional.scaled_dot_product_attention(*[(one @ one)[None, None]] * 3)
        except RuntimeError as error:
            raise UserError("model.dtype fp16: torch cannot compute it on this CPU; give bf16 or fp32.") from error


def cpu_has_bf16() -> bool:
    """Return whether oneDNN computes bf16 products on this processor; without it torch does, one number at a time."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # a build of torch without oneDNN
        return True


def multiplies_bf16() -> bool:
    """Return whether the CPU has instructions for products of bf16 matrices.

    Without them, but with AVX-512, oneDNN still computes such products (`cpu_has_bf16`), more slowly than in fp32.
    """
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private functions of torch
    return not torch.backends.mkldnn.is_available() or any(getattr(torch.cpu, name, bool)() for name in known)


def use_tf32(tf32: bool, device: torch.device) -> None:
    """Set whether the factors of fp32 products on an NVIDIA GPU are rounded to TF32."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

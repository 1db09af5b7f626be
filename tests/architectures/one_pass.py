"""One pass of a tiny model of an architecture, from Python."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from litpeft.adapters import LoRA
from litpeft.ops.attention import use_lean_attention
from litpeft.ops.dropout import use_lean_dropout
from litpeft.ops.kernels import use_kernels
from tests.architectures.check import CPU, auto_class
from tests.architectures.models import ARCHITECTURES, ENCODER_DECODERS, ENCODERS, SPECIAL, TARGETS, VISION
from tests.architectures.vision import small


def model_of(kind: str, adapter: bool, dtype: torch.dtype, kernels: str) -> nn.Module:
    """Return a model in training mode without dropout, with LoRA or to be trained in full."""
    torch.manual_seed(0)
    if kind in VISION:
        model, head = small(kind)
    else:
        model, head = auto_class(kind).from_config(AutoConfig.for_model(kind, **ARCHITECTURES[kind])), []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model = model.to(dtype)
    if adapter:
        options = SPECIAL.get((kind, "lora"), [])
        targets = {"targets": options[1].strip("[]").split(",")} if options[:1] == [TARGETS] else {}
        model = LoRA(rank=4, alpha=8, **targets).apply(model, head=head)
    use_lean_attention(model)
    use_lean_dropout(model)
    use_kernels(model, kernels, CPU, torch.bfloat16)
    return model.train()


def loss_of(model: nn.Module, kind: str) -> Tensor:
    """Return a loss that depends on all logits of images, or of rows of which one is padded."""
    if kind in VISION:
        size = getattr(model.config, "vision_config", model.config).image_size
        pixels = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))
        return model(pixel_values=pixels.to(model.dtype)).logits.float().square().mean()
    ids = torch.randint(5, 30, (6, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    more: dict[str, Any] = {"decoder_input_ids": ids} if kind in ENCODER_DECODERS else {}
    if kind not in ENCODERS and kind not in ENCODER_DECODERS:
        more["use_cache"] = False
    return model(input_ids=ids, attention_mask=mask, **more).logits.float().square().mean()

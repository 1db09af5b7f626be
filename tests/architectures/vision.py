"""Check vision encoders, which litpeft trains through its Python interface: apply, step 0, gradients, PEFT, merge."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from litpeft.adapters import DoRA, LoRA, QLoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.peft_format import write_adapter
from tests.architectures.models import SPECIAL, VISION

STRATEGIES = {
    "lora": (LoRA, {}),
    "dora": (DoRA, {"targets": "all-linear"}),
    "qlora": (QLoRA, {"targets": "all-linear"}),
}


def small(kind: str) -> tuple[nn.Module, list[str]]:
    """Return a tiny random classifier of images and the names of its head."""
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, num_labels=3, **VISION[kind])).eval()
    return model, [name for name, _ in model.named_children() if name.endswith("classifier")]


def check_vision(kind: str, adapter: str, folder: Path) -> dict[str, Any]:
    """Check one combination; return the figures that it found."""
    (model, head), (strategy, options) = small(kind), STRATEGIES[adapter]
    if special := SPECIAL.get((kind, adapter)):
        value = special[1].strip("[]").split(",") if special[1].startswith("[") else special[1]
        options = options | {special[0].rpartition(".")[2]: value}
    size = getattr(model.config, "vision_config", model.config).image_size
    pixels = torch.randn(2, 3, size, size)
    plain, method = model(pixel_values=pixels).logits, strategy(rank=4, **options)
    method.apply(model, head=head)
    quantised = adapter == "qlora"
    first = (model(pixel_values=pixels).logits - plain).abs().max().item()
    assert quantised or first <= 1e-5, f"step 0 differs by {first:.1e}"
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixel_values=pixels).logits, torch.tensor([0, 2])).backward()
        for name, parameter in method.added(model).items():
            assert parameter.grad is not None, f"{name} got no gradient"
        optimizer.step()
    trained = model(pixel_values=pixels).logits
    figures = {"trained": sum(p.numel() for p in trainable(model).values()), "fp32": None if quantised else first}
    write_adapter(folder, model, method, "base")
    state = method.state_dict(model)
    if quantised:  # PEFT's model is not quantised: compare on the unquantised base
        method.disable_quantisation("compared with PEFT")
        model = small(kind)[0]
        method.apply(model, head=head)
        method.load_state_dict(model, state)
        trained = model(pixel_values=pixels).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(small(kind)[0], str(folder)).eval()
    figures["adapter"] = (theirs(pixel_values=pixels).logits - trained).abs().max().item()
    merged = copy.deepcopy(model)
    method.merge(merged)
    fresh = small(kind)[0]
    fresh.load_state_dict(merged.state_dict())
    figures["merged"] = (fresh(pixel_values=pixels).logits - trained).abs().max().item()
    for name in ("adapter", "merged"):
        assert figures[name] <= 1e-4 * trained.abs().max().item(), f"{name}: logits differ by {figures[name]:.1e}"
    return figures

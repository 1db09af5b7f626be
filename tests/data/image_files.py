"""Made-up images of two classes, and tiny vision models with an image processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

SIZE = 32


def write_images(folder: Path, per_class: int = 8, seed: int = 0) -> str:
    """Write reddish images to the folder `red` and bluish ones to `blue`, and return the folder."""
    draw = np.random.default_rng(seed)
    for name, channel in (("blue", 2), ("red", 0)):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = draw.integers(0, 160, (int(draw.integers(20, 60)), int(draw.integers(20, 60)), 3), dtype=np.uint8)
            pixels[..., channel] += 80
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return str(folder)


def write_vision_model(folder: Path, kind: str = "vit") -> str:
    """Write a tiny vision model without a head and its image processor, and return the folder."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    head = ("classifier",)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(head)}
    model.save_pretrained(folder, state_dict=state)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE}, "resample": 2}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def _vit() -> PreTrainedModel:
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(hidden_size=32, image_size=SIZE, patch_size=8, **sizes))


def _swin() -> PreTrainedModel:
    sizes: dict[str, Any] = {"depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
    return SwinForImageClassification(SwinConfig(image_size=SIZE, patch_size=4, embed_dim=16, **sizes))


def _convnext() -> PreTrainedModel:
    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2))


def _resnet() -> PreTrainedModel:
    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes))


MODELS = {"vit": _vit, "swin": _swin, "convnext": _convnext, "resnet": _resnet}


def images_of(model: str, train: str, val: str | None = None) -> list[str]:
    """Return the arguments of `litpeft` for images, without the verb and the run folder."""
    return [
        *("--model", "ImageClassification", "--model.model_name", model, "--model.dtype", "fp32"),
        *("--data", "ImageFolder", "--data.train_file", train, *(["--data.val_file", val] if val else [])),
        *("--data.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]

"""Small images for demos, from the wheel of scikit-learn (BSD-3-Clause), and a vision model that knows half of them.

- `demo:digits`: handwritten digits 5 to 9, 896 images of 8 x 8 pixels in one folder per digit
  (https://doi.org/10.24432/C50P49).
- `demo:vit_digits`: a ViT of 0.2 million parameters, trained on the digits 0 to 4 when it is first used (about twenty
  seconds on one core).
"""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

WHEEL = "scikit-learn==1.9.1"
FILE = "sklearn/datasets/data/digits.csv.gz"  # in the wheel; a line has 64 values from 0 to 16, and the digit
KNOWN = range(5)  # digits of the model; the others are for fine-tuning
SIZE = 16  # pixels of the model's input
EPOCHS, BATCH, RATE = 30, 64, 2e-3


def digits(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of the wheel, (rows, 8, 8) with values from 0 to 255, and the digits, (rows)."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(FILE)).decode().splitlines()
    table = np.array([line.split(",") for line in lines], dtype=float).astype(np.uint8)
    return np.minimum(table[:, :-1].reshape(-1, 8, 8).astype(int) * 16, 255).astype(np.uint8), table[:, -1]


def write_digits(wheel: Path, folder: Path) -> Path:
    """Write the digits for fine-tuning as PNG files in one folder per digit, and return the folder."""
    for number, (image, digit) in enumerate(zip(*digits(wheel), strict=True)):
        if digit not in KNOWN:
            (folder / str(digit)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / str(digit) / f"{number:04}.png")
    return folder


def write_vit(wheel: Path, folder: Path) -> Path:
    """Train the model, write it with its image processor, and return the folder."""
    import torch
    from torch.nn import functional as F
    from transformers import ViTConfig, ViTForImageClassification

    images, labels = digits(wheel)
    images, labels = images[known := np.isin(labels, KNOWN)], labels[known]
    resized = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for image in images]
    x = torch.from_numpy(np.stack(resized)).float()[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
    y = torch.from_numpy(labels.astype(np.int64))
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    config = ViTConfig(image_size=SIZE, patch_size=4, num_labels=len(KNOWN), **sizes)
    # whatever device and seed the caller uses
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        model = ViTForImageClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(pixel_values=x[rows]).logits, y[rows]).backward()
                optimizer.step()
    body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(folder, state_dict=body)  # its head would be taken for that of the other digits
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE}, "resample": 2}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder

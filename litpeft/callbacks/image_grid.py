"""A picture of validation images with label, prediction and probability, the most confident mistakes first."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont

from litpeft.runs.atomic_write import write_atomically
from litpeft.training.outlets import send

FILE = "val_images.jpg"
COLUMNS = 4
SIDE, CAPTION = 128, 34  # pixels: of an image, and of the two lines below it
RIGHT, WRONG = (0, 110, 50), (180, 20, 20)


class ImageGrid(Callback):
    """Write `val_images.jpg` after each validation of an image classifier, and send it to the loggers.

    Shown are sixteen of the images that the first process has validated: wrong ones before right ones, and of both
    those with the highest probability first.
    """

    def __init__(self) -> None:
        self._written = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = getattr(pl_module, "shown_images", None)
        if not shown or trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        data = trainer.datamodule
        picture = grid(
            [data.rows["val"].image(row) for row, *_ in shown],
            [(data.label_names[label], data.label_names[found], probability) for _, label, found, probability in shown],
        )
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        write_atomically(Path(trainer.default_root_dir) / FILE, buffer.getvalue())
        send(trainer.loggers, "image", "val_images", np.asarray(picture), trainer.global_step - 1)
        self._written = True

    def measured(self) -> dict[str, Any]:
        return {"image_grid": FILE} if self._written else {}


def grid(images: list[Image.Image], captions: list[tuple[str, str, float]]) -> Image.Image:
    """Return the images in rows of four, each above its label, and above its prediction with the probability.

    Args:
        images: RGB images of any size.
        captions: label, predicted label and its probability of each image.
    """
    rows = -(-len(images) // COLUMNS)
    picture = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for place, (image, (label, found, probability)) in enumerate(zip(images, captions, strict=True)):
        left, top = place % COLUMNS * SIDE, place // COLUMNS * (SIDE + CAPTION)
        small = image.copy()
        small.thumbnail((SIDE - 4, SIDE - 4))
        picture.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        draw.text((left + 4, top + SIDE), f"label {label}"[:26], "black", font)
        colour = RIGHT if label == found else WRONG
        draw.text((left + 4, top + SIDE + 15), f"{found}"[:18] + f" {probability:.0%}", colour, font)
    return picture

"""Files of images: found in folders, decoded, turned upright, and converted to 8-bit RGB."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from litpeft.errors import UserError, first_sentence

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SMALL = (64, 64)  # size to which JPEG files are decoded to check them: several times faster than in full
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
NO_SIZE = 0, 0  # width and height of an image that cannot be used; its row is left out
BAD = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for damaged files


def class_folders(folder: Path, option: str) -> dict[str, list[Path]]:
    """Return the images in the folders of a folder, by class: the name of the folder, in alphabetical order.

    If all names are numbers, they are in the order of the numbers.

    Folders inside of a class folder belong to the class. Hidden files are left out.

    Raises:
        UserError: there are no folders, or a folder has no image; `option` names the folder in the message.
    """
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{option} {folder}: the folder must have one folder of images per class.")
    if all(entry.name.isdecimal() for entry in classes):
        classes.sort(key=lambda entry: int(entry.name))
    found = {entry.name: images_in(entry) for entry in classes}
    if empty := [name for name, images in found.items() if not images]:
        raise UserError(f"{option} {folder}: the folder {empty[0]} has no image ({', '.join(IMAGES)}).")
    return found


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder and in its folders, in alphabetical order, without hidden files."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith("."))
        found += [Path(root, name) for name in names if name.lower().endswith(IMAGES)]
    return found


def stamp(files: list[Path]) -> list[tuple[str, int, int]]:
    """Return path, size in bytes and time of change of each file: what a table of images depends on."""
    return [(str(file), status.st_size, status.st_mtime_ns) for file in files for status in (file.stat(),)]


def opened(source: str | bytes) -> Image.Image:
    """Open an image, given its path or its bytes; its pixels are not decoded yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual metadata, which is not used
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def decode(source: str | bytes) -> Image.Image:
    """Return an image as 8-bit RGB, turned upright as its EXIF orientation says; of an animation the first frame.

    Transparent pixels become white, and 16-bit grey values are divided by 257.
    """
    with opened(source) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in SIXTEEN_BITS:
            return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")


def problem(source: str | bytes | None) -> tuple[str | None, tuple[int, int]]:
    """Return why an image cannot be used, or None, and its width and height; all its bytes are decoded."""
    if source is None:
        return "the image is missing", NO_SIZE
    try:
        with opened(source) as image:
            size = image.size
            image.draft("RGB", SMALL)  # JPEG only
            image.load()
    except FileNotFoundError:
        return f"there is no file {source}", NO_SIZE
    except BAD as error:
        what = "not an image" if "cannot identify" in str(error) else first_sentence(error).rstrip(".")
        return f"the image cannot be read ({what})", NO_SIZE
    return None, size

"""Find text in pictures that PIL has drawn."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def find_text(
    picture: np.ndarray, text: str, size: float | None = None, colour: str = "black"
) -> list[tuple[int, int]]:
    """Return the left and the top of each place where a text stands on white, in PIL's default font.

    Args:
        picture: (height, width, 3), uint8.
        text: the text.
        size: size of the font; None for PIL's default.
        colour: colour of the text.
    """
    font = ImageFont.load_default(size)
    canvas = Image.new("RGB", (16 * len(text) + 16, 64), "white")
    ImageDraw.Draw(canvas).text((8, 8), text, colour, font)
    drawn = np.asarray(canvas)
    rows, columns = (np.flatnonzero((drawn != 255).any(axis=(2, axis))) for axis in (1, 0))
    drawn = drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = drawn.shape[:2]
    across, down = picture.shape[1] - width + 1, picture.shape[0] - height + 1
    places = np.argwhere((picture[:down, :across] == drawn[0, 0]).all(axis=-1))
    for row, column in np.argwhere((drawn != 255).any(axis=-1))[:20]:  # few places are left after a few pixels
        seen = picture[places[:, 0] + row, places[:, 1] + column]
        places = places[(seen == drawn[row, column]).all(axis=-1)]
    return [
        (int(left), int(top))
        for top, left in places
        if (picture[top : top + height, left : left + width] == drawn).all()
    ]

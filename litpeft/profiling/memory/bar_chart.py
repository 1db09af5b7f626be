"""The memory split as an image: one bar per phase, one colour per category."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from litpeft.profiling.memory.tracker import CATEGORIES

# colours for colour-blind readers: Okabe and Ito, https://jfly.uni-koeln.de/color/
HUES = "#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#cc79a7", "#009e73", "#000000", "#f0e442", "#999999"
COLOURS = dict(zip(CATEGORIES, HUES, strict=True))
# pixels: width of phase names and of the longest bar; height of a phase, of a legend line and of the title
LEFT, BAR, ROW, LEGEND, TITLE = 110, 560, 44, 24, 34


def split_image(phases: Mapping[str, Mapping[str, Any]]) -> np.ndarray:
    """Draw `tensor_bytes` of each tracked phase as a stacked bar.

    Args:
        phases: the record field `memory_phases`.

    Returns:
        (height, width, 3), uint8.
    """
    known = {name: phase["tensor_bytes"] for name, phase in phases.items() if "tensor_bytes" in phase}
    most = max([1, *(sum(split.values()) for split in known.values())])
    used = [name for name in CATEGORIES if any(split.get(name) for split in known.values())]
    image = Image.new("RGB", (LEFT + BAR + 110, TITLE + len(known) * ROW + len(used) * LEGEND + 10), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    draw.text((8, 10), "Live tensors at the peak of each phase, by kind", "black", font)
    for row, (phase, split) in enumerate(known.items()):
        top, before = TITLE + row * ROW, 0
        draw.text((8, top + 9), phase, "black", font)
        for name, count in split.items():
            ends = [LEFT + round(BAR * value / most) for value in (before, before + count)]
            if ends[1] > ends[0]:
                draw.rectangle((ends[0], top, ends[1] - 1, top + ROW - 16), COLOURS[name])
            before += count
        draw.text((LEFT + round(BAR * before / most) + 8, top + 9), f"{before / 2**20:,.1f} MiB", "black", font)
    for line, name in enumerate(used):
        top = TITLE + len(known) * ROW + line * LEGEND
        draw.rectangle((LEFT, top, LEFT + 14, top + 14), COLOURS[name])
        draw.text((LEFT + 22, top + 2), name.replace("_", " "), "black", font)
    return np.asarray(image)

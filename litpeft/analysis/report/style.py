"""Colours, markers and line dashes of groups, the same in all charts.

The colours are far apart in OKLab (https://bottosson.github.io/posts/oklab/), also for simulated red-green colour
blindness, and have a contrast of at least 3 to 1 with the page, as WCAG 2.2 (1.4.11) requires. The first colours are
farthest apart. Markers and dashes repeat the information of the colours.
"""

from __future__ import annotations

from dataclasses import dataclass

LIGHT = "#1b71bc", "#db551d", "#86046b", "#3a5713", "#b45cf0", "#3f8f68", "#5922bf", "#885b61"
DARK = "#37a8ec", "#f0502a", "#fec0f7", "#a6d93a", "#a94fde", "#3f9a70", "#8085cf", "#c19188"
# segments of stacked bars (after Paul Tol's muted scheme); different from the colours of groups
PARTS_LIGHT = "#332288", "#4a9cc9", "#cc6677", "#117733", "#a98a28", "#2f9384", "#882255", "#7d7d27", "#56606b"
PARTS_DARK = "#8d80f0", "#88ccee", "#ee8f9e", "#46b566", "#e6d68a", "#3aa898", "#d070a8", "#b9b954", "#aab4be"
DASHES = "solid", "dash", "dot", "dashdot", "longdash", "longdashdot"
# marker name of plotly -> SVG path in a box of 16 x 16, for the legend of the page
MARKERS = {
    "circle": "M8 2a6 6 0 1 0 0 12a6 6 0 1 0 0-12z",
    "square": "M3 3h10v10h-10z",
    "diamond": "M8 1l7 7-7 7-7-7z",
    "triangle-up": "M8 2l7 12h-14z",
    "cross": "M6 1h4v5h5v4h-5v5h-4v-5h-5v-4h5z",
    "triangle-down": "M8 14l7-12h-14z",
    "x": "M4 1l4 4 4-4 3 3-4 4 4 4-3 3-4-4-4 4-3-3 4-4-4-4z",
    "star": "M8 1l2 5h5l-4 3.500 1.500 5.500-4.500-3.500-4.500 3.500 1.500-5.500-4-3.500h5z",
}
# colours of text, grid and page: name -> (light theme, dark theme)
INK = {
    "text": ("#1c2127", "#e8ebef"),
    "muted": ("#59626e", "#a3acb8"),
    "grid": ("#e3e6ea", "#2f363f"),
    "paper": ("#ffffff", "#161a1f"),
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and dash of one group.

    Attributes:
        colour: colour in the light theme; `themes` maps it to the dark theme.
        band: transparent colour for bands.
        marker: marker name of plotly.
        path: the marker as an SVG path.
        dash: dash name of plotly.
    """

    colour: str
    band: str
    marker: str
    path: str
    dash: str


def look(number: int) -> Look:
    """Return the look of a group by its number; after eight groups, colours repeat with other markers and dashes."""
    colour, round_ = LIGHT[number % len(LIGHT)], number // len(LIGHT)
    marker = list(MARKERS)[(number + round_) % len(MARKERS)]
    return Look(colour, _transparent(colour), marker, MARKERS[marker], DASHES[(number + round_) % len(DASHES)])


def themes() -> dict[str, str]:
    """Return {colour in the light theme: colour in the dark theme} for all charts."""
    parts = zip(PARTS_LIGHT, PARTS_DARK, strict=True)
    pairs = [*zip(LIGHT, DARK, strict=True), *parts, *INK.values()]
    return dict(pairs) | {_transparent(light): _transparent(dark) for light, dark in zip(LIGHT, DARK, strict=True)}


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"

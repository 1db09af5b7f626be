"""How groups and categories look: a colour for each theme, a marker and a dash, the same in all charts.

Colours were searched for: far apart in OKLab (https://bottosson.github.io/posts/oklab/) for readers with all cones
and, simulated, for those without red or green ones; and with a contrast of 3 to 1 with the page in their theme, as
WCAG 2.2 asks of graphics (1.4.11). The first ones are the farthest apart. Nothing is told by colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass

LIGHT = "#1b71bc", "#db551d", "#86046b", "#3a5713", "#b45cf0", "#3f8f68", "#5922bf", "#885b61"
DARK = "#37a8ec", "#f0502a", "#fec0f7", "#a6d93a", "#a94fde", "#3f9a70", "#8085cf", "#c19188"
# of what bars are made of (after Paul Tol's muted scheme): no group's colours, neighbours far apart
PARTS_LIGHT = "#332288", "#4a9cc9", "#cc6677", "#117733", "#a98a28", "#2f9384", "#882255", "#7d7d27"
PARTS_DARK = "#8d80f0", "#88ccee", "#ee8f9e", "#46b566", "#e6d68a", "#3aa898", "#d070a8", "#b9b954"
DASHES = "solid", "dash", "dot", "dashdot", "longdash", "longdashdot"
# plotly's name -> the same as a path in a box of 16 by 16, for the page's own legend
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
# what stands behind and around the marks: name -> light, dark
INK = {
    "text": ("#1c2127", "#e8ebef"),
    "muted": ("#59626e", "#a3acb8"),
    "grid": ("#e3e6ea", "#2f363f"),
    "paper": ("#ffffff", "#161a1f"),
}


@dataclass(frozen=True)
class Look:
    """Of the group, or category, of one number.

    Attributes:
        colour: in the light theme; `themes` knows what it becomes in the dark one.
        band: the same, seen through.
        marker: plotly's name of it.
        path: the marker as an SVG path.
        dash: plotly's name of it.
    """

    colour: str
    band: str
    marker: str
    path: str
    dash: str


def look(number: int) -> Look:
    """After eight, colours come again with other markers and dashes."""
    colour, again = LIGHT[number % len(LIGHT)], number // len(LIGHT)
    marker = list(MARKERS)[(number + again) % len(MARKERS)]
    return Look(colour, _seen_through(colour), marker, MARKERS[marker], DASHES[(number + again) % len(DASHES)])


def themes() -> dict[str, str]:
    """Every colour of a figure in the light theme -> in the dark one."""
    parts = zip(PARTS_LIGHT, PARTS_DARK, strict=True)
    pairs = [*zip(LIGHT, DARK, strict=True), *parts, *INK.values()]
    return dict(pairs) | {_seen_through(light): _seen_through(dark) for light, dark in zip(LIGHT, DARK, strict=True)}


def _seen_through(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"

"""The options of a command line as pairs, before anything is known of them."""

from __future__ import annotations

from collections.abc import Sequence

# options without a value
FLAGS = (
    *("resume", "no_resume", "overwrite", "no_overwrite", "help", "h", "print_config"),
    *("no_data", "no-data", "no_search", "no-search"),
)


def typed_options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return (option, value) pairs in order; both `--a.b 1` and `--a.b=1` give ("a.b", "1")."""
    pairs = []
    rest = iter(arguments)
    for word in rest:
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            pairs.append((key, value if equals or key in FLAGS else next(rest, "")))
    return [("config" if key == "c" else key, value) for key, value in pairs]

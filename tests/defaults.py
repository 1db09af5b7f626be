"""Read the defaults of the options of a class, those of its base classes included."""

from __future__ import annotations

import inspect
from typing import Any


def defaults_of(kind: type) -> dict[str, Any]:
    """Return the defaults by name of the option."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base) and base.__module__.startswith("litpeft"):
            options = inspect.signature(vars(base)["__init__"]).parameters.values()
            found |= {each.name: each.default for each in options if each.default is not each.empty}
    return found

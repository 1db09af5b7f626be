"""How the strategy without an adapter is spelled: `none` in configurations and records, `full` for people."""

from __future__ import annotations

import re


def shown_name(strategy: str) -> str:
    """Return a strategy's name for tables, figures and sentences: `full` for `none`, any other name unchanged."""
    return "full" if strategy == "none" else strategy


def shown_label(label: str) -> str:
    """Return a label of comma-separated names with `full` for the name `none`: `none, lr=0.1` -> `full, lr=0.1`."""
    return re.sub(r"(?<![^,\s])none(?![^,])", "full", label)


def stored_name(strategy: str) -> str:
    """Return a strategy's name as records and configurations have it: `none` for `full`, any other name unchanged."""
    return "none" if strategy == "full" else strategy

"""A run's configuration as options: dotted key -> value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value; an empty mapping is a value. A data seed that is the run's own counts as not given."""
    config = record.get("config") or {}
    flat: dict[str, Any] = {}
    _flatten(config, "", flat)
    if flat.get("data.init_args.seed") == config.get("seed_everything"):
        flat["data.init_args.seed"] = None
    return flat


def _flatten(config: Mapping[str, Any], prefix: str, flat: dict[str, Any]) -> None:
    for key, item in config.items():
        if isinstance(item, dict) and item:
            _flatten(item, f"{prefix}{key}.", flat)
        else:
            flat[f"{prefix}{key}"] = item

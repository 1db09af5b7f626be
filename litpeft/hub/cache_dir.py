"""The folder of cached files: tokenised tables, demo models and demo texts."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return `$LITPEFT_CACHE`, or `litpeft` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LITPEFT_CACHE") or Path(base) / "litpeft")

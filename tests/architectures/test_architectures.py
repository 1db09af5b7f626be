"""A sample of the matrix; `make architectures` runs the whole."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.architectures.check import check
from tests.architectures.models import ADAPTERS, ENCODERS, SAMPLE
from tests.architectures.vision import check_vision
from tests.sampling import quick

# each architecture and each adapter; mixtral has experts, which QLoRA quantises and adapts in layers of their own
QUICK = {("mixtral", "qlora"), ("modernbert", "dora"), ("xlm-roberta", "lora"), ("bart", "qlora")}


@pytest.mark.parametrize(("kind", "adapter"), quick(list(product(SAMPLE, ADAPTERS)), QUICK))
def test_an_architecture_trains_exactly_and_its_exports_are_proved(
    kind: str, adapter: str, tmp_path: Path, tiny_model: str, tiny_llama: str
) -> None:
    check(kind, adapter, tmp_path, tiny_model if kind in ENCODERS else tiny_llama)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_vision_encoder_is_adapted_exactly(adapter: str, tmp_path: Path) -> None:
    check_vision("vit", adapter, tmp_path)

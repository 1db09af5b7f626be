"""A killed run on a GPU resumes bit-identically."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.torture import torture

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("case", ["lora, dropout, two workers", "qlora-nf4, AdamW8bit"])
def test_a_killed_run_resumes_bit_identically(case: str, tmp_path: Path) -> None:
    assert torture(tmp_path / "runs", 2, 0, [case], "cuda")

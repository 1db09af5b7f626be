"""One real run on CUDA; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from litpeft.__main__ import main
from litpeft.records import read_record

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("adapter", ["Full", "Frozen", "LoRA"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_run_on_cuda_records_its_peaks_by_phase(tmp_path: Path, words: list[str], adapter: str, dtype: str) -> None:
    options = [
        "--model.adapter",
        adapter,
        "--model.dtype",
        dtype,
        "--trainer.accelerator",
        "cuda",
        "--trainer.devices",
        "1",
    ]
    assert main([*words, *options, "--run_dir", str(tmp_path)]) == 0
    record = read_record(tmp_path)
    assert set(record["memory_phases"]) >= {"load", "first_step", "train", "validate"}
    assert record["peak_reserved_bytes"] >= record["peak_allocated_bytes"] >= record["model_bytes"]
    assert record["machine"]["device"] == torch.cuda.get_device_name()

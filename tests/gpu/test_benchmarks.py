"""Benchmarks on a GPU: scores equal those of single rows, and peak memory of training excludes benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from litpeft.__main__ import main
from litpeft.adapters import QLoRA
from litpeft.benchmarks.scorer import PrefixScorer
from litpeft.runs.record import read_record
from tests.benchmarks.build import causal
from tests.benchmarks.test_scorer import rows_with_prefixes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("adapter", [None, QLoRA(rank=2)], ids=["lora", "qlora"])
def test_log_likelihoods_equal_those_of_each_row_alone(byte_llama: str, adapter: QLoRA | None) -> None:
    task, _ = causal(byte_llama, adapter)
    task.to("cuda").backbone.eval()
    rows = rows_with_prefixes(20)
    for tokens in (16, None):
        scorer = PrefixScorer(task.backbone, tokens=tokens)
        assert scorer.agrees(rows)
        alone = [scorer.score_single(*row)[0] for row in rows]
        assert [score for score, _ in scorer.score(rows)] == pytest.approx(alone, abs=2e-2)


def test_peak_memory_of_training_excludes_benchmarks(byte_llama: str, tmp_path: Path) -> None:
    arguments = [
        *("fit", "--model", "CausalLM", "--model.model_name", byte_llama, "--model.adapter", "LoRA"),
        *("--data", "ArithmeticInstructions", "--data.train_rows", "24", "--data.val_rows", "8"),
        *("--data.batch_size", "2", "--data.max_length", "256", "--trainer.enable_progress_bar", "false"),
    ]
    benchmarks = ["--benchmarks.tasks", "[litpeft_generated_4ds]", "--benchmarks.limit", "500"]
    assert main([*arguments, "--run_dir", str(tmp_path / "plain")]) == 0
    assert main([*arguments, *benchmarks, "--run_dir", str(tmp_path / "measured")]) == 0
    plain, measured = (read_record(tmp_path / name) for name in ("plain", "measured"))
    assert measured["memory_phases"]["benchmark"]["peak_allocated_bytes"] > measured["peak_allocated_bytes"]
    assert measured["peak_allocated_bytes"] == pytest.approx(plain["peak_allocated_bytes"], rel=0.05)
    assert measured["val_loss"] == plain["val_loss"]

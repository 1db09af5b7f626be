"""Runs on CUDA by the command line, and the commands that use them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from litpeft.__main__ import main
from litpeft.runs.record import read_record
from tests.commands.test_evaluate import TASK

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ON_CUDA = ["--trainer.accelerator", "cuda", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]


@pytest.mark.parametrize("adapter", ["Full", "Frozen", "LoRA"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_run_on_cuda_records_peaks_by_phase(
    tmp_path: Path, fit_arguments: list[str], adapter: str, dtype: str
) -> None:
    options = ["--model.adapter", adapter, "--model.dtype", dtype, *ON_CUDA]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path)]) == 0
    record = read_record(tmp_path)
    assert set(record["memory_phases"]) >= {"load", "first_step", "train", "validate"}
    assert record["peak_reserved_bytes"] >= record["peak_allocated_bytes"] >= record["model_bytes"]
    assert record["machine"]["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("adapter", ["Full", "LoRA", "DoRA", "QLoRA", "QDoRA"])
def test_a_language_model_trains_validates_predicts_evaluates_and_exports(
    tmp_path: Path, byte_llama: str, adapter: str, capsys: pytest.CaptureFixture
) -> None:
    run = str(tmp_path / "run")
    arguments = [
        *("fit", "--model", "CausalLM", "--model.model_name", byte_llama, "--model.adapter", adapter),
        *("--model.generate_samples", "2", "--model.max_new_tokens", "4"),
        *("--model.gradient_checkpointing", "reentrant"),
        *("--data", "ArithmeticInstructions", "--data.train_rows", "24", "--data.val_rows", "8"),
        *("--data.batch_size", "4", "--data.max_length", "256", "--throughput.warmup_steps", "1", *ON_CUDA),
    ]
    assert main([*arguments, "--run_dir", run]) == 0
    record = read_record(Path(run))
    assert record["status"] == "ok"
    assert record["others_bytes"] > 0
    assert main(["validate", "--run_dir", run, *ON_CUDA]) == 0
    instructions = tmp_path / "instructions.json"
    instructions.write_text('[{"instruction": "2 plus 3?", "input": ""}]')
    predict = ["predict", "--run_dir", run, "--data", "Alpaca", "--data.predict_file", str(instructions)]
    assert main([*predict, *ON_CUDA]) == 0
    assert main(["evaluate", run, "--tasks", TASK, "--limit", "8", "--accelerator", "cuda"]) == 0
    assert read_record(Path(run))["benchmarks"][0]["results"][TASK]["items"] == 8
    assert main(["export", run, str(tmp_path / "merged"), "--format", "merged"]) == 0
    capsys.readouterr()

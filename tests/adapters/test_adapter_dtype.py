"""`model.adapter.dtype`: the tensors of an adapter in bf16, against fp32 and plain autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from litpeft.adapters import DoRA, LoRA, Peft
from litpeft.adapters.base import Adapter, trainable
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests.adapters.peft_cases import inputs, run
from tests.watching import watching

BF16, FP32 = torch.bfloat16, torch.float32


def built(adapter: Adapter, folder: str, dtype: torch.dtype = BF16) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return adapter.apply(LlamaForCausalLM.from_pretrained(folder, dtype=dtype)).train()


def loss(model: LlamaForCausalLM) -> torch.Tensor:
    return model(**inputs().tensors).logits.float().square().mean()


def test_a_and_b_are_bf16_and_the_magnitude_is_fp32(tiny_llama: str) -> None:
    dtypes = {name.rpartition(".")[2]: p.dtype for name, p in trainable(built(DoRA(dtype="bf16"), tiny_llama)).items()}
    assert dtypes == {"lora_A": BF16, "lora_B": BF16, "magnitude": FP32}
    assert {p.dtype for p in trainable(built(DoRA(dtype="fp32"), tiny_llama)).values()} == {FP32}
    assert {p.dtype for p in trainable(built(Peft("VERA", dtype="bf16"), tiny_llama)).values()} == {BF16}


@pytest.mark.parametrize("kind", [LoRA, DoRA])
@pytest.mark.parametrize("base", [BF16, FP32])
def test_an_adapter_in_bf16_equals_one_in_fp32_with_the_same_values(
    kind: type[LoRA], base: torch.dtype, tiny_llama: str
) -> None:
    """Both compute in the dtype of the base; the gradients differ by one rounding to bf16."""
    in_bf16, in_fp32 = (built(kind(dtype=dtype, targets="all-linear"), tiny_llama, base) for dtype in ("bf16", "fp32"))
    for step in range(3):  # what is prepared once per step must follow the values
        with torch.no_grad():
            for (name, mine), other in zip(trainable(in_bf16).items(), trainable(in_fp32).values(), strict=True):
                torch.manual_seed(step + len(name))
                mine.add_(0.02 * torch.randn(mine.shape).to(mine.dtype))
                other.copy_(mine)
        found, expected = loss(in_bf16), loss(in_fp32)
        assert float(found) == pytest.approx(float(expected), rel=1e-6)
        found.backward()
        expected.backward()
        for (name, mine), other in zip(trainable(in_bf16).items(), trainable(in_fp32).values(), strict=True):
            assert mine.grad.dtype == mine.dtype
            largest = float(other.grad.abs().max())
            assert torch.allclose(mine.grad.float(), other.grad, rtol=1 / 128, atol=largest / 64), name
            mine.grad = other.grad = None


def test_a_run_in_bf16_halves_the_adapter_and_resumes_exactly(tmp_path: Path, fit_arguments: list[str]) -> None:
    options = ["--model.adapter", "LoRA", "--model.dtype", "bf16", "--model.adapter.dtype", "bf16"]
    arguments = [*fit_arguments, *options, "--trainer.max_steps", "4", "--trainer.callbacks+", "tests.watching.Watch"]
    with watching(stop_step=None):
        assert run(*arguments, "--run_dir", str(tmp_path / "run"))[1] == ""
    with watching(stop_step=2):
        assert run(*arguments, "--run_dir", str(tmp_path / "resumed"))[1] == ""
    with watching(stop_step=None):
        assert run(*arguments, "--run_dir", str(tmp_path / "resumed"), "--resume")[1] == ""
    whole, resumed = (
        load_file(next(newest_checkpoint(tmp_path / name).glob("*.safetensors"))) for name in ("run", "resumed")
    )
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert {name.startswith("classifier"): tensor.dtype for name, tensor in whole.items()} == {False: BF16, True: FP32}
    record, head = read_record(tmp_path / "run"), 4 * (2 * 32 + 2)
    assert record["adapter_bytes"] == 2 * (record["trainable_params"] - head // 4) + head
    out, error = run("export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--format", "adapter")
    assert "PEFT's logits differ by at most" in out, error


def test_tf32_is_in_the_record(tmp_path: Path, fit_arguments: list[str]) -> None:
    arguments = [*fit_arguments, "--model.adapter", "LoRA", "--trainer.max_steps", "1", "--model.tf32", "true"]
    assert run(*arguments, "--run_dir", str(tmp_path))[1] == ""
    record = read_record(tmp_path)
    assert record["config"]["model"]["init_args"]["tf32"] is True
    assert record["tf32"] is False  # on a CPU


def test_an_optimizer_that_needs_a_gpu_says_so(tmp_path: Path, fit_arguments: list[str]) -> None:
    pytest.importorskip("torchao", reason="the package torchao is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = ["--model.adapter", "LoRA", "--model.optimizer", "torchao.optim.CPUOffloadOptimizer"]
    error = run(*fit_arguments, *options, "--run_dir", str(tmp_path))[1]
    assert error == (
        "litpeft: error: model.optimizer cannot be created: CPU Offload currently only supports CUDA & XPU."
    )

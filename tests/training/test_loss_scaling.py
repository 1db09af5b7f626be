"""fp16: scaled losses change no result, overflowing steps are skipped and counted, and resume is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from litpeft.__main__ import main
from litpeft.callbacks.checkpoint_io import LOOP, TENSORS
from litpeft.errors import UserError
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from litpeft.tasks import SequenceClassification, compute_dtype
from litpeft.tasks.compute_dtype import check_dtype
from litpeft.tasks.language_modelling import LanguageModelling
from litpeft.training.loss_scaling import LossScaling
from tests.conftest import QUIET

STEPS = 6


class Regression(L.LightningModule):
    """A linear model in fp32, in which scaling by a power of two changes no bit."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fused = nn.Linear(4, 1), fused
        self.weights: list[Tensor] = []
        self.norms: list[float] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.layer(batch).square().mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.norms.append(float(self.layer.weight.grad.norm()))

    def on_train_batch_end(self, *_: Any) -> None:
        self.weights.append(self.layer.weight.detach().clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=self.fused)


def trained(fused: bool, overflow: int | None = None, **options: Any) -> tuple[Regression, L.Trainer]:
    model = Regression(fused)
    batches = list(torch.randn(STEPS, 8, 4, generator=torch.Generator().manual_seed(1)))
    if overflow is not None:
        batches[overflow] = batches[overflow] * 1e30  # its gradients are infinite in fp32
    trainer = L.Trainer(**QUIET | {"max_epochs": 1, "gradient_clip_val": 0.5} | options)
    trainer.fit(model, DataLoader(batches, batch_size=None))
    return model, trainer


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_loss_gives_the_same_steps_also_with_clipping_and_accumulation(fused: bool) -> None:
    for accumulated in (1, 2):
        plain, _ = trained(fused, accumulate_grad_batches=accumulated)
        plugin = LossScaling("cpu", 2.0**12)
        scaled, _ = trained(fused, accumulate_grad_batches=accumulated, plugins=[plugin])
        assert torch.equal(torch.stack(scaled.weights), torch.stack(plain.weights))
        assert scaled.norms == plain.norms  # hooks see unscaled gradients
        assert plugin.skipped_steps == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_is_skipped_and_counted(fused: bool) -> None:
    plugin = LossScaling("cpu", 2.0**12)
    model, _ = trained(fused, overflow=2, plugins=[plugin])
    assert torch.equal(model.weights[2], model.weights[1])
    assert not torch.equal(model.weights[3], model.weights[2])
    assert (plugin.skipped_steps, plugin.scaler.get_scale()) == (1, 2.0**11)
    other = LossScaling("cpu", 2.0)
    other.load_state_dict(plugin.state_dict())
    assert (other.skipped_steps, other.state_dict()) == (1, plugin.state_dict())


def run(folder: Path, model: str, steps: int, *options: str, dtype: str = "fp16") -> dict[str, Any]:
    arguments = [
        *("fit", "--model", "CausalLM", "--model.model_name", model, "--model.adapter", "QDoRA"),
        *("--model.adapter.dropout", "0.1", "--model.dtype", dtype, "--data", "ArithmeticInstructions"),
        *("--data.train_rows", "24", "--data.val_rows", "8", "--data.batch_size", "4", "--data.max_length", "256"),
        *("--trainer.max_steps", str(steps), "--trainer.gradient_clip_val", "1.0", "--seed_everything", "3"),
        *("--trainer.enable_progress_bar", "false", "--run_dir", str(folder)),
    ]
    assert main([*arguments, *options]) == 0
    return read_record(folder)


def test_a_resumed_run_has_the_scale_the_skipped_steps_and_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, byte_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModelling, "first_loss_scale", 2.0**16)  # overflows in the first steps
    whole = run(tmp_path / "whole", byte_llama, 6)
    run(tmp_path / "parts", byte_llama, 2)
    parts = run(tmp_path / "parts", byte_llama, 6, "--resume")
    assert 0 < whole["skipped_steps"] < 6
    assert parts["skipped_steps"] == whole["skipped_steps"]
    one, other = (newest_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    states = [torch.load(folder / LOOP, weights_only=False)["LossScaling"] for folder in (one, other)]
    assert states[0] == states[1]
    tensors = [load_file(folder / TENSORS) for folder in (one, other)]
    assert all(torch.equal(tensors[1][name], tensor) for name, tensor in tensors[0].items())
    assert parts["train_loss"] == whole["train_loss"]


def test_fp16_learns_what_fp32_learns(tmp_path: Path, byte_llama: str) -> None:
    half, full = (run(tmp_path / dtype, byte_llama, 6, dtype=dtype) for dtype in ("fp16", "fp32"))
    assert half["precision"] == "fp16"
    assert (half["skipped_steps"], full["skipped_steps"]) == (0, None)
    assert half["val_loss"] == pytest.approx(full["val_loss"], rel=2e-3)


def test_a_gpu_without_bf16_is_told_of_fp16_and_a_cpu_without_fp16_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    for dtype in ("fp16", "fp32"):
        check_dtype(dtype, torch.device("cuda"))
    assert not capsys.readouterr().err
    check_dtype("bf16", torch.device("cuda"))
    assert "Tesla T4 has no units for bf16 and is slow in it; give --model.dtype fp16." in capsys.readouterr().err

    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(compute_dtype.torch, "ones", missing)
    with pytest.raises(UserError, match="model.dtype fp16: torch cannot compute it on this CPU; give bf16 or fp32"):
        check_dtype("fp16", torch.device("cpu"))


def test_the_first_scale_is_torchs() -> None:
    assert SequenceClassification("some/model").first_loss_scale == torch.amp.GradScaler("cpu").get_scale()

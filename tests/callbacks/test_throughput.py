"""Rates by a fake clock: what is counted, to the digit, and what is left out."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from litpeft.callbacks import ThroughputRecorder

WAIT, COMPUTE, OTHER = 0.25, 1.0, 100.0  # seconds: waiting for a batch, making a step, all that lies between steps


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Loader:
    """Gives batches, and says when one was asked for, as ResumableLoader does."""

    def __init__(self, clock: Clock, batches: int) -> None:
        self.clock, self.batches, self.requested_at = clock, batches, 0.0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self):
        for i in range(self.batches):
            self.requested_at = self.clock()
            self.clock.now += WAIT * (8 if i == 0 else 1)
            yield torch.full((2, 5), float(i))


class Module(L.LightningModule):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.layer = torch.nn.Linear(5, 1)

    def token_counts(self, batch: torch.Tensor) -> dict:
        return {"samples": 2, "tokens": torch.tensor(7), "padded": 10, "trained": 3}

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.clock.now += COMPUTE
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.clock.now += OTHER

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Slow(L.Callback):
    """Another callback that works after each batch, an evaluation or a checkpoint say."""

    def on_train_batch_end(self, trainer, module, *args) -> None:
        module.clock.now += OTHER


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_counted_exactly_and_nothing_else_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path, accumulate: int
) -> None:
    clock = Clock()
    monkeypatch.setattr("litpeft.callbacks.throughput.time.perf_counter", clock)
    recorder = ThroughputRecorder(warmup_steps=2)
    trainer = L.Trainer(
        max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[recorder, Slow()], logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, val_check_interval=0.5, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Module(clock), Loader(clock, 12), Loader(clock, 2))
    told = recorder.measured()
    step = accumulate * (WAIT + COMPUTE)
    steps = 12 // accumulate
    assert told["train_seconds"] == pytest.approx(steps * step + 7 * WAIT)  # the first batch was slow to come
    assert told["step_seconds_p50"] == told["step_seconds_p95"] == pytest.approx(step)
    assert told["train_samples_per_second"] == pytest.approx(2 / (WAIT + COMPUTE))
    assert told["train_tokens_per_second"] == pytest.approx(7 / (WAIT + COMPUTE))
    assert told["padded_tokens_per_second"] == pytest.approx(10 / (WAIT + COMPUTE))
    assert told["trained_tokens_per_second"] == pytest.approx(3 / (WAIT + COMPUTE))
    assert told["warmup_steps_left_out"] == 2


def test_a_run_shorter_than_its_warm_up_has_no_rates() -> None:
    recorder = ThroughputRecorder(warmup_steps=5)
    recorder.step_seconds, recorder.step_counts = (
        [1.0] * 5,
        [{"samples": 1, "tokens": 1, "padded": 1, "trained": 1}] * 5,
    )
    told = recorder.measured()
    assert told["train_seconds"] == 5.0
    assert told["step_seconds_p50"] is told["train_tokens_per_second"] is None


def test_percentiles_are_numpys() -> None:
    recorder = ThroughputRecorder(warmup_steps=1)
    recorder.step_seconds = [99.0, *map(float, range(1, 21))]
    recorder.step_counts = [{"samples": 4, "tokens": 1, "padded": 1, "trained": 1}] * 21
    told = recorder.measured()
    assert told["step_seconds_p50"] == 10.5
    assert told["step_seconds_p95"] == pytest.approx(19.05)
    assert told["train_samples_per_second"] == pytest.approx(80 / 210)

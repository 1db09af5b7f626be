"""What an adapter is told after each step, what counts as a token, and a validation that starts afresh."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from litpeft.adapters import LoRA
from litpeft.data import SST2, Text
from litpeft.tasks import CausalLM, SequenceClassification
from tests.conftest import QUIET, REST


def test_an_adapter_is_told_the_number_of_the_step_that_was_made(
    tiny_model: str, sentences: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(LoRA, "after_step", lambda self, model, step, total: told.append((step, total)))
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], batch_size=8)
    trainer = Trainer(max_steps=4, accumulate_grad_batches=2, limit_val_batches=0, **QUIET)
    trainer.fit(SequenceClassification(tiny_model, LoRA(rank=2), dtype="fp32"), data)
    assert told == [(step, 4) for step in (1, 2, 3, 4)]


def text_model(model: str, folder: Path) -> tuple[CausalLM, Text]:
    (folder / "text.txt").write_text("\n\n".join(" ".join(REST[i % 7 :]) for i in range(12)))
    file = str(folder / "text.txt")
    options: dict[str, Any] = {"max_length": 32, "batch_size": 4}
    optimizer = partial(torch.optim.AdamW, lr=0.05)
    return CausalLM(model, LoRA(rank=2), optimizer=optimizer, dtype="fp32"), Text(
        tokenizer=model, train_file=file, val_file=file, **options
    )


def test_padding_is_no_token(byte_llama: str, tmp_path: Path) -> None:
    task, _ = text_model(byte_llama, tmp_path)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = torch.tensor([[-100, 5, 6, 7], [5, 6, -100, -100]])
    counts = task.token_counts({"input_ids": torch.zeros(2, 4), "attention_mask": mask, "labels": labels})
    assert {name: int(count) for name, count in counts.items()} == {
        "samples": 2,
        "tokens": 6,
        "padded": 8,
        "trained": 5,
    }


def test_the_second_validation_of_a_run_starts_afresh(byte_llama: str, tmp_path: Path) -> None:
    task, data = text_model(byte_llama, tmp_path)
    trainer = Trainer(**QUIET)
    [before] = trainer.validate(task, data, verbose=False)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(task, data)
    last = float(trainer.callback_metrics["val_loss"])
    assert last < 0.99 * before["val_loss"]  # so that a mean with the first validation would differ
    [alone] = trainer.validate(task, data, verbose=False)
    assert last == pytest.approx(alone["val_loss"], rel=1e-6)

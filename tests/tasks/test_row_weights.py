"""With `data.batch_tokens` each row has the same weight, however many rows its batch has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from litpeft.__main__ import main
from litpeft.adapters import LoRA
from litpeft.commands.training import FitCLI
from litpeft.data import SST2, Alpaca
from litpeft.runs.record import read_record
from litpeft.tasks import CausalLM, SequenceClassification
from litpeft.tasks.row_weights import row_weighted, share_of_mean_batch
from litpeft.training import processes
from tests.conftest import QUIET
from tests.resuming import differences, run


class Keep(Callback):
    """Keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.batches.append({name: tensor.clone() for name, tensor in batch.items()})


class Sums(torch.optim.Optimizer):
    """Sums the gradients that it is given, and changes no weight."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure: Any) -> Any:
        result = closure()
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter]["sum"] = self.state[parameter].get("sum", 0) + parameter.grad
        return result


def summed_gradients(task: Any, data: Any, accumulate: int) -> tuple[Keep, dict[str, Tensor]]:
    """Run an epoch that changes no weight; return what was kept, and the gradients summed over its steps."""
    keep = Keep()
    trainer = Trainer(**QUIET | {"max_epochs": 1, "callbacks": [keep], "accumulate_grad_batches": accumulate})
    trainer.fit(task, data)
    state = trainer.optimizers[0].state
    return keep, {name: state[p]["sum"] for name, p in task.backbone.named_parameters() if p in state}


def expected(task: Any, batches: list[dict[str, Tensor]], accumulate: int) -> dict[str, Tensor]:
    """Return the gradient of the mean over the steps, in which a step counts by its rows.

    The loss of a step is the mean over its rows, or over its tokens with loss.
    """
    task.zero_grad()
    all_rows = sum(len(batch["labels"]) for batch in batches)
    for start in range(0, len(batches), accumulate):
        step = batches[start : start + accumulate]
        rows = [len(batch["labels"]) for batch in step]
        weights = (
            [int((batch["labels"][:, 1:] != -100).sum()) for batch in step] if isinstance(task, CausalLM) else rows
        )
        loss = sum(task.loss(batch) * weight for batch, weight in zip(step, weights, strict=True)) / sum(weights)
        (loss * sum(rows) / all_rows).backward()
    return {name: p.grad for name, p in task.backbone.named_parameters() if p.grad is not None}


def check(task: Any, data: Any, accumulate: int) -> None:
    keep, summed = summed_gradients(task, data, accumulate)
    rows = [len(batch["labels"]) for batch in keep.batches]
    assert max(rows) > 2 * min(rows)
    assert sum(rows) == 90
    steps = len(rows) / accumulate  # an incomplete last step counts by its rows
    assert max(batch["input_ids"].numel() for batch in keep.batches) <= data.batch_tokens
    one = expected(task, keep.batches, accumulate)
    assert summed.keys() == one.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(summed[name], steps * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "accumulate"), [(4, 2), (3, 3), (2, 5), (8, 2), (16, 4)])
def test_accumulated_batches_are_one_batch_also_at_the_end_of_an_epoch(
    tiny_model: str, sentences: dict[str, str], size: int, accumulate: int
) -> None:
    """5 rows are one step: of a full and a short batch, of too few batches, or of one batch alone."""
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], train_samples=5)
    data.batch_size = size
    task = SequenceClassification(tiny_model, LoRA(rank=2), dtype="fp32", optimizer=Sums)
    no_dropout(task)
    keep, found = summed_gradients(task, data, accumulate)
    task.zero_grad()
    losses = torch.cat([task.row_losses(task(batch), batch)["loss"] for batch in keep.batches])
    assert len(losses) == 5
    losses.mean().backward()
    expected = {name: p.grad for name, p in task.backbone.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_epoch_of_a_classifier_sums_to_the_mean_over_rows(
    tiny_model: str, sentences: dict[str, str], accumulate: int
) -> None:
    options: dict[str, Any] = {"train_samples": 90, "batch_tokens": 60, "seed": 0}
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], **options)
    task = SequenceClassification(tiny_model, LoRA(rank=2), dtype="fp32", optimizer=Sums)
    no_dropout(task)
    check(task, data, accumulate)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_epoch_of_a_language_model_counts_batches_by_their_rows(
    tmp_path: Path, byte_llama: str, accumulate: int
) -> None:
    rows = [{"instruction": "a" * (1 + i % 7), "input": "", "output": "bcd" * (1 + i % 90)} for i in range(90)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    file = str(tmp_path / "rows.json")
    data = Alpaca(tokenizer=byte_llama, train_file=file, val_file=file, max_length=512, batch_tokens=1500, seed=0)
    task = CausalLM(byte_llama, LoRA(rank=2), dtype="fp32", optimizer=Sums)
    check(task, data, accumulate)


def no_dropout(task: Any) -> None:
    """Let the task build its model without dropout: other masks would give other gradients."""
    build = task.build

    def built(*arguments: Any, **options: Any) -> None:
        build(*arguments, **options)
        for module in task.backbone.modules():
            if hasattr(module, "p"):
                module.p = 0.0

    task.build = built


def test_the_average_over_ranks_is_that_over_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = SimpleNamespace(sampler=SimpleNamespace(mean_rows=8.0))
    trainer = SimpleNamespace(train_dataloader=loader)
    losses, rows = torch.tensor([1.0, 4.0]), (3, 1)
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    shares = [row_weighted(loss, n, sum(rows), trainer) for loss, n in zip(losses, rows, strict=True)]
    assert float(sum(shares) / 2) == pytest.approx((3 * 1.0 + 4.0) / 4 * (4 / 8))  # half of the mean batch
    loader.sampler.mean_rows = None
    shares = [row_weighted(loss, n, sum(rows), trainer) for loss, n in zip(losses, rows, strict=True)]
    assert float(sum(shares) / 2) == pytest.approx((3 * 1.0 + 4.0) / 4)
    monkeypatch.setattr(processes, "sum_over_ranks", lambda values: 2 * values)
    assert share_of_mean_batch(3, trainer, torch.device("cpu")) is None
    loader.sampler.mean_rows = 8.0
    assert float(share_of_mean_batch(3, trainer, torch.device("cpu"))) == 6 / 8


def test_the_command_line_takes_it_and_the_record_has_the_mean_rows(
    tmp_path: Path,
    fit_arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [*fit_arguments, "--data.batch_tokens", "64", "--run_dir", str(tmp_path / "run")]
    assert main([*arguments, "--trainer.max_epochs", "1", "--trainer.accumulate_grad_batches", "2"]) == 0
    record = read_record(tmp_path / "run")
    assert record["status"] == "ok"
    rows, batches = record["data_summary"]["rows"]["train"], 2 * record["steps"]
    assert record["effective_batch_size"] == pytest.approx(2 * rows / batches, abs=1.1)
    assert record["config"]["data"]["init_args"]["batch_tokens"] == 64
    told = r"batches of at most 64 tokens per device \(data.batch_tokens\), ([\d.]+) rows on average"
    (mean,) = re.findall(told, capsys.readouterr().err)
    assert round(2 * float(mean)) == pytest.approx(record["effective_batch_size"], abs=1)
    monkeypatch.setattr(FitCLI, "after_validate", lambda cli: loaders.append(cli.trainer.val_dataloaders))
    evaluate = ["validate", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    loaders: list[Any] = []
    for more in ([], ["--data.batch_size", "3"], ["--data.batch_size", "3", "--data.batch_tokens", "96"]):
        assert main([*evaluate, *more]) == 0
    by_tokens, by_rows, by_more_tokens = (list(map(len, loader.sampler)) for loader in loaders)
    assert set(by_rows[:-1]) == {3}
    assert len(by_more_tokens) < len(by_tokens) != len(by_rows)


def test_a_run_stopped_within_an_epoch_resumes_exactly(tmp_path: Path, fit_arguments: list[str]) -> None:
    stop = ["--trainer.callbacks", "tests.training.faults.SignalTo", "--trainer.callbacks.rank", "0"]
    stop += ["--trainer.callbacks.number", "15", "--trainer.callbacks.batch", "4"]
    arguments, log = [*fit_arguments, "--data.batch_tokens", "64", "--trainer.max_epochs", "2"], tmp_path / "log"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run([*arguments, "--run_dir", str(whole)], log) == 0, log.read_text()
    assert run([*arguments, *stop, "--run_dir", str(stopped)], log) == 143, log.read_text()
    assert 0 < read_record(stopped)["steps"] < read_record(whole)["steps"] / 2
    assert run([*arguments, "--run_dir", str(stopped), "--resume"], log) == 0, log.read_text()
    assert differences(whole, stopped) == []
    changed = ["fit", "--run_dir", str(stopped), "--resume", "--data.batch_tokens", "32", "--trainer.max_epochs", "3"]
    assert run(changed, log) == 2
    assert "--resume: data.init_args.batch_tokens is 32, but" in log.read_text()

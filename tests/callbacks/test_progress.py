"""Progress lines where there is no terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from litpeft.__main__ import main
from litpeft.callbacks import progress


@pytest.mark.parametrize(("seconds", "steps"), [(1000.0, [1]), (0.0, list(range(1, 13)))])
def test_the_first_line_comes_after_the_first_step(
    seconds: float,
    steps: list[int],
    tmp_path: Path,
    fit_arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
    options = ["--trainer.enable_progress_bar", "true", "--trainer.max_steps", "12"]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ") and "train_loss" in line]
    assert [int(line.split()[1].partition("/")[0]) for line in lines] == steps
    assert lines[0].startswith("step 1/12, train_loss ")
    assert ["left" in line for line in lines] == [False] + [True] * (len(steps) - 1)  # the first step is no measure


@pytest.mark.parametrize(("epochs", "text"), [(None, "Epoch 1"), (-1, "Epoch 1"), (3, "Epoch 1/3")])
def test_epochs_count_from_one_and_have_a_total_only_if_there_is_one(epochs: int | None, text: str) -> None:
    bar = progress.ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=epochs)
    assert bar._get_train_description(0) == text


class Piped(io.StringIO):
    """An output whose reader sees what has been flushed."""

    seen = ""

    def flush(self) -> None:
        self.seen = self.getvalue()


def test_a_pipe_shows_each_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Piped()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    metrics = {"train_loss": torch.tensor(0.5), "val_loss": torch.tensor(0.25)}
    trainer = SimpleNamespace(global_step=0, sanity_checking=False, callback_metrics=metrics)
    task, lines = SimpleNamespace(total_steps=lambda: 4), progress.ProgressLines()
    lines.on_train_start(trainer, task)
    trainer.global_step = 1
    lines.on_train_batch_end(trainer, task)
    assert out.seen == "step 1/4, train_loss 0.5000\n"
    lines.on_benchmark_progress(trainer, "arithmetic", 3, 9)
    assert out.seen.endswith("\nstep 1: arithmetic 3/9\n")
    lines.on_benchmark_end(trainer, task, 1, {"arithmetic": SimpleNamespace(scores={"acc": 0.75})})
    assert out.seen.endswith("\nstep 1: arithmetic acc 0.7500\n")
    lines.on_validation_end(trainer, task)
    assert out.seen.endswith("\nstep 1: val_loss 0.2500\n")


def test_lines_come_every_five_seconds_with_the_seconds_that_are_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step takes two seconds, and the first one ten."""
    now, metrics = [100.0], {"train_loss": torch.tensor(0.5)}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    trainer = SimpleNamespace(global_step=4, sanity_checking=False, callback_metrics=metrics)  # resumed at step 4
    lines = progress.ProgressLines()
    for total in (14, None):
        task = SimpleNamespace(total_steps=lambda total=total: total)
        trainer.global_step = 4
        lines.on_train_start(trainer, task)
        now[0] += 10
        lines.on_train_batch_end(trainer, task)  # of several batches, without a step
        for _ in range(7):
            trainer.global_step += 1
            lines.on_train_batch_end(trainer, task)
            now[0] += 2
    assert capsys.readouterr().out.splitlines() == [
        "step 5/14, train_loss 0.5000",
        "step 8/14, train_loss 0.5000, 24 s left",  # 16 seconds for 4 steps, 6 are left
        "step 11/14, train_loss 0.5000, 9 s left",
        "step 5, train_loss 0.5000",
        "step 8, train_loss 0.5000",
        "step 11, train_loss 0.5000",
    ]
    now[0] += 2.9  # 4.9 seconds after the last line
    for done in (0, 3):
        lines.on_benchmark_progress(trainer, "arithmetic", done, 9)
    now[0] += 0.2
    for done in (0, 5, 6):
        lines.on_benchmark_progress(trainer, "arithmetic", done, 9)
    metrics |= {"val_loss": torch.tensor(1.0), "val_accuracy": torch.tensor(0.25)}
    lines.on_validation_end(trainer, task)
    trainer.sanity_checking = True
    lines.on_validation_end(trainer, task)
    assert capsys.readouterr().out.splitlines() == [
        "step 11: arithmetic 5/9",
        "step 11: val_accuracy 0.2500, val_loss 1.0000",
    ]


def test_each_benchmark_has_a_bar_of_its_own_until_it_ends() -> None:
    bar, tasks, updates = progress.ProgressBar(), {}, []

    def add(total: int, name: str) -> int:
        tasks[len(updates)] = (name, total)
        return len(updates)

    bar.on_benchmark_progress(None, "a", 1, 3)  # without a bar, in another process
    bar.progress = SimpleNamespace(
        update=lambda task, completed, total: updates.append((tasks[task][0], completed, total)),
        remove_task=lambda task: tasks.pop(task),
    )
    bar._add_task, bar.refresh = add, lambda: None
    for name, done in (("a", 1), ("a", 3), ("b", 2)):
        bar.on_benchmark_progress(None, name, done, 3)
        assert [shown for shown, _ in tasks.values()] == [name]
    assert updates == [("a", 1, 3), ("a", 3, 3), ("b", 2, 3)]
    bar.on_benchmark_end()
    assert tasks == {}


@pytest.mark.parametrize(("current", "epochs", "text"), [(4, 7, "Epoch 5/7"), (0, 1, "Epoch 1/1"), (2, 0, "Epoch 3")])
def test_the_epoch_is_shown_from_one(current: int, epochs: int, text: str) -> None:
    bar = progress.ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=epochs)
    assert bar._get_train_description(current) == text

"""Which checkpoints are saved and kept, on a made-up trainer: by steps, minutes and metrics."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors import SafetensorError

from litpeft.adapters import LoRA
from litpeft.callbacks import checkpoint_io
from litpeft.callbacks.checkpoint import Checkpoint
from litpeft.data import SST2
from litpeft.errors import UserError
from litpeft.runs.folder import checkpoints
from litpeft.tasks import SequenceClassification
from litpeft.training import processes
from litpeft.training.loop import save_between_steps
from tests.conftest import QUIET


class Made:
    """A trainer that saves empty checkpoints.

    Args:
        folder: the run folder.
        checkpoint: the callback.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, **more: Any) -> None:
        self.default_root_dir, self.global_step, self.callback_metrics = str(folder), 0, {}
        self.state, self.sanity_checking, self.enable_validation = SimpleNamespace(fn="fit"), False, True
        self.should_stop = self.received_sigterm = self.accumulates = False
        self.is_global_zero, self.loggers, self.max_epochs, self.max_steps = True, [], 3, -1
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))
        loop = SimpleNamespace(_should_accumulate=lambda: self.accumulates)
        self.fit_loop, self.told = SimpleNamespace(epoch_loop=loop), []
        self.callbacks = [checkpoint, SimpleNamespace(on_saved=lambda trainer: self.told.append(self.global_step))]
        vars(self).update(more)

    def save_checkpoint(self, path: Path) -> None:
        path.mkdir(parents=True)

    def kept(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in Path(self.default_root_dir, "checkpoints").glob("step-*"))


TASK = SimpleNamespace(monitor=("val_loss", "min"))


def started(folder: Path, checkpoint: Checkpoint, task: Any = TASK, **more: Any) -> Made:
    trainer = Made(folder, checkpoint, **more)
    try:
        checkpoint.on_train_start(trainer, task)
    finally:
        checkpoint.stop.forget()  # pytest's own handlers
    return trainer


def step_to(trainer: Made, checkpoint: Checkpoint, step: int, **metrics: float) -> None:
    """Make the steps up to this one, and validate if there are metrics."""
    while trainer.global_step < step:
        trainer.global_step += 1
        if trainer.global_step == step and metrics:
            trainer.callback_metrics = {name: torch.tensor(value) for name, value in metrics.items()}
            checkpoint.on_validation_end(trainer, TASK)
        checkpoint.between_steps(trainer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every_n_steps": 0}, "checkpoint.every_n_steps must be at least 1, got 0."),
        ({"every_n_minutes": 0}, "checkpoint.every_n_minutes must be more than 0, got 0."),
        ({"every_n_minutes": float("nan")}, "checkpoint.every_n_minutes must be more than 0, got nan."),
        ({"keep": 0}, "checkpoint.keep must be last, best, all or at least 1, got 0."),
    ],
)
def test_numbers_below_the_limits_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Checkpoint(**options)
    assert str(error.value) == sentence
    Checkpoint(**{name: 0.01 if name == "every_n_minutes" else 1 for name in options})


@pytest.mark.parametrize(
    ("keep", "during", "after"),
    [("last", [6, 8], [8]), (1, [6, 8], [8]), (2, [6, 8], [6, 8]), (3, [4, 6, 8], [4, 6, 8]), ("all", [2, 4, 6, 8], [2, 4, 6, 8])],
)  # fmt: skip
def test_during_a_run_two_checkpoints_are_kept_and_afterwards_what_was_asked_for(
    keep: Any, during: list[int], after: list[int], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(every_n_steps=2, keep=keep)
    trainer = started(tmp_path, checkpoint)
    step_to(trainer, checkpoint, 9)
    assert trainer.kept() == during
    assert trainer.told == [2, 4, 6, 8]
    trainer.global_step = 8
    checkpoint.on_train_end(trainer, TASK)
    assert trainer.kept() == after
    assert trainer.told == [2, 4, 6, 8]  # the last step is saved already
    assert checkpoint.measured() == {"checkpoint": "checkpoints/step-000008", "selection": "last", "val_step": None}


def test_the_last_step_and_each_validation_are_saved(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    trainer = started(tmp_path, checkpoint)
    step_to(trainer, checkpoint, 3, val_loss=1.0)
    step_to(trainer, checkpoint, 5)
    assert trainer.told == [3]
    checkpoint.on_train_end(trainer, TASK)
    assert (trainer.told, trainer.kept()) == ([3, 5], [5])
    assert checkpoint.measured() == {"checkpoint": "checkpoints/step-000005", "selection": "last", "val_step": 3}
    for other in ({"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}):
        checkpoint = Checkpoint()
        trainer = started(tmp_path / "other", checkpoint, **other)
        step_to(trainer, checkpoint, 2, val_loss=1.0)
        assert (trainer.told, checkpoint.val_step) == ([], None)


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", {1: 3.0, 2: 1.0, 3: 2.0}, 2),
        ("max", {1: 3.0, 2: 1.0, 3: 2.0}, 1),
        ("min", {1: 1.0, 2: 1.0, 3: 1.0}, 1),  # the first of equal ones
        ("max", {1: float("nan"), 2: -1.0, 3: -2.0}, 2),
        ("max", {1: -3.0, 2: -1.0, 3: -2.0}, 2),
    ],
)
def test_the_best_weights_are_kept_beside_the_last(
    mode: str, values: dict[int, float], best: int, tmp_path: Path
) -> None:
    checkpoint, task = Checkpoint(keep="best"), SimpleNamespace(monitor=("val_f1", mode))
    trainer = started(tmp_path, checkpoint, task)
    for step, value in values.items():
        step_to(trainer, checkpoint, step, val_f1=value, val_loss=step / 8, train_loss=7.0)
    step_to(trainer, checkpoint, 6)
    checkpoint.on_train_end(trainer, task)
    assert trainer.kept() == [best, 6]
    measured = checkpoint.measured()
    assert (measured["checkpoint"], measured["selection"]) == (f"checkpoints/step-{best:06d}", "best val_f1")
    assert (measured["val_f1"], measured["val_loss"], measured["val_step"]) == (values[best], best / 8, best)
    assert "train_loss" not in measured


def test_the_best_weights_need_a_validation_after_a_whole_step(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^checkpoint\.keep best needs validation; leave out trainer\.limit_val_batche"
    ):
        started(tmp_path, Checkpoint(keep="best"), enable_validation=False)
    started(tmp_path, Checkpoint(), enable_validation=False)
    for keep in ("best", "last"):
        checkpoint = Checkpoint(keep=keep)
        trainer = started(tmp_path, checkpoint, accumulates=True)
        if keep == "last":
            checkpoint.on_validation_end(trainer, TASK)
        else:
            with pytest.raises(
                UserError, match=r"^checkpoint\.keep best: trainer\.val_check_interval must be a multip"
            ):
                checkpoint.on_validation_end(trainer, TASK)


def test_checkpoints_are_due_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(every_n_minutes=2)
    trainer = started(tmp_path, checkpoint)
    for step, seconds in enumerate((119.0, 1.0, 119.0, 0.5, 0.5, 300.0), start=1):
        now[0] += seconds
        step_to(trainer, checkpoint, step)
    assert trainer.told == [2, 5, 6]


def test_a_resumed_run_does_not_save_its_checkpoint_again(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    trainer = started(tmp_path, checkpoint, global_step=4)
    checkpoint.on_train_end(trainer, TASK)
    assert (trainer.told, checkpoint.measured()["checkpoint"]) == ([], "checkpoints/step-000004")


def test_a_checkpoint_that_could_not_be_written_is_not_named(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    checkpoint = Checkpoint(every_n_steps=1)
    trainer = started(tmp_path, checkpoint)
    step_to(trainer, checkpoint, 1)
    trainer.save_checkpoint = full
    with pytest.raises(OSError, match="No space left"):
        step_to(trainer, checkpoint, 2)
    assert checkpoint.measured()["checkpoint"] == "checkpoints/step-000001"


def test_a_signal_saves_and_then_stops(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    trainer = started(tmp_path, checkpoint)
    step_to(trainer, checkpoint, 2)
    checkpoint.stop.received = signal.SIGTERM
    with pytest.raises(SIGTERMException) as stopped:
        step_to(trainer, checkpoint, 3)
    assert (trainer.told, stopped.value.code) == ([3], 128 + 15)
    checkpoint.stop.received = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        step_to(trainer, checkpoint, 4)
    assert trainer.told == [3, 4]


@pytest.mark.parametrize(
    ("more", "saved"), [({}, True), ({"accumulates": True}, False), ({"sanity_checking": True}, True)]
)
def test_in_a_validation_a_signal_stops_after_a_whole_step_only(
    more: dict[str, Any], saved: bool, tmp_path: Path
) -> None:
    checkpoint = Checkpoint()
    trainer = started(tmp_path, checkpoint, **more)
    trainer.global_step = 2
    checkpoint.on_validation_batch_end(trainer, TASK)
    assert trainer.told == []
    checkpoint.stop.received = signal.SIGTERM
    if saved:
        with pytest.raises(SIGTERMException):
            checkpoint.on_validation_batch_end(trainer, TASK)
    else:
        checkpoint.on_validation_batch_end(trainer, TASK)
    assert (trainer.told, checkpoint.validation_due) == (([2], True) if saved else ([], False))


def test_a_signal_during_loading_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        started(tmp_path, Checkpoint(), received_sigterm=True)


def test_metrics_and_an_early_end_are_in_the_checkpoint(tmp_path: Path) -> None:
    checkpoint, state = Checkpoint(), {}
    trainer = started(tmp_path, checkpoint, callback_metrics={"val_loss": torch.tensor(0.5)})
    checkpoint.on_save_checkpoint(trainer, TASK, state)
    assert (state["metrics"]["val_loss"].item(), state["stopping"]) == (0.5, None)
    trainer.should_stop = True
    checkpoint.on_save_checkpoint(trainer, TASK, state)
    assert state["stopping"] == [3, -1, None]
    hour = Timer({"hours": 1})
    for saved, limits, timers, stops in (
        ([3, -1, None], [3, -1], [], True), ([3, -1, None], [4, -1], [], False),  # a higher limit
        ([3, -1, 3600.0], [3, -1], [hour], True), ([3, -1, 1800.0], [3, -1], [hour], False),  # more time
        ([3, -1, 3600.0], [3, -1], [], False), ([3, -1, None], [3, -1], [Timer()], True),
        ([3, -1], [3, -1], [], True), ([3, -1], [4, -1], [hour], False),  # of an older version
    ):  # fmt: skip
        again, state["stopping"] = Checkpoint(), saved
        resumed = Made(tmp_path, again, max_epochs=limits[0], max_steps=limits[1])
        resumed.callbacks = [*resumed.callbacks, *timers]
        again.on_load_checkpoint(resumed, TASK, state)
        assert (resumed.should_stop, again.epoch_due) == (stops, stops)
        again.on_train_start(resumed, TASK)
        again.stop.forget()
        assert resumed.callback_metrics["val_loss"].item() == 0.5


def test_random_numbers_go_on_after_a_resume() -> None:
    first, second = Checkpoint(), Checkpoint()
    torch.manual_seed(5)
    state = first.state_dict()
    expected = torch.rand(3)
    second.load_state_dict(state)
    torch.manual_seed(6)
    second.restore()
    assert torch.equal(torch.rand(3), expected)
    second.restore()  # once
    assert not torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("message", "number"), [("I/O error: No space left on device (os error 28)", 28), ("header too large", None)]
)
def test_a_full_disk_is_an_error_of_the_system_also_where_safetensors_writes(
    message: str, number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError(message)

    monkeypatch.setattr(checkpoint_io, "save_file", fail)
    with pytest.raises(SafetensorError if number is None else OSError) as error:
        checkpoint_io.FolderCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "step-000001")
    if number is None:
        assert str(error.value) == message
    else:
        assert (error.value.errno, error.value.filename) == (number, str(tmp_path / "step-000001"))
        assert error.value.strerror == "No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_the_newest_undamaged_checkpoint_before_a_damaged_one_is_named(tmp_path: Path) -> None:
    io = checkpoint_io.FolderCheckpointIO()
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        io.save_checkpoint({"state_dict": {"w": torch.ones(2)}, "step": step}, folder / f"step-{step:06d}")
    assert io.load_checkpoint(folder / "step-000004")["step"] == 4
    for step, before in ((6, 4), (4, 2), (2, None)):
        (folder / f"step-{step:06d}" / "loop.pt").write_bytes(b"damaged")
        remedy = (
            f"remove that folder to use step-{before:06d}, the checkpoint before it"
            if before
            else "there is no earlier checkpoint; train again with --overwrite"
        )
        with pytest.raises(UserError, match=rf"loop\.pt is damaged: its checksum differs from SHA256SUMS; {remedy}\.$"):
            io.load_checkpoint(folder / f"step-{step:06d}")
    with pytest.raises(
        UserError, match="a litpeft checkpoint is a folder with trainable.safetensors, loop.pt and SHA256SUMS"
    ):
        io.load_checkpoint(tmp_path / "mine")
    io.remove_checkpoint(folder / "step-000006")
    assert not (folder / "step-000006").exists()


def test_a_checkpoint_is_read_into_the_memory_that_is_asked_for(tmp_path: Path) -> None:
    io = checkpoint_io.FolderCheckpointIO()
    io.save_checkpoint({"state_dict": {}, "momentum": torch.ones(2)}, tmp_path / "step-000002")
    for asked, device in ((None, "cpu"), ("cpu", "cpu"), ("meta", "meta")):
        found = io.load_checkpoint(tmp_path / "step-000002", map_location=asked)
        assert found["momentum"].device.type == device


@pytest.mark.parametrize(
    ("more", "asked"),
    [({}, True), ({"sanity_checking": True}, False), ({"state": SimpleNamespace(fn="validate")}, False)],
)
def test_a_signal_of_another_process_is_heard_in_a_validation_of_training_only(
    more: dict[str, Any], asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking is collective: every process must ask, so none does in a validation that it makes alone."""
    checkpoint = Checkpoint()
    trainer = started(tmp_path, checkpoint, **more)
    monkeypatch.setattr(processes, "max_over_ranks", lambda value, device: signal.SIGTERM)
    if asked:
        with pytest.raises(SIGTERMException):
            checkpoint.on_validation_batch_end(trainer, TASK)
    else:
        checkpoint.on_validation_batch_end(trainer, TASK)
    assert checkpoint.stop.received == (signal.SIGTERM if asked else None)


def test_minutes_that_have_passed_on_another_process_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for minutes, saved in ((None, []), (60, [1])):
        checkpoint = Checkpoint(every_n_minutes=minutes)
        trainer = started(tmp_path / str(minutes), checkpoint)
        checkpoint.stop.agree = lambda device: None
        monkeypatch.setattr(processes, "max_over_ranks", lambda value, device: (asked.append(value), 1)[1])
        step_to(trainer, checkpoint, 1)
        assert trainer.told == saved
    assert asked == [0]


def test_only_the_first_process_removes_old_checkpoints(tmp_path: Path) -> None:
    checkpoint = Checkpoint(every_n_steps=1)
    trainer = started(tmp_path, checkpoint, is_global_zero=False)
    step_to(trainer, checkpoint, 5)
    assert trainer.kept() == [1, 2, 3, 4, 5]


def test_a_run_that_may_not_stop_yet_saves_after_validations_only(
    tiny_model: str, sentences: dict[str, str], tmp_path: Path
) -> None:
    """Early stopping asks for the end after the second of four epochs, and min_epochs asks for all."""
    checkpoint, stopping = Checkpoint(keep="all"), EarlyStopping("val_loss", patience=1, min_delta=10.0)
    limits = {"max_epochs": 4, "min_epochs": 4, "limit_train_batches": 3, "callbacks": [checkpoint, stopping]}
    trainer = Trainer(**QUIET | limits | {"enable_checkpointing": True, "default_root_dir": tmp_path})
    save_between_steps(trainer, checkpoint)
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"])
    trainer.fit(SequenceClassification(tiny_model, LoRA(rank=2), dtype="fp32"), datamodule=data)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:06d}" for step in (3, 6, 9, 12)]

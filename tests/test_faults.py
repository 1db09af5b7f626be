"""What can go wrong is brought about, and each ends in one sentence and loses nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litpeft.hub.base_weights import base_fingerprint
from litpeft.runs.atomic_write import damage
from litpeft.runs.folder import checkpoints, newest_checkpoint
from litpeft.runs.record import read_record
from tests.resuming import differences, run, start
from tests.torture import CASES, Torture

PLAIN, WORKERS = "none, mid-epoch", "lora, dropout, two workers"
ACCUMULATED, BETWEEN = "dora, accumulation", "validation within accumulated batches"


class Faulty:
    """A command line with a fault, in a process of its own; what it said, and how it ended."""

    def __init__(self, work: Torture, case: str, name: str) -> None:
        self.work, self.case, self.run_dir = work, case, work.place(case, name)
        self.log, self.cache = work.folder / f"{name}.log", work.folder / "cache"
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def words(self, fault: str = "", *more: str, **options: object) -> list[str]:
        given = [word for name, value in options.items() for word in (f"--trainer.callbacks.{name}", str(value))]
        callback = ["--trainer.callbacks", f"tests.faults.{fault}", *given] if fault else []
        return [*self.work.words(self.case, self.run_dir), *callback, *more]

    def __call__(self, fault: str = "", *more: str, full_at: int | None = None, **options: object) -> int:
        return run(self.words(fault, *more, **options), self.log, cache=self.cache, full_at=full_at)

    @property
    def said(self) -> str:
        """The one sentence that the user is told."""
        text = self.log.read_text()
        assert "Traceback" not in text, text
        (told,) = re.findall(r"^litpeft: (?:error|interrupted).*$", text, re.MULTILINE)
        return told

    def ends_as_one_left_alone(self) -> None:
        assert self("", "--resume") == 0, self.log.read_text()
        if self.case not in self.work.whole:
            self.work.leave_alone(self.case, times=1)
        assert differences(self.work.place(self.case, "whole"), self.run_dir) == []


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Torture:
    return Torture(tmp_path_factory.mktemp("faults") / "work", seed=0)


# --- signals

WHEN = {  # case, batch of the run after which the signal comes, where; the step that is saved
    "after a step": (PLAIN, 7, "train", 8),
    "in accumulated batches": (ACCUMULATED, 8, "train", 5),
    "in the validation of an epoch": (PLAIN, 11, "validation", 12),
    "in a validation within an epoch": (BETWEEN, 17, "validation", 5),
    "in a validation within accumulated batches": (BETWEEN, 5, "validation", 2),
    "in the last validation": ("max_steps, keep best", 19, "validation", 20),
}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}


@pytest.mark.parametrize(
    ("when", "number"), [*((when, signal.SIGTERM) for when in WHEN), *(("after a step", n) for n in CODES)]
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_it_had_not(work: Torture, when: str, number: int) -> None:
    case, batch, where, step = WHEN[when]
    fault = Faulty(work, case, "asked")
    assert fault("Signal", number=int(number), batch=batch, where=where) == CODES[number], fault.log.read_text()
    name = f"step-{step:06d}"
    assert (
        fault.said
        == f"litpeft: interrupted at step {step}; to continue from {name}, run the same command with --resume."
    )
    record = read_record(fault.run_dir)
    assert (record["status"], record["steps"], newest_checkpoint(fault.run_dir).name) == ("interrupted", step, name)
    assert record["error"] == ("KeyboardInterrupt" if number == signal.SIGINT else signal.Signals(number).name)
    fault.ends_as_one_left_alone()


def test_a_second_signal_stops_at_once(work: Torture) -> None:
    fault = Faulty(work, PLAIN, "twice")
    assert fault("Signal", number=int(signal.SIGINT), batch=7, times=2) == 130
    assert "to continue from step-000006, run the same command with --resume." in fault.said  # and not from the eighth
    fault.ends_as_one_left_alone()


@pytest.mark.parametrize("call", range(4, 12))
def test_a_run_that_is_killed_as_it_begins_does_not_use_up_its_folder(work: Torture, call: int) -> None:
    """Before each of the calls about its first files."""
    fault = Faulty(work, PLAIN, "begins")
    assert run(fault.words(), fault.log, call, fault.cache) == -9
    assert fault("", "--overwrite", "--trainer.max_steps", "1") == 0, fault.log.read_text()


# --- disks


@pytest.mark.parametrize("share", [0.02, 0.15, 0.45, 0.7, 0.98])
def test_a_disk_that_is_full_from_some_call_on_costs_no_checkpoint(work: Torture, share: float) -> None:
    if PLAIN not in work.whole:
        work.leave_alone(PLAIN)
    assert work.fill(PLAIN, max(1, int(share * work.whole[PLAIN][0]))) == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; a checkpoint of the tiny BERT takes 0.4, so the third does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("no right to mount a file system here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_file_system(work: Torture, small_disk: Path) -> None:
    """A real one: also for what writes without Python, as safetensors and torch do."""
    fault = Faulty(work, PLAIN, "filled")
    fault.run_dir = small_disk / "run"
    assert fault() == 1, fault.log.read_text()
    assert "No space left on device" in fault.said
    assert [damage(path) for path in checkpoints(fault.run_dir)] == [None, None]
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    fault.ends_as_one_left_alone()


def test_a_folder_that_cannot_be_written_to(work: Torture, small_disk: Path) -> None:
    fault = Faulty(work, PLAIN, "forbidden")
    fault.run_dir = small_disk / "run"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert fault() == 2
    assert fault.said == f"litpeft: error: --run_dir {fault.run_dir}: Read-only file system."


# --- training


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_is_told_with_its_batch_and_nothing_of_it_is_saved(work: Torture, value: str) -> None:
    """The first of two accumulated batches: the loss of the second is a number."""
    fault = Faulty(work, ACCUMULATED, value)
    assert fault("Poison", batch=20, value=value) == 2
    assert f"the training loss is {value} at step 10 (batch 8 of epoch 1, learning rate 0.00" in fault.said
    record = read_record(fault.run_dir)
    assert (record["status"], record["checkpoint"]) == ("failed", "checkpoints/step-000009")
    fault.ends_as_one_left_alone()


def test_a_worker_that_dies(work: Torture) -> None:
    fault = Faulty(work, WORKERS, "worker")
    assert fault("KillWorker") == 1
    assert re.search(r"a dataloader worker died \(.*Killed.*\).*--data.num_workers", fault.said), fault.said
    assert read_record(fault.run_dir)["status"] == "failed"


def test_two_processes_on_one_folder(work: Torture) -> None:
    """The lock ends with its process, not with the workers, which outlive it by seconds."""
    fault, told = Faulty(work, WORKERS, "two"), work.folder / "told"
    first = start(fault.words("Sleep", step=7, told=told), work.folder / "first.log", cache=fault.cache)
    while not told.exists() and first.is_alive():
        time.sleep(0.05)
    assert first.is_alive(), (work.folder / "first.log").read_text()
    before = {path: path.read_bytes() for path in fault.run_dir.rglob("*") if path.is_file()}
    for way in ("--resume", "--overwrite"):
        assert fault("", way) == 2
        assert (
            f"--run_dir {fault.run_dir} is in use by process {first.pid} on {socket.gethostname()}; wait until it ends"
            in fault.said
        )
    assert {path: path.read_bytes() for path in before} == before
    first.kill()
    first.join()
    fault.ends_as_one_left_alone()


def test_a_clock_that_is_set_back(work: Torture) -> None:
    fault = Faulty(work, PLAIN, "clock")
    assert fault("ClockBack") == 0, fault.log.read_text()
    record = read_record(fault.run_dir)
    for name in ("train_seconds", "wall_seconds", "load_seconds", "step_seconds_p50"):
        assert 0 < record[name] < 600, name
    fault.work.leave_alone(PLAIN, times=1)
    assert differences(work.place(PLAIN, "whole"), fault.run_dir) == []


def test_a_clock_that_is_set_back_between_two_parts_of_a_run(work: Torture) -> None:
    """The files of its curves are out of order by their names."""
    fault = Faulty(work, PLAIN, "order")
    assert fault("ClockAhead", number=int(signal.SIGKILL), batch=10) == -9
    assert fault("", "--resume") == 0, fault.log.read_text()
    assert len({events.name.split(".")[3][:5] for events in fault.run_dir.glob("events.*")}) == 2  # days apart
    losses = EventAccumulator(str(fault.run_dir), size_guidance={"scalars": 0}).Reload().Scalars("train_loss")
    assert sorted(event.step for event in losses) == list(range(24))


# --- files that are read


def test_a_table_that_is_damaged_in_the_cache_is_made_again(work: Torture) -> None:
    fault = Faulty(work, PLAIN, "table")
    fault.cache = work.folder / "own-cache"
    assert fault() == 0
    for harm in (lambda data: data[: len(data) // 2], lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]):
        tables = list(fault.cache.rglob("*.arrow"))
        assert len(tables) == 2
        for table in tables:
            table.write_bytes(harm(table.read_bytes()))
        assert fault("", "--overwrite") == 0, fault.log.read_text()
        assert (
            fault.log.read_text().count("is damaged: its checksum differs from SHA256SUMS; the table is built again")
            == 2
        )
    fault.work.leave_alone(PLAIN, times=1)
    assert differences(work.place(PLAIN, "whole"), fault.run_dir) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_weights_that_were_cut_short(work: Torture, tmp_path: Path, share: float) -> None:
    base = Path(shutil.copytree(work.given["bert"], tmp_path / "base"))
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    fault = Faulty(work, PLAIN, "cut")
    assert fault("", "--model.model_name", str(base)) == 2
    assert fault.said.startswith(f"litpeft: error: model.model_name {base} cannot be loaded: "), fault.said


def test_the_fingerprint_is_of_what_the_files_hold_and_not_of_where_they_lie(work: Torture, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(work.given["bert"], tmp_path / "other"))
    mark = base_fingerprint(work.given["bert"])
    assert base_fingerprint(str(base)) == mark
    tensors = load_file(base / "model.safetensors")
    large = {"large": torch.zeros(100_000)}
    marks = {mark}
    for index in (0, 50_000, 99_999):  # the ends and the middle are looked at
        large["large"].zero_()[index] = 1
        save_file(tensors | large, base / "model.safetensors", metadata={"format": "pt"})
        marks.add(base_fingerprint(str(base)))
    save_file(tensors | {"large": large["large"].half()}, base / "model.safetensors")
    assert len(marks | {base_fingerprint(str(base))}) == 5
    assert base_fingerprint("no/such-model") is None


def test_each_case_of_the_torture_is_one_of_the_matrix() -> None:
    """Every strategy is in it."""
    strategies = {"none", "lora", "dora", "qlora-nf4", "qlora-fp4", "qdora-nf4", "frozen"}
    assert strategies <= {case.split(",")[0] for case in CASES}

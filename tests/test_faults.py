"""Inject faults into runs: each ends in a one-sentence error and loses no finished work."""

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


class FaultyRun:
    """A run with an injected fault, started in a new process."""

    def __init__(self, work: Torture, case: str, name: str) -> None:
        self.work, self.case, self.run_dir = work, case, work.folder_of(case, name)
        self.log, self.cache = work.folder / f"{name}.log", work.folder / "cache"
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def arguments(self, fault: str = "", *more: str, **options: object) -> list[str]:
        values = [word for name, value in options.items() for word in (f"--trainer.callbacks.{name}", str(value))]
        callback = ["--trainer.callbacks", f"tests.faults.{fault}", *values] if fault else []
        return [*self.work.arguments(self.case, self.run_dir), *callback, *more]

    def fit(self, fault: str = "", *more: str, full_at: int | None = None, **options: object) -> int:
        """Train with a callback of tests.faults and its options; return the exit code."""
        return run(self.arguments(fault, *more, **options), self.log, cache=self.cache, full_at=full_at)

    @property
    def message(self) -> str:
        """The only error sentence of the output."""
        text = self.log.read_text()
        assert "Traceback" not in text, text
        (message,) = re.findall(r"^litpeft: (?:error|interrupted).*$", text, re.MULTILINE)
        return message

    def resumes_bit_identically(self) -> None:
        """Resume the run, and check that it ends like an uninterrupted run."""
        assert self.fit("", "--resume") == 0, self.log.read_text()
        if self.case not in self.work.references:
            self.work.run_reference(self.case, times=1)
        assert differences(self.work.folder_of(self.case, "reference"), self.run_dir) == []


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Torture:
    return Torture(tmp_path_factory.mktemp("faults") / "work", seed=0)


# --- signals

MOMENTS = {  # case, batch after which the signal comes, where, step of the saved checkpoint
    "after a step": (PLAIN, 7, "train", 8),
    "in accumulated batches": (ACCUMULATED, 8, "train", 5),
    "in the validation of an epoch": (PLAIN, 11, "validation", 12),
    "in a validation within an epoch": (BETWEEN, 17, "validation", 5),
    "in a validation within accumulated batches": (BETWEEN, 5, "validation", 2),
    "in the last validation": ("max_steps, keep best", 19, "validation", 20),
}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        *((moment, signal.SIGTERM) for moment in MOMENTS),
        ("after a step", signal.SIGINT),
        ("after a step", signal.SIGUSR1),
    ],
)
def test_a_stop_signal_saves_a_checkpoint_that_resumes_bit_identically(work: Torture, moment: str, number: int) -> None:
    case, batch, where, step = MOMENTS[moment]
    faulty = FaultyRun(work, case, "signalled")
    assert faulty.fit("Signal", number=int(number), batch=batch, where=where) == CODES[number], faulty.log.read_text()
    name = f"step-{step:06d}"
    assert (
        faulty.message
        == f"litpeft: interrupted at step {step}; to continue from {name}, run the same command with --resume."
    )
    record = read_record(faulty.run_dir)
    assert (record["status"], record["steps"], newest_checkpoint(faulty.run_dir).name) == ("interrupted", step, name)
    assert record["error"] == ("KeyboardInterrupt" if number == signal.SIGINT else signal.Signals(number).name)
    faulty.resumes_bit_identically()


def test_a_second_signal_stops_at_once(work: Torture) -> None:
    faulty = FaultyRun(work, PLAIN, "twice")
    assert faulty.fit("Signal", number=int(signal.SIGINT), batch=7, times=2) == 130
    assert "to continue from step-000006, run the same command with --resume." in faulty.message  # step 8 was not saved
    faulty.resumes_bit_identically()


@pytest.mark.parametrize("call", [pytest.param(n, marks=pytest.mark.whole if n % 2 else ()) for n in range(4, 12)])
def test_a_folder_can_be_used_again_after_a_kill_at_the_start(work: Torture, call: int) -> None:
    """Kill before each of the calls that write the first files."""
    faulty = FaultyRun(work, PLAIN, "begins")
    assert run(faulty.arguments(), faulty.log, call, faulty.cache) == -9
    assert faulty.fit("", "--overwrite", "--trainer.max_steps", "1") == 0, faulty.log.read_text()


# --- disks


@pytest.mark.parametrize(
    "share", [0.02, pytest.param(0.15, marks=pytest.mark.whole), 0.45, pytest.param(0.7, marks=pytest.mark.whole), 0.98]
)
def test_a_full_disk_loses_no_checkpoint(work: Torture, share: float) -> None:
    if PLAIN not in work.references:
        work.run_reference(PLAIN)
    assert work.fill(PLAIN, max(1, int(share * work.references[PLAIN][0]))) == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB; a checkpoint of the tiny BERT takes 0.4 MiB, so the third does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("no permission to mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_file_system_loses_no_checkpoint(work: Torture, small_disk: Path) -> None:
    """On a real file system, because safetensors and torch write without Python's calls."""
    faulty = FaultyRun(work, PLAIN, "filled")
    faulty.run_dir = small_disk / "run"
    assert faulty.fit() == 1, faulty.log.read_text()
    assert "No space left on device" in faulty.message
    assert [damage(path) for path in checkpoints(faulty.run_dir)] == [None, None]
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    faulty.resumes_bit_identically()


def test_a_read_only_folder_is_an_error(work: Torture, small_disk: Path) -> None:
    faulty = FaultyRun(work, PLAIN, "forbidden")
    faulty.run_dir = small_disk / "run"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert faulty.fit() == 2
    assert faulty.message == f"litpeft: error: --run_dir {faulty.run_dir}: Read-only file system."


# --- training


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_nan_or_infinite_loss_is_reported_with_its_batch_and_not_saved(work: Torture, value: str) -> None:
    """The loss of the first of two accumulated batches is bad, that of the second is finite."""
    faulty = FaultyRun(work, ACCUMULATED, value)
    assert faulty.fit("Poison", batch=20, value=value) == 2
    assert f"the training loss is {value} at step 10 (batch 8 of epoch 1, learning rate 0.00" in faulty.message
    record = read_record(faulty.run_dir)
    assert (record["status"], record["checkpoint"]) == ("failed", "checkpoints/step-000009")
    faulty.resumes_bit_identically()


def test_a_killed_dataloader_worker_is_an_error(work: Torture) -> None:
    faulty = FaultyRun(work, WORKERS, "worker")
    assert faulty.fit("KillWorker") == 1
    assert re.search(r"a dataloader worker died \(.*Killed.*\).*--data.num_workers", faulty.message), faulty.message
    assert read_record(faulty.run_dir)["status"] == "failed"


def test_a_second_process_on_a_locked_folder_is_refused(work: Torture) -> None:
    """The lock is released when the process dies, although its workers live seconds longer."""
    faulty, marker = FaultyRun(work, WORKERS, "two"), work.folder / "marker"
    first = start(faulty.arguments("Sleep", step=7, marker=marker), work.folder / "first.log", cache=faulty.cache)
    while not marker.exists() and first.is_alive():
        time.sleep(0.05)
    assert first.is_alive(), (work.folder / "first.log").read_text()
    before = {path: path.read_bytes() for path in faulty.run_dir.rglob("*") if path.is_file()}
    for option in ("--resume", "--overwrite"):
        assert faulty.fit("", option) == 2
        assert (
            f"--run_dir {faulty.run_dir} is in use by process {first.pid} on {socket.gethostname()}; wait until it ends"
            in faulty.message
        )
    assert {path: path.read_bytes() for path in before} == before
    first.kill()
    first.join()
    faulty.resumes_bit_identically()


def test_a_clock_set_back_changes_no_result(work: Torture) -> None:
    faulty = FaultyRun(work, PLAIN, "clock")
    assert faulty.fit("ClockBack") == 0, faulty.log.read_text()
    record = read_record(faulty.run_dir)
    for name in ("train_seconds", "wall_seconds", "load_seconds", "step_seconds_p50"):
        assert 0 < record[name] < 600, name
    faulty.work.run_reference(PLAIN, times=1)
    assert differences(work.folder_of(PLAIN, "reference"), faulty.run_dir) == []


def test_curves_are_complete_when_the_clock_is_set_back_before_a_resume(work: Torture) -> None:
    """The names of the event files are then not in the order of time."""
    faulty = FaultyRun(work, PLAIN, "order")
    assert faulty.fit("ClockAhead", number=int(signal.SIGKILL), batch=10) == -9
    assert faulty.fit("", "--resume") == 0, faulty.log.read_text()
    starts = [int(events.name.split(".")[3]) for events in faulty.run_dir.glob("events.*")]
    assert max(starts) - min(starts) > 43_200  # half a day apart
    losses = EventAccumulator(str(faulty.run_dir), size_guidance={"scalars": 0}).Reload().Scalars("train/loss")
    assert sorted(event.step for event in losses) == list(range(24))


# --- files that are read


def test_a_damaged_cached_table_is_built_again(work: Torture) -> None:
    faulty = FaultyRun(work, PLAIN, "table")
    faulty.cache = work.folder / "private-cache"
    assert faulty.fit() == 0
    for corrupt in (lambda data: data[: len(data) // 2], lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]):
        tables = list(faulty.cache.rglob("*.arrow"))
        assert len(tables) == 2
        for table in tables:
            table.write_bytes(corrupt(table.read_bytes()))
        assert faulty.fit("", "--overwrite") == 0, faulty.log.read_text()
        assert (
            faulty.log.read_text().count("is damaged: its checksum differs from SHA256SUMS; the table is built again")
            == 2
        )
    faulty.work.run_reference(PLAIN, times=1)
    assert differences(work.folder_of(PLAIN, "reference"), faulty.run_dir) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_truncated_base_weights_are_an_error(work: Torture, tmp_path: Path, share: float) -> None:
    base = Path(shutil.copytree(work.values["bert"], tmp_path / "base"))
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    faulty = FaultyRun(work, PLAIN, "cut")
    assert faulty.fit("", "--model.model_name", str(base)) == 2
    assert faulty.message.startswith(f"litpeft: error: model.model_name {base} cannot be loaded: "), faulty.message


def test_the_fingerprint_depends_on_the_weights_not_on_the_folder(work: Torture, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(work.values["bert"], tmp_path / "other"))
    fingerprint = base_fingerprint(work.values["bert"])
    assert base_fingerprint(str(base)) == fingerprint
    tensors = load_file(base / "model.safetensors")
    large = {"large": torch.zeros(100_000)}
    fingerprints = {fingerprint}
    for index in (0, 50_000, 99_999):  # samples at both ends and in the middle are hashed
        large["large"].zero_()[index] = 1
        save_file(tensors | large, base / "model.safetensors", metadata={"format": "pt"})
        fingerprints.add(base_fingerprint(str(base)))
    save_file(tensors | {"large": large["large"].half()}, base / "model.safetensors")
    assert len(fingerprints | {base_fingerprint(str(base))}) == 5
    assert base_fingerprint("no/such-model") is None


def test_the_torture_cases_cover_every_strategy() -> None:
    strategies = {"none", "lora", "dora", "qlora-nf4", "qlora-fp4", "qdora-nf4", "frozen"}
    assert strategies <= {case.split(",")[0] for case in CASES}

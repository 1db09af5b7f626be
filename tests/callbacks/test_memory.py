"""Peak memory by phase: real on the host, with a fake CUDA device for the GPU peaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from litpeft.__main__ import main
from litpeft.adapters import LoRA
from litpeft.callbacks import MemoryRecorder
from litpeft.data import SST2
from litpeft.data.sampler import LengthGroupedBatches
from litpeft.errors import UserError
from litpeft.profiling.memory import host
from litpeft.profiling.memory.tracker import MemoryTracker
from litpeft.runs.record import read_record
from litpeft.tasks import SequenceClassification
from tests import conftest

HOST_STRATEGY = SimpleNamespace(root_device=torch.device("cpu"))
QUIET = SimpleNamespace(should_update_logs=False)  # a trainer's part that says when to log
PROBE = """
from litpeft.callbacks import MemoryRecorder
from litpeft.data.sampler import LengthGroupedBatches
before = MemoryRecorder().measured()["peak_rss_bytes"]
held = bytearray(b"x" * 400_000_000)
del held
after = MemoryRecorder().measured()
print(after["peak_rss_bytes"] - before, *(after[f"peak_{name}_bytes"] for name in ("allocated", "reserved")), after["memory_phases"])
"""


def test_on_a_cpu_the_host_peak_is_measured_and_the_cuda_peak_is_null() -> None:
    parent = bytearray(b"x" * 900_000_000)  # memory of the parent process must not count
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    del parent
    grown, *cuda = done.stdout.split()
    assert 350_000_000 < int(grown) < 850_000_000  # the bytes, possibly twice during a copy
    assert cuda == ["None"] * 3


def test_each_cuda_peak_is_recorded_in_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is a fake, because CI has none; `tests/gpu` uses a real one."""
    peak = {"allocated": 0, "reserved": 0, "retries": 3}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def stats(device: torch.device) -> dict[str, int]:
        values = {f"{name}_bytes.all.peak": peak[name] for name in ("allocated", "reserved")}
        return values | {"active_bytes.all.peak": peak["allocated"], "num_alloc_retries": peak["retries"]}

    monkeypatch.setattr(torch.cuda, "memory_stats", stats)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.update(allocated=1, reserved=2))
    module = SimpleNamespace(device=torch.device("cuda"), backbone=None)
    trainer = SimpleNamespace(global_step=0, sanity_checking=False, strategy=HOST_STRATEGY, _logger_connector=QUIET)
    recorder = MemoryRecorder(track_steps=[])

    def use(amount: int) -> None:
        peak.update(allocated=max(peak["allocated"], amount), reserved=max(peak["reserved"], 2 * amount))

    recorder.setup(trainer, module, "fit")
    recorder._retries = 3  # from an earlier run in this process
    use(100)  # loading
    recorder.on_sanity_check_start(trainer, module)
    use(30)
    recorder.on_train_start(trainer, module)
    use(70)
    recorder.on_train_batch_end(trainer, module)  # gradient accumulation: no optimizer step yet
    use(90)
    trainer.global_step = 1
    recorder.on_train_batch_end(trainer, module)
    use(60)
    recorder.on_train_batch_end(trainer, module)
    recorder.on_validation_start(trainer, module)
    use(40)
    recorder.on_validation_end(trainer, module)
    recorder.on_save_checkpoint(trainer, module, {})
    use(50)
    recorder.on_train_batch_start(trainer, module)
    use(65)
    peak["retries"] = 5
    recorder.on_train_end(trainer, module)
    phases = {name: peaks["peak_allocated_bytes"] for name, peaks in recorder.phases.items()}
    assert phases == {"load": 100, "validate": 40, "first_step": 90, "train": 65, "save": 50}
    retries = {name: peaks["allocator_retries"] for name, peaks in recorder.phases.items()}
    assert retries == {"load": 0, "validate": 0, "first_step": 0, "train": 2, "save": 0}
    total = recorder.measured()
    assert (total["peak_allocated_bytes"], total["peak_reserved_bytes"]) == (100, 200)


HOST = SimpleNamespace(device=torch.device("cpu"), backbone=None)


def test_each_host_peak_is_recorded_in_its_phase() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the kernel does not allow a reset of the peak")
    trainer = SimpleNamespace(global_step=0, sanity_checking=False, strategy=HOST_STRATEGY, _logger_connector=QUIET)
    recorder = MemoryRecorder(track_steps=[])
    recorder.setup(trainer, HOST, "fit")
    held = bytearray(b"x" * 500_000_000)
    recorder.on_train_start(trainer, HOST)
    del held
    trainer.global_step = 1
    recorder.on_train_batch_end(trainer, HOST)
    recorder.on_train_end(trainer, HOST)
    load, train = (recorder.phases[name]["peak_rss_bytes"] for name in ("load", "train"))
    assert load - train > 400_000_000
    assert recorder.measured()["peak_rss_bytes"] >= load


def test_host_peaks_by_phase_are_null_if_the_peak_cannot_be_reset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "status").write_text("VmHWM:\t    2000 kB\n")
    (tmp_path / "clear_refs").mkdir()  # cannot be written to
    monkeypatch.setattr(host, "PROC", tmp_path)
    trainer = SimpleNamespace(global_step=0, sanity_checking=False, strategy=HOST_STRATEGY, _logger_connector=QUIET)
    recorder = MemoryRecorder(track_steps=[])
    recorder.setup(trainer, HOST, "fit")
    recorder.on_train_start(trainer, HOST)
    recorder.on_train_end(trainer, HOST)
    assert recorder.phases["first_step"]["peak_rss_bytes"] is None
    assert recorder.measured()["peak_rss_bytes"] == 2000 * 1024


@pytest.mark.parametrize("logs", [True, False])
def test_on_a_cpu_the_memory_of_the_process_is_logged_where_lightning_logs(logs: bool) -> None:
    logged: dict[str, float] = {}
    module = SimpleNamespace(
        device=torch.device("cpu"), backbone=None, log=lambda name, value, **_: logged.update({name: value})
    )
    connector = SimpleNamespace(should_update_logs=logs)
    trainer = SimpleNamespace(global_step=0, sanity_checking=False, strategy=HOST_STRATEGY, _logger_connector=connector)
    recorder = MemoryRecorder(track_steps=[])
    recorder.setup(trainer, module, "fit")
    recorder.on_train_start(trainer, module)
    trainer.global_step = 1
    recorder.on_train_batch_end(trainer, module)
    assert list(logged) == (["memory/rss_bytes"] if logs else [])
    assert all(10**7 < value < 10**12 for value in logged.values())


def test_tensors_of_compiled_blocks_are_not_tracked() -> None:
    module = SimpleNamespace(device=torch.device("cpu"), backbone=torch.nn.Identity(), compile_blocks=True)
    module.adapter = SimpleNamespace(roles=lambda model: {})
    trainer = SimpleNamespace(global_step=0, sanity_checking=False, strategy=HOST_STRATEGY, _logger_connector=QUIET)
    recorder = MemoryRecorder(track_steps=[0])
    recorder.setup(trainer, module, "fit")
    recorder.on_train_start(trainer, module)
    recorder.on_validation_start(trainer, module)
    recorder.on_validation_batch_start(trainer, module)
    assert recorder.tracker is None


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(UserError, match="memory.track_steps must not be negative"):
        MemoryRecorder(track_steps=[-1])


def test_memory_used_by_others_on_the_gpu_is_recorded_and_warned_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device is a fake."""
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: gib)
    recorder, gpu = MemoryRecorder(), torch.device("cuda:0")
    for free, others in ((78.5, 0.5), (60, 19)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (int(free * gib), 80 * gib))
        recorder._check_device_is_free(gpu)
        assert recorder.measured()["others_bytes"] == others * gib
    assert capsys.readouterr().err == (
        "litpeft: warning: 19.0 GiB of cuda:0 are in use before the run starts; "
        "other work on the GPU may distort times and allocator_retries.\n"
    )


class Widths(Callback):
    """Record the sequence length of the longest batch of each step."""

    seen: dict[int, int] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: dict, *_: object) -> None:
        width = batch["input_ids"].shape[1]
        self.seen[trainer.global_step] = max(self.seen.get(trainer.global_step, 0), width)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_memory_is_tracked_at_the_longest_batch_after_the_first_step(
    tmp_path: Path, fit_arguments: list[str], accumulate: int
) -> None:
    options = ["--trainer.callbacks", f"{__name__}.Widths", "--data.batch_size", "4"]
    options += ["--trainer.accumulate_grad_batches", str(accumulate), "--run_dir", str(tmp_path / "run")]
    Widths.seen = {}
    assert main([*fit_arguments, *options, "--trainer.max_steps", "5", "--seed_everything", "3"]) == 0
    record = read_record(tmp_path / "run")
    first, second = record["tracked_steps"]
    later = {step: width for step, width in Widths.seen.items() if step}
    assert (first, later[second]) == (0, max(later.values()))
    assert min(later.values()) < max(later.values())

    Widths.seen = {}  # a resumed run tracks the longest batch of the rest of its epoch
    assert main(["fit", *options, "--resume", "--trainer.max_steps", "8"]) == 0
    first, second = read_record(tmp_path / "run")["tracked_steps"]
    later = {step - 5: width for step, width in Widths.seen.items() if step > 5}
    assert (first, later[second]) == (0, max(later.values()))
    assert read_record(tmp_path / "run")["peak_tensor_bytes"] >= record["peak_tensor_bytes"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_resumed_run_tracks_the_rest_of_its_epoch_and_the_start_of_the_next_one_though_workers_are_ahead(
    tmp_path: Path, fit_arguments: list[str], workers: str
) -> None:
    """An epoch has twelve batches; the run is resumed after nine, of which the workers have then asked for more."""
    options = ["--trainer.callbacks", f"{__name__}.Widths", "--data.num_workers", workers]
    options += ["--run_dir", str(tmp_path / "run")]
    assert main([*fit_arguments, *options, "--trainer.max_steps", "9", "--memory.track_steps", "[]"]) == 0
    Widths.seen = {}
    assert main(["fit", *options, "--resume", "--trainer.max_steps", "14", "--memory.track_steps", "null"]) == 0
    first, longest, next_epoch = read_record(tmp_path / "run")["tracked_steps"]
    assert (first, next_epoch) == (0, 12 - 9)
    widths = [Widths.seen[step] for step in range(9, 14)]
    assert widths[longest] == max(widths[1:3])


@pytest.mark.parametrize("interval", ["1", "2", "3"])
def test_a_validation_between_the_batches_of_a_step_changes_no_peak_of_training(
    tmp_path: Path, fit_arguments: list[str], interval: str
) -> None:
    """Three optimizer steps of four batches each, and for comparison with a validation after each of these steps."""
    found = {}
    for every in (interval, "4"):
        run = tmp_path / every
        options = ["--trainer.accumulate_grad_batches", "4", "--trainer.val_check_interval", every]
        assert main([*fit_arguments, *options, "--trainer.max_epochs", "1", "--run_dir", str(run)]) == 0
        record = read_record(run)
        peaks = {name: phase.get("peak_tensor_bytes") for name, phase in record["memory_phases"].items()}
        split = record["memory_phases"]["validate"]["tensor_bytes"]
        found[every] = peaks["first_step"], peaks["train"], record["peak_tensor_bytes"]
        assert record["tracked_steps"] == [0, 1]
        assert peaks["validate"] < peaks["first_step"]
        assert split["activations"] == 0  # a validation keeps nothing for a backward pass
    assert found[interval] == pytest.approx(found["4"], rel=1e-3)  # numbers that a tracker has not seen being made


def test_the_peak_of_several_epochs_is_at_the_start_of_the_second(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture
) -> None:
    """There the longest batch meets the optimizer's state; the estimate knows the number of epochs."""
    rows = ["the " * (300 if place < 8 else 3) + f"\t{place % 2}" for place in range(40)]
    (tmp_path / "rows.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    file = str(tmp_path / "rows.tsv")
    options = [
        *("--model", "SequenceClassification", "--model.model_name", tiny_model, "--model.dtype", "fp32"),
        *("--model.optimizer", "torch.optim.AdamW", "--data", "SST2", "--data.train_file", file, "--data.val_file"),
        *(file, "--data.max_length", "400", "--data.batch_size", "8", "--trainer.accelerator", "cpu"),
    ]
    peaks = []
    for epochs in ("1", "2"):
        run, length = tmp_path / epochs, ["--trainer.max_epochs", epochs]
        assert main(["fit", *options, *length, "--run_dir", str(run)]) == 0
        peaks.append(read_record(run)["peak_tensor_bytes"])
        capsys.readouterr()
        assert main(["estimate", *options, *length, "--device", "cpu", "--format", "json"]) == 0
        estimated = json.loads(capsys.readouterr().out)["strategies"][0]["peak_tensor_bytes"]
        assert peaks[-1] == pytest.approx(estimated, rel=1e-3)
    assert peaks[0] < 0.99 * peaks[1]


def test_peaks_before_a_resume_are_kept(tmp_path: Path, fit_arguments: list[str]) -> None:
    """The rest of a run may have shorter batches and need less memory."""
    options = ["--data.batch_size", "8", "--run_dir", str(tmp_path / "run"), "--checkpoint.every_n_steps", "4"]
    assert main([*fit_arguments, *options, "--trainer.max_steps", "4"]) == 0
    before = read_record(tmp_path / "run")
    highest = before["memory_phases"]["train"]["peak_tensor_bytes"]
    assert main(["fit", *options, "--resume", "--trainer.max_steps", "5", "--memory.track_steps", "[]"]) == 0
    record = read_record(tmp_path / "run")
    assert record["memory_phases"]["train"]["peak_tensor_bytes"] == highest
    assert record["peak_tensor_bytes"] == before["peak_tensor_bytes"]


@pytest.mark.parametrize(
    ("total", "done", "start", "batches", "accumulate", "longest", "expected"),
    [
        (None, 0, 0, 10, 1, 3, [0, 3, 10]),  # a run without an end
        (30, 0, 0, 10, 1, 3, [0, 3, 10]),
        (10, 0, 0, 10, 1, 3, [0, 3]),  # one epoch
        (11, 0, 0, 10, 1, 3, [0, 3, 10]),
        (30, 0, 0, 10, 3, 7, [0, 2, 4]),  # the last step of the epoch has one batch
        (4, 0, 0, 10, 3, 7, [0, 2]),
        (30, 4, 4, 10, 1, 2, [0, 2, 6]),  # resumed: six batches are left
        (10, 4, 4, 10, 1, 2, [0, 2]),
        (30, 0, 0, 1, 1, None, [0, 1]),
    ],
)
def test_tracked_are_the_first_step_the_longest_batch_and_the_next_epoch(
    total: int | None, done: int, start: int, batches: int, accumulate: int, longest: int | None, expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = []

    class Sampler(LengthGroupedBatches):
        def __init__(self) -> None:
            pass

        def longest_later(self, left: int, steps: float, accumulated: int, start: int) -> int | None:
            asked.append((left, steps, accumulated, start))
            return longest

    module = SimpleNamespace(
        device=torch.device("cpu"), backbone=torch.nn.Identity(), total_steps=lambda: total,
        adapter=SimpleNamespace(roles=lambda model: {}),
    )  # fmt: skip
    trainer = SimpleNamespace(
        global_step=done, sanity_checking=False, strategy=HOST_STRATEGY, num_training_batches=batches,
        accumulate_grad_batches=accumulate, train_dataloader=SimpleNamespace(sampler=Sampler(), served=start),
    )  # fmt: skip
    recorder = MemoryRecorder()
    recorder.setup(trainer, module, "fit")
    recorder.on_train_start(trainer, module)
    assert recorder.track_steps == expected
    assert asked == [(batches - start, float("inf") if total is None else total - done, accumulate, start)]
    trainer.train_dataloader.sampler = object()  # of another data set
    other = MemoryRecorder()
    other.setup(trainer, module, "fit")
    other.on_train_start(trainer, module)
    assert other.track_steps == [0, 1]


@pytest.mark.parametrize(("steps", "tracked"), [([1], ["train", "validate"]), ([], [])])
def test_one_batch_of_validations_is_tracked(
    steps: list[int], tracked: list[str], tiny_model: str, sentences: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, phases = MemoryRecorder(track_steps=steps), []

    class Noted(MemoryTracker):
        def __enter__(self) -> MemoryTracker:
            phases.append(recorder._phase)
            return super().__enter__()

    monkeypatch.setattr("litpeft.callbacks.memory.MemoryTracker", Noted)
    data = SST2(train_file=sentences["train"], val_file=sentences["val"], batch_size=4)
    task = SequenceClassification(tiny_model, adapter=LoRA(rank=2, targets=["query"]))
    options = {"max_steps": 3, "val_check_interval": 1, "limit_val_batches": 2, "num_sanity_val_steps": 0}
    Trainer(**conftest.QUIET | options | {"callbacks": [recorder]}).fit(task, data)
    assert sorted(phases) == (["first_step"] if tracked else []) + tracked  # at the start: what loading has left
    assert ("peak_tensor_bytes" in recorder.phases["validate"]) == bool(tracked)


def test_the_peaks_of_a_run_are_those_of_training_and_not_of_benchmarks() -> None:
    recorder = MemoryRecorder()
    assert recorder.measured()["memory_phases"] is recorder.measured()["peak_tensor_bytes"] is None
    recorder.phases = {
        "load": {"peak_tensor_bytes": None, "peak_allocated_bytes": 3}, "train": {"peak_tensor_bytes": 5},
        "save": {}, "benchmark": {"peak_tensor_bytes": 9, "peak_allocated_bytes": 9, "peak_reserved_bytes": 9},
    }  # fmt: skip
    found = recorder.measured()
    names = ("peak_tensor_bytes", "peak_allocated_bytes", "peak_reserved_bytes")
    assert [found[name] for name in names] == [5, 3, None]
    assert found["memory_phases"] == recorder.phases


@pytest.mark.parametrize(("others", "warned"), [(2**30, False), (2**30 + 1, True)])
def test_a_gpu_is_busy_from_a_gibibyte(
    others: int, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000 + others + 7))
    recorder = MemoryRecorder()
    recorder._check_device_is_free(torch.device("cuda:0"))
    assert (recorder.measured()["others_bytes"], bool(capsys.readouterr().err)) == (others, warned)


def test_a_step_may_be_the_first_one() -> None:
    assert MemoryRecorder(track_steps=[0, 2]).track_steps == [0, 2]


def test_a_gpu_that_has_allocated_nothing_yet_has_peaks_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's statistics are empty until the first tensor."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {})
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    module = SimpleNamespace(device=torch.device("cuda"), backbone=None)
    recorder = MemoryRecorder(track_steps=[])
    recorder.setup(SimpleNamespace(strategy=HOST_STRATEGY), module, "fit")
    recorder.on_exception(SimpleNamespace(), module, RuntimeError())
    found = recorder.phases["load"]
    names = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_active_bytes", "allocator_retries")
    assert [found[name] for name in names] == [0, 0, 0, 0]


def test_a_tested_run_has_no_phases() -> None:
    recorder = MemoryRecorder()
    recorder.setup(SimpleNamespace(), SimpleNamespace(), "test")
    assert recorder.measured()["memory_phases"] is None


def test_on_a_gpu_the_memory_of_its_tensors_is_logged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    logged: dict[str, float] = {}
    module = SimpleNamespace(
        device=torch.device("cuda"), log=lambda name, value, batch_size: logged.update({name: value})
    )
    connector = SimpleNamespace(should_update_logs=True)
    MemoryRecorder(track_steps=[]).on_train_batch_end(
        SimpleNamespace(global_step=1, _logger_connector=connector), module
    )
    assert logged.pop("memory/rss_bytes") > 10**7
    assert logged == {"memory/allocated_bytes": 5.0, "memory/peak_allocated_bytes": 7.0}

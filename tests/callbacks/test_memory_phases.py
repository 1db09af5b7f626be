"""What memory figures are kept: the highest peak with its own split, over visits of a phase, resumes and benchmarks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback

from litpeft.callbacks import MemoryRecorder, memory
from litpeft.callbacks.throughput import PARTS, Step, ThroughputRecorder
from litpeft.profiling.memory.tracker import CATEGORIES, MemoryTracker, Peak
from litpeft.training import processes

CUDA = SimpleNamespace(device=torch.device("cuda"), backbone=None)
CPU = SimpleNamespace(device=torch.device("cpu"), backbone=None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the statistics of a fake device, which a test may change."""
    found = {f"{name}_bytes.all.peak": 0 for name in ("allocated", "reserved", "active")} | {"num_alloc_retries": 0}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: dict(found))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    return found


class FakeTracker:
    """A tracker whose peak is known."""

    def __init__(self, peak: Peak) -> None:
        self._peak = peak
        self.sent: list[object] = []

    def __exit__(self, *_: object) -> None:
        pass

    def label(self, *_: object) -> None:
        pass

    def peak(self) -> Peak:
        return self._peak

    def alive(self, category: str) -> list[object]:
        return []


def peaked(size: int) -> Peak:
    return Peak(size, {"activations": size - 1, "gradients": 1})


@pytest.mark.parametrize("sizes", [(10, 30, 20), (30, 20, 10), (10, 20, 30)])
def test_a_phase_keeps_the_highest_peak_of_its_tracked_steps_with_the_split_of_that_moment(
    sizes: tuple[int, ...],
) -> None:
    recorder, trainer = MemoryRecorder(), SimpleNamespace(optimizers=[])
    recorder._phase = "train"
    for size in sizes:
        recorder.tracker = FakeTracker(peaked(size))
        recorder._tracked(trainer)
    assert recorder.phases["train"] == {"peak_tensor_bytes": 30, "tensor_bytes": peaked(30).split}
    assert recorder.measured()["peak_tensor_bytes"] == 30


def test_a_phase_that_is_visited_again_keeps_its_highest_peak_and_all_retries(gpu: dict[str, int]) -> None:
    recorder = MemoryRecorder()
    for visit, (peak, retries) in enumerate(((100, 2), (300, 2), (200, 7))):
        recorder._enter("train", CUDA.device)
        gpu |= {"allocated_bytes.all.peak": peak, "reserved_bytes.all.peak": 2 * peak, "num_alloc_retries": retries}
        recorder._enter("validate", CUDA.device)
        assert recorder.phases["train"]["peak_allocated_bytes"] == (100, 300, 300)[visit]
    assert recorder.phases["train"]["allocator_retries"] == 7
    measured = recorder.measured()
    assert (measured["peak_allocated_bytes"], measured["peak_reserved_bytes"]) == (300, 600)


def test_benchmarks_have_a_phase_of_their_own_and_leave_the_peaks_of_training(gpu: dict[str, int]) -> None:
    recorder, trainer = MemoryRecorder(), SimpleNamespace(sanity_checking=False)
    recorder._enter("validate", CUDA.device)
    gpu |= {"allocated_bytes.all.peak": 10, "reserved_bytes.all.peak": 10}
    recorder.on_benchmark_start(trainer, CUDA)
    gpu |= {"allocated_bytes.all.peak": 99, "reserved_bytes.all.peak": 99}
    recorder.on_benchmark_end(trainer, CUDA)
    gpu |= {"allocated_bytes.all.peak": 20, "reserved_bytes.all.peak": 20}
    recorder._enter(None, CUDA.device)
    peaks = {name: phase["peak_allocated_bytes"] for name, phase in recorder.phases.items()}
    assert peaks == {"validate": 20, "benchmark": 99}
    assert recorder.measured()["peak_allocated_bytes"] == recorder.measured()["peak_reserved_bytes"] == 20


def test_a_resumed_run_keeps_the_peaks_before(gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_rss_bytes", lambda: 10**12)
    first = MemoryRecorder()
    first._enter("train", CUDA.device)
    gpu |= {"allocated_bytes.all.peak": 50, "num_alloc_retries": 3}
    first._enter(None, CUDA.device)
    state = first.state_dict()

    monkeypatch.setattr(memory, "peak_rss_bytes", lambda: 10**6)
    resumed = MemoryRecorder()
    resumed._retries = 3  # of this process
    resumed.load_state_dict(state)
    resumed._enter("train", CUDA.device)
    gpu |= {"allocated_bytes.all.peak": 40, "num_alloc_retries": 4}
    resumed._enter(None, CUDA.device)
    assert resumed.measured()["peak_rss_bytes"] == 10**12
    assert resumed.phases["train"]["peak_allocated_bytes"] == 50
    assert resumed.phases["train"]["allocator_retries"] == 3 + 1


class Tracks(Callback):
    """A callback that tracks memory in one step, as `MemoryRecorder` does."""

    tracker: Any = None


def test_a_step_in_which_memory_was_tracked_enters_no_rate() -> None:
    """Of steps that take 1 s, the tracked one takes 100 s."""
    now = [0.0]
    recorder, tracks = ThroughputRecorder(warmup_steps=0, sample_every=0), Tracks()
    recorder.clock = lambda: now[0]
    connector = SimpleNamespace(should_update_logs=False)
    trainer = SimpleNamespace(
        global_step=0, train_dataloader=None, callbacks=[tracks], loggers=[], _logger_connector=connector
    )
    counts = {"samples": 2, "tokens": 7, "padded": 10, "trained": 3}
    module = SimpleNamespace(
        device=torch.device("cpu"), gradient_checkpointing="none", compile_blocks=False, log=lambda *_, **__: None,
        token_counts=lambda batch: counts,
    )  # fmt: skip
    recorder.on_train_start(trainer, module)
    for step in range(4):
        recorder.on_train_batch_start(trainer, module, None, step)
        tracks.tracker = object() if step == 1 else None
        now[0] += 100.0 if step == 1 else 1.0
        trainer.global_step += 1
        recorder.on_train_batch_end(trainer, module, None, None, step)
    measured = recorder.measured()
    assert measured["train_tokens_per_second"] == pytest.approx(7.0)
    assert measured["train_samples_per_second"] == pytest.approx(2.0)
    assert measured["step_seconds_p95"] == pytest.approx(1.0)
    assert measured["train_seconds"] == pytest.approx(103.0)


def test_the_state_that_an_optimizer_creates_in_its_first_step_is_known_as_such() -> None:
    layer = torch.nn.Linear(30, 40)
    optimizer = torch.optim.Adam(layer.parameters())
    trainer = SimpleNamespace(optimizers=[optimizer])
    adapter = SimpleNamespace(roles=lambda model: {"base_weights": list(model.parameters())})
    task = SimpleNamespace(device=torch.device("cpu"), backbone=layer, adapter=adapter, compile_blocks=False)
    recorder = MemoryRecorder()
    recorder._phase = "first_step"
    assert recorder._track(trainer, task)
    layer(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    recorder._tracked(trainer)
    found = recorder.phases["first_step"]
    parameters = 4 * (30 * 40 + 40)
    assert found["tensor_bytes"]["base_weights"] == found["tensor_bytes"]["gradients"] == parameters
    assert found["tensor_bytes"]["optimizer_state"] >= 2 * parameters
    assert sum(found["tensor_bytes"].values()) == found["peak_tensor_bytes"]


def test_the_utilisation_is_a_share_of_the_peak_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = ThroughputRecorder(warmup_steps=0, peak_flops=100.0)
    counts = dict.fromkeys(("samples", "tokens", "padded", "trained"), 1)
    recorder.steps = [Step(2.0, counts, dict.fromkeys(PARTS, 0.5), 240)]
    for count, share in ((1, 1.2), (2, 0.6), (4, 0.3)):
        monkeypatch.setattr(processes, "world_size", lambda count=count: count)
        assert recorder.measured()["model_flops_per_second"] == 120.0
        assert recorder.measured()["flops_utilisation"] == pytest.approx(share)


def test_training_time_and_tokens_before_a_resume_count() -> None:
    recorder = ThroughputRecorder()
    recorder.load_state_dict({"train_seconds": 10.0, "train_tokens": 500})
    assert recorder.progress() == (500, 10.0)
    assert recorder.measured()["train_seconds"] == 10.0
    state = recorder.state_dict()
    assert (state["train_seconds"], state["train_tokens"]) == (10.0, 500)


def test_a_peak_includes_its_first_and_its_last_operation_and_its_split_adds_up() -> None:
    tracker = MemoryTracker(torch.device("cpu"))
    held = []
    with tracker:
        for size in (10, 1000, 100):
            held = [torch.ones(size)]
            del held[:]
    sizes = [tracker.peak(number, number).bytes for number in range(tracker.operations + 1)]
    assert max(sizes) == tracker.peak().bytes >= 4000
    for first in range(tracker.operations + 1):
        for last in range(first, tracker.operations + 1):
            found = tracker.peak(first, last)
            assert found.bytes == max(sizes[first : last + 1])
            assert sum(found.split.values()) == found.bytes
            assert found.split.keys() == CATEGORIES.keys()

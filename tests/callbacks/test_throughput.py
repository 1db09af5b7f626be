"""Throughput with a fake clock: exact rates, and the times that are excluded."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from litpeft.__main__ import main
from litpeft.callbacks import ThroughputRecorder
from litpeft.callbacks.throughput import PARTS, Step
from litpeft.errors import UserError
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from litpeft.training import processes
from tests.conftest import QUIET

COUNTED = {"samples": 4, "tokens": 1, "padded": 1, "trained": 1}

# seconds: waiting for a batch, the parts of a step, work between steps
WAIT, FORWARD, BACKWARD, OPTIMIZER, OTHER = 0.25, 1.0, 2.0, 0.5, 100.0
BATCH = WAIT + FORWARD + BACKWARD
SLOW = 3.0  # extra seconds in the forward pass of the eighth step
FLOPS = 2 * 2 * 5 * 2  # of Linear(5, 1) on two rows: forward and weight gradient; the input needs no gradient


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class Loader:
    """Yields batches, and reports each request, like ResumableLoader."""

    def __init__(self, clock: Clock, batches: int) -> None:
        self.clock, self.batches, self.on_request = clock, batches, lambda: None

    def __len__(self) -> int:
        return self.batches

    def __iter__(self):
        for i in range(self.batches):
            self.on_request()
            self.clock.spend(WAIT * (8 if i == 0 else 1))
            yield torch.full((2, 5), float(i))


class Optimizer(torch.optim.SGD):
    """Takes time for the optimizer step after the closure with forward and backward."""

    clock: Clock

    def step(self, closure):
        loss = closure()
        self.clock.spend(OPTIMIZER)
        return loss


class Module(L.LightningModule):
    compile_blocks, gradient_checkpointing = False, "none"

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.layer = torch.nn.Linear(5, 1)

    def token_counts(self, batch: torch.Tensor) -> dict:
        return {"samples": 2, "tokens": torch.tensor(7), "padded": 10, "trained": 3}

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.clock.spend(FORWARD + (SLOW if self.trainer.global_step == 7 else 0))
        loss = self.layer(batch).sum()
        loss.register_hook(lambda _: self.clock.spend(BACKWARD))
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.clock.spend(OTHER)

    def configure_optimizers(self):
        optimizer = Optimizer(self.parameters(), lr=0.0)
        optimizer.clock = self.clock
        return optimizer


class Slow(L.Callback):
    """Another callback that takes time after each batch, for example to save a checkpoint."""

    def on_train_batch_end(self, trainer, module, *args) -> None:
        module.clock.spend(OTHER)


def fit(tmp_path: Path, recorder: ThroughputRecorder, batches: int, accumulate: int = 1, **options) -> dict:
    recorder.clock = clock = Clock()
    module = Module(clock)
    for name, value in options.items():
        setattr(module, name, value)
    trainer = L.Trainer(
        **QUIET | {"logger": CSVLogger(tmp_path, "", "")}, max_epochs=1, accumulate_grad_batches=accumulate,
        callbacks=[recorder, Slow()], default_root_dir=tmp_path, val_check_interval=0.5,
    )  # fmt: skip
    trainer.fit(module, Loader(clock, batches), Loader(clock, 2))
    return recorder.measured()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_only_training_steps_are_timed(tmp_path: Path, accumulate: int) -> None:
    measured = fit(tmp_path, ThroughputRecorder(warmup_steps=2, sample_every=0), 6 * accumulate, accumulate)
    step = accumulate * BATCH + OPTIMIZER
    assert measured["train_seconds"] == pytest.approx(6 * step + 7 * WAIT)  # the first batch came late
    assert measured["step_seconds_p50"] == measured["step_seconds_p95"] == pytest.approx(step)
    assert measured["train_samples_per_second"] == pytest.approx(2 * accumulate / step)
    assert measured["train_tokens_per_second"] == pytest.approx(7 * accumulate / step)
    assert measured["padded_tokens_per_second"] == pytest.approx(10 * accumulate / step)
    assert measured["trained_tokens_per_second"] == pytest.approx(3 * accumulate / step)
    assert measured["warmup_steps_left_out"] == 2
    assert measured["sampled_steps"] == 0
    sampled = ("step_split_seconds_p50", "step_split_seconds_p95", "model_flops_per_step", "model_flops_per_second")
    assert {measured[name] for name in sampled} == {None}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sampled_steps_are_split_into_parts_and_excluded_from_step_seconds(tmp_path: Path, accumulate: int) -> None:
    """Of ten steps, the two of warm-up are excluded, and the fourth, sixth, eighth and tenth are sampled."""
    recorder = ThroughputRecorder(warmup_steps=2, sample_every=2, peak_flops=100.0)
    measured = fit(tmp_path, recorder, 10 * accumulate, accumulate)
    step = accumulate * BATCH + OPTIMIZER
    assert [i for i, step in enumerate(recorder.steps) if step.parts is not None] == [3, 5, 7, 9]
    assert all(sum(step.parts.values()) == pytest.approx(step.seconds) for step in recorder.steps if step.parts)
    assert measured["sampled_steps"] == 4
    assert measured["step_seconds_p95"] == pytest.approx(step)  # excludes the slow eighth step, which is sampled
    parts = {"data_wait": accumulate * WAIT, "forward": accumulate * FORWARD, "backward": accumulate * BACKWARD}
    parts["optimizer"] = OPTIMIZER
    assert measured["step_split_seconds_p50"] == pytest.approx(parts)
    # the 95th percentile of four values lies at 0.85 between the third and the fourth
    parts["forward"] += 0.85 * accumulate * SLOW
    assert measured["step_split_seconds_p95"] == pytest.approx(parts)
    assert measured["model_flops_per_step"] == accumulate * FLOPS
    rate = 4 * accumulate * FLOPS / (4 * step + accumulate * SLOW)
    assert measured["model_flops_per_second"] == pytest.approx(rate)
    assert measured["peak_flops_per_second"] == 100.0
    assert measured["flops_utilisation"] == pytest.approx(rate / 100)
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["step_seconds/forward"]]
    assert [int(row["step"]) for row in rows] == [3, 5, 7, 9]
    assert float(rows[2]["step_seconds/forward"]) == pytest.approx(accumulate * (FORWARD + SLOW))
    assert float(rows[0]["model_flops_per_second"]) == pytest.approx(accumulate * FLOPS / step)


@pytest.mark.parametrize("options", [{"compile_blocks": True}, {"gradient_checkpointing": "reentrant"}])
def test_flops_are_null_when_they_cannot_be_counted(tmp_path: Path, options: dict) -> None:
    measured = fit(tmp_path, ThroughputRecorder(warmup_steps=0, sample_every=2, peak_flops=1.0), 4, **options)
    assert measured["step_split_seconds_p50"]["forward"] == pytest.approx(FORWARD)
    assert {measured[name] for name in ("model_flops_per_step", "model_flops_per_second", "flops_utilisation")} == {
        None
    }


def test_steps_with_memory_tracking_are_excluded_from_all_figures() -> None:
    recorder = ThroughputRecorder(warmup_steps=0)
    split = dict.fromkeys(PARTS, 1.0)
    recorder.steps = [Step(2.0, COUNTED), Step(8.0, COUNTED, slowed=True)]
    recorder.steps += [Step(4.0, COUNTED, split, 12), Step(99.0, COUNTED, split, 12, slowed=True)]
    measured = recorder.measured()
    assert (measured["step_seconds_p95"], measured["sampled_steps"], measured["model_flops_per_second"]) == (
        2.0,
        1,
        3.0,
    )


class FakeGpu:
    """A queue of work. The GPU starts work when it is queued, or when the work before it is done."""

    def __init__(self, host: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.free_at, self.waits = host, host.now, 0
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.wait(self.free_at))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: FakeEvent(self))

    def queue(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.host.now) + seconds

    def wait(self, until: float) -> None:
        self.waits += 1
        self.host.now = max(self.host.now, until)


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def record(self, stream: None) -> None:
        self.at = max(self.gpu.free_at, self.gpu.host.now)

    def synchronize(self) -> None:
        self.gpu.wait(self.at)

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at - self.at) * 1000


@pytest.mark.parametrize("host", [0.01, 2.0], ids=["device-bound", "host-bound"])
def test_a_gpu_is_waited_for_only_where_a_rate_is_logged_and_around_sampled_steps(
    monkeypatch: pytest.MonkeyPatch, host: float
) -> None:
    """Every fourth step is logged and step 5 is sampled; the host takes `host` seconds to queue each part."""
    clock = Clock()
    gpu = FakeGpu(clock, monkeypatch)
    recorder = ThroughputRecorder(warmup_steps=0, sample_every=4)
    recorder.clock = clock
    logged: list[float] = []
    module = SimpleNamespace(
        device=torch.device("cuda"), compile_blocks=True, gradient_checkpointing="none",
        token_counts=lambda _: dict(COUNTED), log=lambda name, value, **_: logged.append(value),
    )  # fmt: skip
    connector = SimpleNamespace(should_update_logs=False)
    loader = Loader(clock, 8)
    trainer = SimpleNamespace(
        global_step=0, train_dataloader=loader, callbacks=[], loggers=[], _logger_connector=connector
    )
    recorder.on_train_start(trainer, module)
    waits = []
    for step, _ in enumerate(loader):
        gpu.waits = 0
        connector.should_update_logs = step % 4 == 3
        recorder.on_train_batch_start(trainer, module, None, 0)
        for part, after in (
            (FORWARD, lambda: recorder.on_before_backward(trainer, module)),
            (BACKWARD, lambda: recorder.on_after_backward(trainer, module)),
            (OPTIMIZER, lambda: None),
        ):
            clock.spend(host)
            gpu.queue(part)
            after()
        trainer.global_step += 1
        recorder.on_train_batch_end(trainer, module, None, None, 0)
        waits.append(gpu.waits)
        gpu.queue(OTHER if host < 1 else 0.0)  # of another callback
    # step 0 ends with a wait, since step 1 is sampled (5 too); the reads of 3 and 7 wait for the steps since the last
    assert [bool(count) for count in waits] == [True, True, False, True, True, True, False, True]
    assert recorder.measured()["train_seconds"] == pytest.approx(sum(step.seconds for step in recorder.steps))
    assert all(step.seconds > 0 for step in recorder.steps)  # also those before a sampled step
    split = recorder.steps[5].parts
    busy = FORWARD + BACKWARD + OPTIMIZER
    if host < 1:  # the GPU works without a break; what the host waits for is over before the GPU is free
        plain = [recorder.steps[step].seconds for step in (2, 3, 6, 7)]
        assert plain == pytest.approx([busy] * 4)
    else:  # the GPU waits for the host: a step ends as long after the last one as the host takes
        assert [recorder.steps[step].seconds for step in (3, 7)] == pytest.approx([WAIT + 3 * host] * 2)
    assert split["forward"] + split["backward"] + split["optimizer"] >= busy
    assert logged[0] == pytest.approx(COUNTED["tokens"] / recorder.steps[3].seconds)
    assert len(logged) == 2


def test_the_wait_for_data_counts_in_later_epochs_too_if_each_has_a_loader_of_its_own(tmp_path: Path) -> None:
    recorder = ThroughputRecorder(warmup_steps=0, sample_every=0)
    recorder.clock = clock = Clock()

    class Loaders(L.LightningDataModule):
        def train_dataloader(self) -> Loader:
            return Loader(clock, 4)

    trainer = L.Trainer(
        **QUIET, max_epochs=3, callbacks=[recorder], default_root_dir=tmp_path, reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(Module(clock), Loaders())
    waits = 3 * (8 + 3) * WAIT  # the first batch of each epoch comes late
    steps = 12 * (FORWARD + BACKWARD + OPTIMIZER) + SLOW
    assert recorder.measured()["train_seconds"] == pytest.approx(steps + waits)


def test_a_sampled_batch_without_a_loss_leaves_no_flop_counter_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of the user's own may skip a batch: Lightning then calls no hook around backward."""
    train = Module.training_step

    def skip_the_last(self: Module, batch: torch.Tensor, batch_idx: int) -> torch.Tensor | None:
        return None if batch_idx == 7 else train(self, batch, batch_idx)

    monkeypatch.setattr(Module, "training_step", skip_the_last)
    measured = fit(tmp_path, ThroughputRecorder(warmup_steps=0, sample_every=2), 8)
    assert torch._C._len_torch_function_stack() == 0
    assert measured["sampled_steps"] == 4
    assert measured["model_flops_per_step"] == 3 * FLOPS / 4  # the skipped batch needs none


def test_a_failed_run_leaves_no_flop_counter_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Module, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Module, "training_step", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path, recorder := ThroughputRecorder(warmup_steps=0, sample_every=2), 4)
    recorder.steps = [Step()]
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path / "sampled", recorder, 4)
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("kind", ["none", "non_reentrant"])
def test_gradient_checkpointing_does_not_change_the_flops_per_step(
    kind: str, fit_arguments: list[str], tmp_path: Path
) -> None:
    """Compare a real run with a formula; below query, key and value of the first layer, no gradient is needed."""
    options = [
        *("--model.adapter", "LoRA", "--model.adapter.rank", "2", "--trainer.max_steps", "3"),
        *("--data.batch_size", "96"),
    ]
    options += ["--throughput.warmup_steps", "0", "--throughput.sample_every", "2", "--throughput.measure_peak", "true"]
    options += ["--memory.track_steps", "[]", "--model.gradient_checkpointing", kind, "--run_dir", str(tmp_path / kind)]
    assert main([*fit_arguments, *options]) == 0
    record = read_record(tmp_path / kind)
    rows, length, width, inner, layers = 96, 15, 32, 64, 2
    positions, scores = rows * length, rows * length * length * width
    low = 2 * positions * 2 * width  # one product with A or B
    first = 2 * (2 * positions * width * width + low * 2 + low * 3) + 2 * positions * width * width + 2 * scores * 5
    other = 2 * (4 * positions * width * width + low * 3 + low * 3) + 4 * positions * width * width + 2 * scores * 6
    rest = 4 * positions * (width * width + 2 * width * inner)
    head = 4 * rows * width * width + 6 * rows * width * 2  # pooler, classifier
    assert record["model_flops_per_step"] == first + other + layers * rest + head
    assert record["flops_utilisation"] == record["model_flops_per_second"] / record["peak_flops_per_second"]


def test_sampling_and_measuring_the_peak_do_not_change_the_weights(fit_arguments: list[str], tmp_path: Path) -> None:
    same = [*fit_arguments, "--model.adapter", "DoRA", "--model.adapter.dropout", "0.2", "--trainer.max_steps", "6"]
    sampling = ["--throughput.warmup_steps", "0", "--throughput.sample_every", "2", "--throughput.measure_peak", "true"]
    assert main([*same, "--throughput.sample_every", "0", "--run_dir", str(tmp_path / "plain")]) == 0
    assert main([*same, *sampling, "--run_dir", str(tmp_path / "sampled")]) == 0
    assert read_record(tmp_path / "sampled")["model_flops_per_step"] > 0
    plain, sampled = (
        load_file(newest_checkpoint(tmp_path / run) / "trainable.safetensors") for run in ("plain", "sampled")
    )
    assert all(torch.equal(sampled[name], tensor) for name, tensor in plain.items())


def test_a_run_shorter_than_its_warm_up_has_no_rates() -> None:
    recorder = ThroughputRecorder(warmup_steps=5)
    recorder.steps = [Step(1.0, COUNTED)] * 5
    measured = recorder.measured()
    assert measured["train_seconds"] == 5.0
    assert measured["step_seconds_p50"] is measured["train_tokens_per_second"] is None


def test_percentiles_match_numpy() -> None:
    recorder = ThroughputRecorder(warmup_steps=1)
    recorder.steps = [Step(seconds, COUNTED) for seconds in (99.0, *map(float, range(1, 21)))]
    measured = recorder.measured()
    assert measured["step_seconds_p50"] == 10.5
    assert measured["step_seconds_p95"] == pytest.approx(19.05)
    assert measured["train_samples_per_second"] == pytest.approx(80 / 210)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"warmup_steps": -1}, "throughput.warmup_steps must not be negative, got -1."),
        ({"sample_every": 1}, "throughput.sample_every must be 0 or at least 2, got 1."),
        ({"peak_flops": 0.0}, "throughput.peak_flops must be above 0 and finite, got 0.0."),
        ({"peak_flops": float("nan")}, "throughput.peak_flops must be above 0 and finite, got nan."),
        ({"peak_flops": float("inf")}, "throughput.peak_flops must be above 0 and finite, got inf."),
        (
            {"peak_flops": 1e12, "measure_peak": True},
            "throughput.measure_peak: leave out throughput.peak_flops, which it would replace.",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        ThroughputRecorder(**options)


def test_the_progress_has_the_tokens_and_seconds_of_every_step_and_of_the_run_before_a_resume() -> None:
    recorder = ThroughputRecorder()
    assert recorder.progress() == (0, 0.0)
    recorder.steps += [
        Step(seconds=2.0, counts=counts(tokens=10)),
        Step(seconds=1.0, counts=counts(tokens=5)),
    ]
    assert recorder.progress() == (15, 3.0)
    recorder.steps.append(Step(seconds=0.5, counts=counts(tokens=2)))
    assert recorder.progress() == recorder.progress() == (17, 3.5)
    state = recorder.state_dict()
    assert (state["train_seconds"], state["train_tokens"]) == (3.5, 17)
    resumed = ThroughputRecorder()
    resumed.load_state_dict(state)
    resumed.steps.append(Step(seconds=1.0, counts=counts(tokens=3)))
    assert resumed.progress() == (20, 4.5)


def counts(tokens: int) -> dict[str, int]:
    return {"samples": 1, "tokens": tokens, "padded": 2 * tokens, "trained": tokens}


def test_a_resumed_run_with_fewer_steps_than_the_warm_up_keeps_the_rates_of_the_steps_before() -> None:
    first = ThroughputRecorder(warmup_steps=1, sample_every=0)
    first.steps += [Step(seconds=9.0, counts=counts(tokens=10)), Step(seconds=2.0, counts=counts(tokens=10))]
    resumed = ThroughputRecorder(warmup_steps=1, sample_every=0)
    resumed.load_state_dict(first.state_dict())
    resumed.steps.append(Step(seconds=7.0, counts=counts(tokens=10)))
    assert resumed.measured() == first.measured() | {"train_seconds": 18.0}
    assert resumed.measured()["train_tokens_per_second"] == 5.0
    again = ThroughputRecorder(warmup_steps=1, sample_every=0)
    again.load_state_dict(resumed.state_dict())  # a second resume without a step to measure
    assert again.measured()["step_seconds_p50"] == 2.0
    resumed.steps.append(Step(seconds=4.0, counts=counts(tokens=10)))
    assert resumed.measured()["train_tokens_per_second"] == 2.5  # its own
    older = ThroughputRecorder()
    older.load_state_dict({"train_seconds": 1.0})  # of a version without rates
    assert older.measured()["step_seconds_p50"] is None


@pytest.mark.parametrize("count", [1, 4])
def test_the_curve_of_the_utilisation_is_a_share_of_the_peak_of_all_processes(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, recorder := ThroughputRecorder(warmup_steps=0, sample_every=2, peak_flops=50.0), 2)
    monkeypatch.setattr(processes, "world_size", lambda: count)
    sent: list[tuple[dict, int]] = []
    trainer = SimpleNamespace(
        loggers=[SimpleNamespace(log_metrics=lambda curves, step: sent.append((curves, step)))], global_step=2,
        _logger_connector=SimpleNamespace(should_update_logs=True),
    )  # fmt: skip
    logged: dict[str, float] = {}
    module = SimpleNamespace(log=lambda name, value, **_: logged.update({name: value}))
    step = Step(2.0, {"samples": 6, "tokens": 0}, dict.fromkeys(PARTS, 0.5), 400)
    recorder._log(trainer, module, step)
    ((curves, number),) = sent
    assert number == 1  # Lightning counts from 0
    assert curves == {f"step_seconds/{part}": 0.5 for part in PARTS} | {
        "model_flops_per_second": 200.0, "speed/flops_utilisation": 4.0 / count,
    }  # fmt: skip
    assert logged == {"train_samples_per_second": 3.0}  # images have no tokens
    sent.clear()
    recorder.peak_flops, step.counts["tokens"] = None, 8
    recorder._log(trainer, module, step)
    assert "speed/flops_utilisation" not in sent[0][0]
    assert logged["train_tokens_per_second"] == 4.0
    sent.clear()
    step.flops = None
    recorder._log(trainer, module, step)
    assert list(sent[0][0]) == [f"step_seconds/{part}" for part in PARTS]


def test_the_seconds_of_every_step_count_whichever_is_sampled_last() -> None:
    recorder, now = ThroughputRecorder(), iter([1.0, 2.0, 4.0, 8.0])
    plain = [Step(counts=dict(COUNTED), unread=[(next(now), next(now))]) for _ in range(2)]
    recorder.steps = [*plain, Step(3.0, dict(COUNTED), dict.fromkeys(PARTS, 0.75))]
    assert recorder.progress() == (3, 1.0 + 4.0 + 3.0)
    assert [step.unread for step in recorder.steps] == [[], [], []]


def test_nothing_is_sampled_unless_it_is_asked_for(tmp_path: Path) -> None:
    recorder = ThroughputRecorder(warmup_steps=0, sample_every=0)
    fit(tmp_path, recorder, 5)
    assert [step.parts for step in recorder.steps] == [None] * 5
    assert (ThroughputRecorder().warmup_steps, ThroughputRecorder().sample_every) == (5, 10)
    assert (ThroughputRecorder().peak_flops, ThroughputRecorder().measure_peak) == (None, False)
    ThroughputRecorder(warmup_steps=0, sample_every=2, peak_flops=1e-9)
    with pytest.raises(UserError, match="throughput.sample_every must be 0 or at least 2, got -1"):
        ThroughputRecorder(sample_every=-1)

"""When benchmarks are evaluated, and what is logged of them, on a made-up trainer and suite."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from litpeft.callbacks import BenchmarkEvaluation
from litpeft.callbacks.benchmark import curves, write_items
from litpeft.callbacks.checkpoint_io import FolderCheckpointIO

RESULTS = {
    "blimp": {"scores": {"acc": 0.5, "f1": None}, "standard_errors": {"acc": 0.25}},
    "mmlu": {"scores": {"acc": 0.0}, "standard_errors": {"acc": None}},
}


class Made:
    """A trainer, with what its loggers and callbacks were told."""

    def __init__(self, folder: Path, callback: BenchmarkEvaluation, max_steps: int = -1, **more: Any) -> None:
        self.global_step, self.max_steps, self.default_root_dir = 0, max_steps, str(folder)
        self.is_global_zero, self.datamodule, self.barriers = True, None, 0
        self.logged: list[tuple[dict[str, float], int]] = []
        self.told: list[str] = []
        self.loggers = [SimpleNamespace(log_metrics=lambda values, step: self.logged.append((values, step)))]
        self.strategy = SimpleNamespace(barrier=self.wait, root_device=torch.device("cpu"))
        other = SimpleNamespace(
            on_benchmark_start=lambda *_: self.told.append("start"),
            on_benchmark_progress=lambda trainer, name, done, total: self.told.append(f"{name} {done}/{total}"),
            on_benchmark_end=lambda trainer, task, step, results: self.told.append(f"end {step}"),
        )
        self.callbacks = [callback, other, object()]
        vars(self).update(more)

    def wait(self) -> None:
        self.barriers += 1


def evaluation(task: Any, data: Any, progress: Any, warn: Any) -> Any:
    progress("blimp", 1, 2)
    warn("a task is slow")
    result = SimpleNamespace(fingerprint="f", per_item={"acc": [1.0, 0.0]})
    entry = {"results": RESULTS, "skipped": {}}
    return SimpleNamespace(as_entry=lambda: entry, results={"blimp": result, "mmlu": SimpleNamespace(per_item={})})


def ready(**options: Any) -> BenchmarkEvaluation:
    callback = BenchmarkEvaluation("blimp", **options)
    callback._suite = SimpleNamespace(evaluate=evaluation)
    return callback


def run(callback: BenchmarkEvaluation, trainer: Made, steps: int) -> list[int]:
    """Return the steps that were evaluated."""
    callback.on_train_start(trainer, None)
    while trainer.global_step < steps:
        callback.on_train_batch_end(trainer, None)  # of several batches, before the step
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, None)
    callback.on_train_end(trainer, None)
    callback.on_fit_end(trainer, None)
    return [step for _, step in trainer.logged]


@pytest.mark.parametrize(
    ("options", "max_steps", "expected"),
    [
        ({}, -1, [0, 5]), ({"before": False}, -1, [5]), ({"every_n_steps": 2}, -1, [0, 2, 4, 5]),
        ({"every_n_steps": 2}, 5, [0, 2, 4, 5]), ({"every_n_steps": 5}, 5, [0, 5]), ({"every_n_steps": 1}, 5, [0, 1, 2, 3, 4, 5]),
        ({"before": False, "every_n_steps": 9}, -1, [5]),
    ],
)  # fmt: skip
def test_when_benchmarks_are_evaluated(
    options: dict[str, Any], max_steps: int, expected: list[int], tmp_path: Path
) -> None:
    callback = ready(**options)
    trainer = Made(tmp_path, callback, max_steps)
    assert run(callback, trainer, 5) == expected
    assert [each["step"] for each in callback.measured()["benchmarks"]] == expected
    assert trainer.told == [text for step in expected for text in ("start", "blimp 1/2", f"end {step}")]
    assert not (tmp_path / "benchmark_items").exists()


def test_without_a_benchmark_nothing_happens(tmp_path: Path) -> None:
    callback = BenchmarkEvaluation()
    trainer = Made(tmp_path, callback)
    callback.setup(trainer, None, "fit")
    assert run(callback, trainer, 3) == []
    assert (callback.measured(), trainer.barriers) == ({"benchmarks": None}, 0)


def test_other_processes_wait_and_evaluate_nothing(tmp_path: Path) -> None:
    callback = ready(every_n_steps=2)
    trainer = Made(tmp_path, callback, is_global_zero=False)
    assert run(callback, trainer, 4) == []
    assert trainer.barriers == 5  # before, at step 2 also for the next batch, at step 4, and at the end
    assert callback.measured() == {"benchmarks": None}


def test_a_resumed_run_evaluates_what_is_missing_and_logs_what_was_cut(tmp_path: Path) -> None:
    done = [{"step": step, "results": RESULTS, "skipped": {}} for step in (0, 2, 4)]
    callback = ready(every_n_steps=2)
    callback.resume_with(done)
    trainer = Made(tmp_path, callback, global_step=2)  # resumed at a checkpoint before step 4
    assert run(callback, trainer, 5) == [4, 5]
    assert trainer.told == ["start", "blimp 1/2", "end 5"]  # step 4 is not evaluated again
    interrupted = ready(every_n_steps=2)
    interrupted.resume_with(done[:1])
    trainer = Made(tmp_path, interrupted, global_step=2)
    interrupted.on_train_start(trainer, None)
    assert [step for _, step in trainer.logged] == [2]


@pytest.mark.parametrize(("before", "now", "kept"), [(30, 30, [0, 4, 8]), (30, 60, [0, 4]), (None, 60, [0, 4, 8])])
def test_of_a_run_with_another_length_no_evaluation_after_its_checkpoint_is_kept(
    before: int | None, now: int, kept: list[int], tmp_path: Path
) -> None:
    """The learning rates of the steps in between are others, so the weights at the later step will be, too."""
    callback = ready(before=False)
    callback.resume_with([{"step": step, "results": RESULTS, "skipped": {}} for step in (0, 4, 8)])
    task = SimpleNamespace(_saved_total_steps=before, total_steps=lambda: now)
    callback.on_train_start(Made(tmp_path, callback, global_step=4), task)
    assert [each["step"] for each in callback.measured()["benchmarks"]] == kept


def test_a_final_evaluation_that_was_killed_is_repeated(tmp_path: Path) -> None:
    callback = ready(before=False)
    callback.resume_with(None)
    trainer = Made(tmp_path, callback, global_step=5)
    moved: list[torch.device] = []
    callback.on_fit_end(trainer, SimpleNamespace(to=moved.append))  # without a step left
    assert moved == [torch.device("cpu")]
    assert [step for _, step in trainer.logged] == [5]


def test_scores_and_errors_are_curves_and_unknown_ones_are_not(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    expected = {"benchmark/blimp_acc": 0.5, "benchmark/mmlu_acc": 0.0, "benchmark_stderr/blimp_acc": 0.25}
    assert curves(RESULTS) == expected
    callback = ready(before=True, keep_items=True)
    trainer = Made(tmp_path, callback)
    callback.on_train_start(trainer, None)
    assert trainer.logged == [(expected, 0)]
    assert capsys.readouterr().err == "litpeft: warning: a task is slow\n"
    items = json.loads((tmp_path / "benchmark_items" / "step-000000.json").read_text())
    assert items == {"blimp": {"fingerprint": "f", "acc": [1.0, 0.0]}}


@pytest.mark.parametrize("tasks", ["a, b,,c ", ["a", " b", "", "c"]])
def test_tasks_are_a_list_or_a_text_with_commas(tasks: Any) -> None:
    assert BenchmarkEvaluation(tasks).options.tasks == ["a", "b", "c"]


@pytest.mark.parametrize(("best", "known", "loaded"), [(2, False, True), (2, True, False), (5, False, False)])
def test_the_best_weights_are_loaded_for_the_last_evaluation(
    best: int, known: bool, loaded: bool, tmp_path: Path
) -> None:
    callback = ready(before=False)
    callback.resume_with([{"step": 2, "results": RESULTS, "skipped": {}}] if known else None)
    path = f"checkpoints/step-{best:06d}"
    FolderCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(2)}}, tmp_path / path)
    trainer = Made(tmp_path, callback, global_step=5)
    trainer.callbacks.insert(0, SimpleNamespace(keep="best", best=path))
    states: list[dict[str, torch.Tensor]] = []
    callback.on_train_end(trainer, SimpleNamespace(load_state_dict=states.append))
    assert [list(state) for state in states] == ([["w"]] if loaded else [])
    assert [step for _, step in trainer.logged] == [best]
    assert [each["step"] for each in callback.measured()["benchmarks"]] == [best]
    assert trainer.told == ([] if known else ["start", "blimp 1/2", f"end {best}"])


def test_items_of_a_new_folder_and_of_an_unreadable_file(tmp_path: Path) -> None:
    found = evaluation(None, None, lambda *_: None, lambda _: None)
    run = tmp_path / "deep" / "run"
    write_items(run, 12, found)
    path = run / "benchmark_items" / "step-000012.json"
    expected = {"blimp": {"fingerprint": "f", "acc": [1.0, 0.0]}}
    assert json.loads(path.read_text()) == expected
    path.write_text("{")
    write_items(run, 12, found)
    assert json.loads(path.read_text()) == expected
    path.write_text('{"other": 1, "blimp": 2}')
    write_items(run, 12, found)
    assert json.loads(path.read_text()) == expected | {"other": 1}

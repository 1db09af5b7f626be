"""Runs with schedule-free optimizers are evaluated and saved with the averaged weights, and train with the others."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.watching import Watch, check_evaluation, check_extension, check_resume, distance, fit, mean, saved

LORA = ["--model.adapter", "LoRA"]
SCHEDULE_FREE = {
    "PlainAverage": ["tests.plain_average.PlainAverage"],
    "AdamWScheduleFree": ["schedulefree.AdamWScheduleFree", "--model.optimizer.lr", "1e-2"],
    "RAdamScheduleFree": ["schedulefree.RAdamScheduleFree", "--model.optimizer.lr", "1e-2"],
}


@pytest.fixture(
    params=["PlainAverage", "AdamWScheduleFree", pytest.param("RAdamScheduleFree", marks=pytest.mark.whole)]
)
def schedule_free(request: pytest.FixtureRequest) -> list[str]:
    if request.param != "PlainAverage" and find_spec("schedulefree") is None:
        pytest.skip("the package schedulefree is not installed")
    return ["--model.optimizer", *SCHEDULE_FREE[request.param]]


@pytest.mark.parametrize(
    "adapter", ["DoRA", *(pytest.param(name, marks=pytest.mark.whole) for name in ("Full", "QLoRA"))]
)
def test_a_schedule_free_run_is_evaluated_and_saved_with_the_average(
    adapter: str, schedule_free: list[str], tmp_path: Path, fit_arguments: list[str], sentences: dict[str, str]
) -> None:
    assert fit(fit_arguments, tmp_path, "--model.adapter", adapter, *schedule_free) == 0
    tensors, rest = saved(tmp_path)
    y, z, beta = Watch.steps[-1], Watch.states[-1], 0.9
    x = {name: (y[name].double() - (1 - beta) * z[name].double()) / beta for name in z}
    assert distance(tensors, x) < 1e-6
    assert distance(rest["training_weights"], y) == 0 < distance(tensors, y)
    if "PlainAverage" in schedule_free[1]:
        assert distance(tensors, mean(Watch.states)) < 1e-5
    check_evaluation(tmp_path, sentences)


@pytest.mark.parametrize(("step", "validation"), [(10, None), (None, 12)])
def test_a_schedule_free_run_resumes_bit_identically(
    step: int | None, validation: int | None, schedule_free: list[str], tmp_path: Path, fit_arguments: list[str]
) -> None:
    options = [*schedule_free, *LORA, "--model.scheduler", "WarmupCosine"]
    check_resume(fit_arguments, tmp_path, options, step, validation)


def test_checkpoints_and_validations_do_not_change_a_schedule_free_run(
    schedule_free: list[str], tmp_path: Path, fit_arguments: list[str]
) -> None:
    options, often = [*schedule_free, *LORA], ["--checkpoint.every_n_steps", "1"]
    assert fit(fit_arguments, tmp_path / "often", *options, *often, "--trainer.val_check_interval", "3") == 0
    often = Watch.steps[-1]
    assert fit(fit_arguments, tmp_path / "seldom", *options, "--trainer.limit_val_batches", "0") == 0
    assert distance(often, Watch.steps[-1]) == 0


def test_an_extended_schedule_free_run_keeps_its_step_counter(
    schedule_free: list[str], tmp_path: Path, fit_arguments: list[str]
) -> None:
    check_extension(fit_arguments, tmp_path, [*schedule_free, *LORA, "--model.scheduler", "Constant"])

"""Lightning's weight averaging callbacks average the trainable tensors, and everything uses the averages.

The oracle is an average in float64 of the weights that a callback copies after each optimizer step.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from safetensors.torch import load_file

from litpeft.__main__ import main
from litpeft.callbacks.checkpoint_io import TENSORS
from litpeft.callbacks.weight_averaging import AveragedWeights
from litpeft.runs.folder import checkpoints
from litpeft.runs.record import read_record
from tests.conftest import write_tiny_bert
from tests.sampling import quick
from tests.training.launching import output_file, run_processes
from tests.watching import (
    EPOCH,
    Watch,
    Weights,
    check_evaluation,
    check_extension,
    check_resume,
    distance,
    fit,
    mean,
    saved,
    watching,
)

ADAMW = ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
ADAPTERS = {name: ["--model.adapter", name] for name in ("Full", "LoRA", "DoRA", "QLoRA")}


def ema(weights: list[Weights], decay: float) -> Weights:
    average = {name: tensor.double() for name, tensor in weights[0].items()}
    for each in weights[1:]:
        average = {name: decay * average[name] + (1 - decay) * each[name].double() for name in average}
    return average


def callback(name: str, **options: object) -> list[str]:
    given = [text for option, value in options.items() for text in (f"--trainer.callbacks.{option}", str(value))]
    return ["--trainer.callbacks+", f"lightning.pytorch.callbacks.{name}", *given]


RULES = {  # name -> options, and the average of the weights after each step
    "WeightAveraging": (callback("WeightAveraging"), mean),
    "EMA": (callback("EMAWeightAveraging", decay=0.8), lambda steps: ema(steps, 0.8)),
    "EMA of epochs": (
        callback("EMAWeightAveraging", decay=0.5, update_every_n_steps=0, update_starting_at_epoch=1),
        lambda steps: ema(steps[2 * EPOCH - 1 :: EPOCH], 0.5),  # epochs are counted from 0
    ),
    # Lightning averages the weights at the start of each epoch from swa_epoch_start (counted from 1) on
    "SWA": (
        callback("StochasticWeightAveraging", swa_lrs=1e-2, swa_epoch_start=2),
        lambda steps: mean(steps[EPOCH - 1 : -1 : EPOCH]),
    ),
}
PAIRS = [(rule, adapter) for rule in RULES for adapter in ADAPTERS]
QUICK = [("WeightAveraging", "Full"), ("EMA", "DoRA"), ("EMA of epochs", "LoRA"), ("SWA", "QLoRA"), ("SWA", "DoRA")]


@pytest.mark.parametrize(
    "rule",
    [WeightAveraging(), EMAWeightAveraging(), StochasticWeightAveraging(swa_lrs=0.1)],
    ids=lambda rule: type(rule),
)
def test_before_the_training_starts_nothing_is_averaged(rule: Callback) -> None:
    callback = AveragedWeights(rule)
    assert callback.state_dict()["n_averaged"] == 0
    assert not callback.has_weights(None)


def test_the_epochs_that_were_averaged_before_a_resume_are_counted() -> None:
    before, after = (AveragedWeights(StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2)) for _ in range(2))
    after.load_state_dict(before.state_dict() | {"n_averaged": 3})
    assert after.state_dict()["n_averaged"] == 3
    after.rule.n_averaged = torch.tensor(4)  # the next average
    assert after.state_dict()["n_averaged"] == 4


@pytest.mark.parametrize(("rule", "adapter"), quick(PAIRS, QUICK))
def test_the_checkpoint_holds_the_average_and_the_record_describes_it(
    rule: str, adapter: str, tmp_path: Path, fit_arguments: list[str], sentences: dict[str, str]
) -> None:
    options, oracle = RULES[rule]
    assert fit(fit_arguments, tmp_path, *ADAPTERS[adapter], *ADAMW, *options) == 0
    tensors, rest = saved(tmp_path)
    expected, last = oracle(Watch.steps), Watch.steps[-1]
    assert distance(tensors, expected) < 1e-6 < 1e-3 < distance(tensors, last)
    assert distance(rest["training_weights"], last) == 0
    check_evaluation(tmp_path, sentences)


# WeightAveraging with two batches per step, so that not every batch ends with an average
STOPS = [("WeightAveraging", 5, None), ("WeightAveraging", None, 6)]
STOPS += [(rule, *stop) for rule in [*RULES][1:] for stop in ((6, None), (10, None), (None, 12))]
QUICK_STOPS = [("WeightAveraging", 5, None), ("EMA", None, 12), ("EMA of epochs", 10, None), ("SWA", 10, None)]


@pytest.mark.parametrize(("rule", "step", "validation"), quick(STOPS, QUICK_STOPS))
def test_a_run_with_averages_resumes_bit_identically(
    rule: str, step: int | None, validation: int | None, tmp_path: Path, fit_arguments: list[str]
) -> None:
    options = [*RULES[rule][0], *ADAPTERS["DoRA"], *ADAMW, "--model.scheduler", "WarmupCosine"]
    options += ["--trainer.accumulate_grad_batches", "2"] if rule == "WeightAveraging" else []
    check_resume(fit_arguments, tmp_path, options, step, validation)


def test_a_run_whose_adapter_saves_more_than_weights_resumes_in_the_middle_of_a_validation(
    tmp_path: Path, fit_arguments: list[str]
) -> None:
    """AdaLoRA saves the importance of its ranks, which belongs to the weights that the training continues from."""
    ranks = '{"init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 2, "deltaT": 1}'
    adapter = ["--model.adapter", "Peft", "--model.adapter.method", "ADALORA", "--model.adapter.options", ranks]
    check_resume(fit_arguments, tmp_path, [*RULES["EMA"][0], *adapter, *ADAMW], None, 12)


def test_a_finished_run_is_extended_as_if_it_had_been_longer(tmp_path: Path, fit_arguments: list[str]) -> None:
    check_extension(fit_arguments, tmp_path, [*RULES["EMA"][0], *ADAPTERS["LoRA"], *ADAMW])


def test_a_run_resumes_without_its_averaging_callback_or_with_another(tmp_path: Path, fit_arguments: list[str]) -> None:
    options = [*ADAPTERS["LoRA"], *ADAMW]
    assert fit(fit_arguments, tmp_path / "plain", *options) == 0
    for name, now in (("none", []), ("other", RULES["WeightAveraging"][0])):
        assert fit(fit_arguments, tmp_path / name, *options, *RULES["EMA"][0], "--trainer.max_epochs", "2") == 0
        assert fit(fit_arguments, tmp_path / name, *options, *now, "--resume") == 0
    plain, (other, rest) = saved(tmp_path / "plain")[0], saved(tmp_path / "other")
    assert distance(saved(tmp_path / "none")[0], plain) == distance(rest["training_weights"], plain) == 0
    assert distance(other, mean(Watch.steps)) < 1e-6  # of the steps after the resume


def test_averaging_and_validation_do_not_change_training(tmp_path: Path, fit_arguments: list[str]) -> None:
    options = [*ADAPTERS["DoRA"], *ADAMW]
    assert fit(fit_arguments, tmp_path / "ema", *options, *RULES["EMA"][0]) == 0
    assert fit(fit_arguments, tmp_path / "plain", *options, "--trainer.limit_val_batches", "0") == 0
    assert distance(saved(tmp_path / "ema")[1]["training_weights"], saved(tmp_path / "plain")[0]) == 0


SEVERAL = [(average, strategy) for average in ("EMA", "schedule-free", "SWA") for strategy in ("ddp", "fsdp2")]
QUICK_SEVERAL = [("EMA", "fsdp2"), ("schedule-free", "ddp"), ("SWA", "ddp")]


@pytest.mark.slow
@pytest.mark.parametrize(("average", "strategy"), quick(SEVERAL, QUICK_SEVERAL))
def test_two_processes_average_as_one(average: str, strategy: str, tmp_path: Path, fit_arguments: list[str]) -> None:
    model = write_tiny_bert(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # masks differ between processes
    config.write_text(json.dumps(json.loads(config.read_text()) | no_dropout))
    sgd = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    how = ["--model.optimizer", "tests.plain_average.PlainAverage"] if average == "schedule-free" else sgd
    how += [] if average == "schedule-free" else RULES[average][0]
    options = [*fit_arguments, "--model.model_name", model, "--trainer.max_epochs", "2", *ADAPTERS["DoRA"], *how]
    two = ["--data.batch_size", "4", "--trainer.devices", "2", "--trainer.strategy", strategy]
    codes = run_processes([*options, *two, "--run_dir", str(tmp_path / "two")], tmp_path / "log")
    if (average, strategy) == ("SWA", "fsdp2"):
        assert codes[0] == 2
        assert "does not average sharded weights" in output_file(tmp_path / "log", 0).read_text()
        return
    assert codes == [0, 0], output_file(tmp_path / "log", 0).read_text()
    assert main([*options, "--run_dir", str(tmp_path / "one")]) == 0
    assert distance(saved(tmp_path / "one")[0], saved(tmp_path / "two")[0]) < 1e-5
    assert read_record(tmp_path / "two")["val_loss"] == pytest.approx(
        read_record(tmp_path / "one")["val_loss"], rel=1e-5
    )


def test_predictions_benchmarks_and_export_use_the_average(
    tmp_path: Path, fit_arguments: list[str], sentences: dict[str, str]
) -> None:
    run_dir = tmp_path / "run"
    options = [*RULES["WeightAveraging"][0], *ADAPTERS["Full"], *ADAMW, "--benchmarks.tasks", "held_out"]
    assert fit(fit_arguments, run_dir, *options) == 0
    record = read_record(run_dir)
    predict = ["predict", "--run_dir", str(run_dir), "--data.predict_file", sentences["val"]]
    assert main(predict) == 0
    rows = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    labels = [line.split("\t")[1] for line in Path(sentences["val"]).read_text().splitlines()[1:]]
    names = record["data_summary"]["label_names"]
    losses = [-torch.tensor(r["probabilities"][names[int(y)]]).log() for r, y in zip(rows, labels, strict=True)]
    assert float(torch.stack(losses).mean()) == pytest.approx(record["val_loss"], rel=1e-5)
    during = record["benchmarks"][-1]["results"]["held_out"]["scores"]
    assert main(["evaluate", str(run_dir), "--tasks", "held_out", "--accelerator", "cpu"]) == 0
    assert read_record(run_dir)["benchmarks"][-1]["results"]["held_out"]["scores"] == during
    assert main(["export", str(run_dir), str(tmp_path / "out"), "--format", "merged"]) == 0
    exported, expected = load_file(tmp_path / "out" / "model.safetensors"), mean(Watch.steps)
    assert distance({name: exported[name] for name in expected}, expected) < 1e-6


def test_benchmarks_during_training_use_the_average(tmp_path: Path, fit_arguments: list[str]) -> None:
    options, average = [*ADAPTERS["DoRA"], *ADAMW], RULES["WeightAveraging"][0]
    measured = ["--benchmarks.tasks", "held_out", "--benchmarks.every_n_steps", "6", "--trainer.max_steps", "8"]
    assert fit(fit_arguments, tmp_path / "average", *options, *average, *measured) == 0
    assert fit(fit_arguments, tmp_path / "plain", *options, *measured) == 0
    assert fit(fit_arguments, tmp_path / "short", *options, *average, "--trainer.max_steps", "6") == 0
    assert main(["evaluate", str(tmp_path / "short"), "--tasks", "held_out", "--accelerator", "cpu"]) == 0
    found = {}
    for name in ("average", "plain", "short"):
        entries = {each["step"]: each["results"] for each in read_record(tmp_path / name)["benchmarks"]}
        found[name] = entries[6]["held_out"]["scores"]["ece"]
    assert found["average"] == found["short"] != found["plain"]


def test_before_the_first_average_the_weights_in_training_are_used(
    tmp_path: Path, fit_arguments: list[str], sentences: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    late = callback("EMAWeightAveraging", update_starting_at_step=1000)
    assert fit(fit_arguments, tmp_path, *ADAPTERS["LoRA"], *ADAMW, *late) == 0
    assert "EMAWeightAveraging has averaged nothing" in capsys.readouterr().err
    assert distance(saved(tmp_path)[0], Watch.steps[-1]) == 0
    check_evaluation(tmp_path, sentences)


def test_with_keep_best_the_best_average_is_kept(
    tmp_path: Path, fit_arguments: list[str], sentences: dict[str, str]
) -> None:
    best = ["--checkpoint.keep", "best", "--benchmarks.tasks", "held_out", *ADAPTERS["LoRA"], *ADAMW]
    assert fit(fit_arguments, tmp_path, *best, *RULES["WeightAveraging"][0]) == 0
    record = read_record(tmp_path)
    step = record["val_step"]
    assert step == record["benchmarks"][-1]["step"] < len(Watch.steps)
    assert distance(load_file(tmp_path / record["checkpoint"] / TENSORS), mean(Watch.steps[:step])) < 1e-6
    check_evaluation(tmp_path, sentences)
    assert main(["evaluate", str(tmp_path), "--tasks", "held_out", "--accelerator", "cpu"]) == 0
    again = read_record(tmp_path)["benchmarks"][-1]["results"]["held_out"]
    assert again["scores"] == record["benchmarks"][-1]["results"]["held_out"]["scores"]


def test_combinations_that_average_twice_are_refused(
    tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    twice = [*RULES["EMA"][0], *RULES["SWA"][0]]
    assert fit(fit_arguments, tmp_path / "a", *twice) == 2
    assert "EMAWeightAveraging and StochasticWeightAveraging both average" in capsys.readouterr().err
    assert (
        fit(fit_arguments, tmp_path / "b", *RULES["EMA"][0], "--model.optimizer", "tests.plain_average.PlainAverage")
        == 2
    )
    assert "model.optimizer already averages the weights; leave the callback out." in capsys.readouterr().err


@pytest.mark.parametrize(("rule", "removed"), [(None, "all"), *((rule, "one") for rule in (None, *RULES))])
def test_an_empty_or_partial_checkpoint_is_never_saved(
    rule: str | None, removed: str, tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    def remove(checkpoint: dict) -> None:
        names = list(checkpoint["state_dict"])
        kept = [] if removed == "all" else names[1:]
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in kept}

    after = ["--trainer.callbacks+", "tests.watching.Watch"]  # the first Watch comes before the averaging
    with watching(damage=staticmethod(remove)):
        assert fit(fit_arguments, tmp_path, *ADAPTERS["LoRA"], *(RULES[rule][0] if rule else []), *after) == 1
    assert "the checkpoint would lack" in capsys.readouterr().err
    assert checkpoints(tmp_path) == []

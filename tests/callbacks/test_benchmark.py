"""Benchmarks during training: they do not change the training, are recorded, and are not repeated on resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litpeft.__main__ import main
from litpeft.benchmarks import Benchmark, Evaluation, Live, Result
from litpeft.benchmarks.harness import HarnessTask
from litpeft.callbacks.benchmark import write_items
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests.conftest import write_killer
from tests.forking import litpeft

STRATEGIES = {
    "lora": ["--model.adapter", "LoRA", "--model.adapter.dropout", "0.2"],
    "qlora": ["--model.adapter", "QLoRA", "--model.adapter.dropout", "0.2"],
    "full": ["--model.adapter", "Full", "--model.dtype", "bf16", "--model.gradient_checkpointing", "non_reentrant"],
}


@pytest.fixture
def causal_fit_arguments(byte_llama: str) -> list[str]:
    """Return the arguments of `litpeft` that train a small causal model for six steps."""
    return [
        *("fit", "--model", "CausalLM", "--model.model_name", byte_llama, "--model.dtype", "fp32"),
        *("--data", "ArithmeticInstructions", "--data.train_rows", "24", "--data.val_rows", "8"),
        *("--data.batch_size", "2", "--data.max_length", "256", "--trainer.accumulate_grad_batches", "2"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
    ]


BENCHMARKS = ["--benchmarks.tasks", "[litpeft_generated_2ds,litpeft_generated_1da]", "--benchmarks.limit", "5"]


@pytest.mark.parametrize(
    "strategy", ["lora", pytest.param("qlora", marks=pytest.mark.whole), "full"]
)  # dropout; gradient checkpointing in bf16
def test_training_with_benchmarks_is_bit_identical_to_training_without(
    tmp_path: Path, causal_fit_arguments: list[str], strategy: str
) -> None:
    same = [*causal_fit_arguments, *STRATEGIES[strategy]]
    assert main([*same, "--run_dir", str(tmp_path / "plain")]) == 0
    options = [*BENCHMARKS, "--benchmarks.every_n_steps", "2"]
    assert main([*same, *options, "--run_dir", str(tmp_path / "measured")]) == 0
    plain, measured = (newest_checkpoint(tmp_path / name) for name in ("plain", "measured"))
    tensors = load_file(plain / "trainable.safetensors"), load_file(measured / "trainable.safetensors")
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    loops = [torch.load(path / "loop.pt", weights_only=True) for path in (plain, measured)]
    first, second = (loop["optimizer_states"][0]["state"] for loop in loops)
    assert all(
        torch.equal(torch.as_tensor(first[i][k]), torch.as_tensor(second[i][k])) for i in first for k in first[i]
    )
    states = [next(each["rng"] for each in loop["callbacks"].values() if "rng" in each) for loop in loops]
    assert {"torch", "numpy", "python"} <= states[0].keys() == states[1].keys()
    torch.testing.assert_close(*([state["torch"], state["numpy"][1]] for state in states), rtol=0, atol=0)
    assert states[0]["python"] == states[1]["python"]
    one, two = (read_record(tmp_path / name) for name in ("plain", "measured"))
    for name in ("val_loss", "train_loss", "steps", "peak_tensor_bytes", "model_flops_per_step", "sampled_steps"):
        assert one[name] == two[name], name
    assert [each["step"] for each in two["benchmarks"]] == [0, 2, 4, 6]
    assert one["benchmarks"] is None


def test_scores_are_in_the_record_in_tensorboard_and_in_the_item_files(
    tmp_path: Path, causal_fit_arguments: list[str]
) -> None:
    options = [
        *BENCHMARKS,
        *("--benchmarks.keep_items", "true", "--model.adapter", "LoRA", "--model.optimizer", "torch.optim.Adam"),
    ]
    assert main([*causal_fit_arguments, *options, "--model.optimizer.lr", "0.05", "--run_dir", str(tmp_path)]) == 0
    record = read_record(tmp_path)
    before, after = record["benchmarks"]
    assert (before["step"], after["step"]) == (0, 6)
    assert before["seconds"] > 0
    assert record["memory_phases"]["benchmark"]["peak_rss_bytes"]
    curves = EventAccumulator(str(tmp_path)).Reload()
    for evaluation in (before, after):
        saved = json.loads((tmp_path / "benchmark_items" / f"step-{evaluation['step']:06d}.json").read_text())
        for name, result in evaluation["results"].items():
            assert result["items"] == 5
            assert result["num_fewshot"] == 0
            assert saved[name]["fingerprint"] == result["fingerprint"]
            items = saved[name]["acc"]
            assert np.mean(items) == pytest.approx(result["scores"]["acc"])
            assert np.std(items, ddof=1) / math.sqrt(5) == pytest.approx(result["standard_errors"]["acc"])
            points = {point.step: point.value for point in curves.Scalars(f"benchmark/{name}_acc")}
            assert points[evaluation["step"]] == pytest.approx(result["scores"]["acc"])
    assert "benchmark_stderr/litpeft_generated_2ds_acc" in curves.Tags()["scalars"]
    assert "final/litpeft_generated_2ds_acc" in curves.Tags()["scalars"]  # for the HParams tab
    prints = [evaluation["results"]["litpeft_generated_2ds"]["fingerprint"] for evaluation in (before, after)]
    assert prints[0] == prints[1]


def curve_steps(run_dir: Path) -> list[int]:
    """Return the steps of the points of a benchmark's curve, in order.

    The event files of a run that is killed and resumed within a second are read in the order of process numbers.
    """
    points = EventAccumulator(str(run_dir)).Reload().Scalars("benchmark/litpeft_generated_2ds_acc")
    return sorted(point.step for point in points)


def test_a_resumed_run_does_not_repeat_benchmarks(tmp_path: Path, causal_fit_arguments: list[str]) -> None:
    same = [*causal_fit_arguments, "--model.adapter", "LoRA", *BENCHMARKS, "--benchmarks.every_n_steps", "1"]
    same += ["--checkpoint.every_n_steps", "2"]
    assert main([*same, "--run_dir", str(tmp_path / "uninterrupted")]) == 0
    killed = litpeft(*same, "--run_dir", "killed", *write_killer(tmp_path, 4), cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr
    earlier = read_record(tmp_path / "killed")["benchmarks"]
    assert [each["step"] for each in earlier] == [0, 1, 2, 3]
    # step 3 is trained again, but not evaluated again
    assert newest_checkpoint(tmp_path / "killed").name == "step-000002"
    assert main([*same, "--run_dir", str(tmp_path / "killed"), "--resume"]) == 0
    resumed, uninterrupted = (read_record(tmp_path / name)["benchmarks"] for name in ("killed", "uninterrupted"))
    assert resumed[:4] == earlier
    assert [each["step"] for each in resumed] == [0, 1, 2, 3, 4, 5, 6]
    assert [each["results"] for each in resumed] == [each["results"] for each in uninterrupted]
    for run in ("uninterrupted", "killed"):
        assert curve_steps(tmp_path / run) == [0, 1, 2, 3, 4, 5, 6]


def test_an_interrupted_benchmark_is_run_after_a_resume(
    tmp_path: Path, causal_fit_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [*causal_fit_arguments, "--model.adapter", "LoRA", *BENCHMARKS, "--benchmarks.every_n_steps", "2"]
    same += ["--checkpoint.every_n_steps", "1", "--run_dir", str(tmp_path)]
    same += ["--trainer.accumulate_grad_batches", "1", "--data.train_rows", "12"]
    run = HarnessTask.run

    def interrupted(self: HarnessTask, live: Live) -> Result:
        if live.task.trainer.global_step == 4:
            raise KeyboardInterrupt
        return run(self, live)

    with monkeypatch.context() as patch:
        patch.setattr(HarnessTask, "run", interrupted)
        assert main(same) != 0
    assert [each["step"] for each in read_record(tmp_path)["benchmarks"]] == [0, 2]
    assert newest_checkpoint(tmp_path).name == "step-000003"
    assert main([*same, "--resume"]) == 0
    assert [each["step"] for each in read_record(tmp_path)["benchmarks"]] == [0, 2, 4, 6]


def test_a_run_killed_in_its_last_benchmark_finishes_it_after_a_resume(
    tmp_path: Path, causal_fit_arguments: list[str]
) -> None:
    same = [*causal_fit_arguments, "--model.adapter", "LoRA", *BENCHMARKS]
    assert main([*same, "--run_dir", str(tmp_path / "uninterrupted")]) == 0
    (tmp_path / "ending.py").write_text(
        "import os, signal\n"
        "from lightning import Callback\n"
        "class Stop(Callback):\n"
        "    def on_benchmark_progress(self, trainer, *args):\n"
        "        if trainer.global_step == 6:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = litpeft(*same, "--run_dir", "killed", "--trainer.callbacks", "ending.Stop", cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr
    assert newest_checkpoint(tmp_path / "killed").name == "step-000006"
    assert main([*same, "--run_dir", str(tmp_path / "killed"), "--resume"]) == 0
    resumed, uninterrupted = (read_record(tmp_path / name) for name in ("killed", "uninterrupted"))
    assert [each["results"] for each in resumed["benchmarks"]] == [
        each["results"] for each in uninterrupted["benchmarks"]
    ]
    for name in ("status", "val_loss", "train_loss", "steps", "validations"):
        values = [record[name] for record in (resumed, uninterrupted)]
        if name == "validations":
            values = [[{k: v for k, v in each.items() if k != "train_seconds"} for each in one] for one in values]
        assert values[0] == values[1], name
    assert curve_steps(tmp_path / "killed") == [0, 6]


def test_with_keep_best_the_best_weights_are_evaluated(tmp_path: Path, causal_fit_arguments: list[str]) -> None:
    """The learning rate ruins the model after the first validation."""
    (tmp_path / "mine.txt").write_text("the film was a story\n\nand the plot of it")
    ruin = ["--model.adapter", "LoRA", "--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "1e-3"]
    ruin += ["--model.scheduler", "StepLR", "--model.scheduler.step_size", "2", "--model.scheduler.gamma", "1e4"]
    options = ["--benchmarks.tasks", "[perplexity]", "--benchmarks.text_file", str(tmp_path / "mine.txt")]
    each = ["--trainer.val_check_interval", "2", "--checkpoint.keep", "best", "--trainer.max_epochs", "1"]
    run = tmp_path / "run"
    assert (
        main([*causal_fit_arguments, *ruin, *options, *each, "--run_dir", str(run), "--benchmarks.before", "false"])
        == 0
    )
    record = read_record(run)
    [evaluation] = record["benchmarks"]
    assert evaluation["step"] == record["val_step"] < record["steps"]
    assert main(["evaluate", str(run), "--tasks", "perplexity", "--text_file", str(tmp_path / "mine.txt")]) == 0
    [again] = read_record(run)["benchmarks"]
    assert again["results"]["perplexity"]["scores"] == pytest.approx(evaluation["results"]["perplexity"]["scores"])


def test_benchmarks_skipped_by_the_time_limit_are_reported(
    tmp_path: Path, causal_fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    options = [*BENCHMARKS, "--benchmarks.max_seconds", "1e-6", "--model.adapter", "LoRA"]
    assert main([*causal_fit_arguments, *options, "--run_dir", str(tmp_path)]) == 0
    record = read_record(tmp_path)
    assert record["status"] == "ok"
    for evaluation in record["benchmarks"]:
        assert evaluation["results"] == {}
        assert list(evaluation["skipped"]) == ["litpeft_generated_2ds", "litpeft_generated_1da"]
    message = (
        "benchmark litpeft_generated_2ds has no result: the time limit of 1e-06 s (benchmarks.max_seconds) was reached."
    )
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmarks.tasks", "[litpeft_nothing]"], "benchmarks.tasks: lm-eval has no task 'litpeft_nothing'"),
        (["--benchmarks.tasks", "litpeft_generated_2ds,litpeft_no"], "lm-eval has no task 'litpeft_no'"),
        (["--benchmarks.tasks", "[perplexity]"], "perplexity needs --benchmarks.text_file, a text"),
        (["--benchmarks.tasks", "[held_out]"], "benchmarks.tasks held_out is for classes, labels and numbers"),
        (["--benchmarks.limit", "0"], "benchmarks.limit must be at least 1, got 0"),
        (["--benchmarks.every_n_steps", "0"], "benchmarks.every_n_steps must be at least 1, got 0"),
        (["--benchmarks.num_fewshot", "-1"], "benchmarks.num_fewshot must be at least 0, got -1"),
        (["--benchmarks.max_seconds", "0"], "benchmarks.max_seconds must be above 0, got 0"),
    ],
)
def test_mistakes_are_reported_before_training(
    tmp_path: Path, causal_fit_arguments: list[str], capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    run = tmp_path / "run"
    assert main([*causal_fit_arguments, "--model.adapter", "LoRA", *options, "--run_dir", str(run)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not list(run.glob("checkpoints/*"))


def test_a_classifier_is_scored_by_class_and_calibration(tmp_path: Path, fit_arguments: list[str]) -> None:
    """Compare with accuracy and calibration error computed here from `litpeft predict`."""
    options = [
        "--benchmarks.tasks",
        "[held_out]",
        "--benchmarks.keep_items",
        "true",
        "--model.optimizer",
        "torch.optim.AdamW",
    ]
    assert main([*fit_arguments, *options, "--model.optimizer.lr", "5e-3", "--run_dir", str(tmp_path)]) == 0
    record = read_record(tmp_path)
    result = record["benchmarks"][-1]["results"]["held_out"]
    table = Path(fit_arguments[fit_arguments.index("--data.val_file") + 1])
    assert main(["predict", "--run_dir", str(tmp_path), "--data.predict_file", str(table)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    names = record["data_summary"]["label_names"]
    truth = [names[int(line.rpartition("\t")[2])] for line in table.read_text().splitlines()[1:]]
    right = [line["label"] == label for line, label in zip(lines, truth, strict=True)]
    assert result["scores"]["accuracy"] == pytest.approx(np.mean(right)) == pytest.approx(record["val_accuracy"])
    for name in names:
        hits = [hit for hit, label in zip(right, truth, strict=True) if label == name]
        assert result["scores"][f"accuracy_{name}"] == pytest.approx(np.mean(hits))
    confidences = [max(line["probabilities"].values()) for line in lines]
    bins: dict[int, list[int]] = {}
    for place, confidence in enumerate(confidences):
        bins.setdefault(min(14, math.ceil(confidence * 15) - 1), []).append(place)
    gaps = [
        len(members)
        / len(confidences)
        * abs(np.mean([right[i] for i in members]) - np.mean([confidences[i] for i in members]))
        for members in bins.values()
    ]
    assert result["scores"]["ece"] == pytest.approx(sum(gaps), abs=1e-5)
    saved = json.loads((tmp_path / "benchmark_items" / f"step-{record['steps']:06d}.json").read_text())
    assert saved["held_out"]["accuracy"] == [float(hit) for hit in right]


def test_perplexity_and_its_standard_error_over_paragraphs_are_right(
    tmp_path: Path, causal_fit_arguments: list[str]
) -> None:
    """Compare with each window computed alone, and the standard error with a bootstrap over paragraphs."""
    from tests.benchmarks.build import causal, evaluate

    draw = np.random.default_rng(0)
    paragraphs = [
        "".join(chr(97 + letter) for letter in draw.integers(0, 26, size=draw.integers(5, 150))) for _ in range(40)
    ]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(paragraphs), encoding="utf-8")
    task, data = causal(causal_fit_arguments[causal_fit_arguments.index("--model.model_name") + 1])
    result = evaluate(task, data, "perplexity", text_file=str(text)).results["perplexity"]
    sums, counts = [], []
    task.backbone.eval()
    for paragraph in paragraphs:
        ids = data.tokenizer(paragraph)["input_ids"]
        nats = 0.0
        for start in range(0, len(ids), 64):
            window = torch.tensor([[0 if start == 0 else ids[start - 1], *ids[start : start + 64]]])
            with torch.no_grad():
                logs = task.backbone(window).logits[0, :-1].double().log_softmax(-1)
            nats -= float(logs.gather(1, window[0, 1:, None]).sum())
        sums.append(nats)
        counts.append(len(ids))
    assert result.items == 40
    assert result.scores["per_token"] == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-4)
    # each token is a byte
    assert result.scores["bits_per_byte"] == pytest.approx(sum(sums) / math.log(2) / sum(counts), rel=1e-5)
    picks = draw.integers(0, 40, size=(20_000, 40))
    spread = (np.array(sums)[picks].sum(1) / np.array(counts)[picks].sum(1)).std() / math.log(2)
    assert result.standard_errors["bits_per_byte"] == pytest.approx(spread, rel=0.15)


def test_the_example_in_the_base_class_docstring_runs(tiny_llama: str) -> None:
    class Confidence(Benchmark):
        name = "confidence"

        def run(self, live: Live) -> Result:
            rows = [(live.data.tokenizer("the film was").input_ids, [7])]
            [(log, _)] = live.score(rows)
            return Result(scores={"log_likelihood": log}, items=1)

    from tests.benchmarks.build import causal, evaluate

    task, data = causal(tiny_llama)
    evaluation = evaluate(task, data, "confidence")
    assert evaluation.results["confidence"].scores["log_likelihood"] < 0


def test_other_callbacks_are_notified(tmp_path: Path, causal_fit_arguments: list[str]) -> None:
    (tmp_path / "listening.py").write_text(
        "from lightning import Callback\n"
        "class Listener(Callback):\n"
        "    def on_benchmark_start(self, trainer, pl_module): print('begins', trainer.global_step)\n"
        "    def on_benchmark_progress(self, trainer, name, done, total): print(name, done, total)\n"
        "    def on_benchmark_end(self, trainer, pl_module, step, results): print('ended', step, sorted(results))\n"
    )
    done = litpeft(
        *causal_fit_arguments, *BENCHMARKS, "--model.adapter", "LoRA", "--trainer.callbacks", "listening.Listener", "--run_dir", "run",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "begins 0" in done.stdout
    assert "litpeft_generated_2ds 5 5" in done.stdout
    assert "ended 6 ['litpeft_generated_1da', 'litpeft_generated_2ds']" in done.stdout
    assert "generated 2ds acc" in done.stdout
    assert "Running loglikelihood" not in done.stderr


def test_a_later_evaluation_of_a_step_keeps_the_items_of_other_benchmarks(tmp_path: Path) -> None:
    for name in ("one", "two"):
        found = Evaluation(1.0, {name: Result(scores={"acc": 1.0}, items=1, fingerprint=name, per_item={"acc": [1.0]})})
        write_items(tmp_path, 7, found)
    [file] = tmp_path.rglob("step-000007.json")
    assert set(json.loads(file.read_text())) == {"one", "two"}

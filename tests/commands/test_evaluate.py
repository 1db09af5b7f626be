"""`litpeft evaluate`: its results equal those of the run, and of lm-eval's command line on the exported model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from litpeft.__main__ import main
from litpeft.benchmarks.harness import TASKS
from litpeft.commands.evaluate import merged
from litpeft.runs.record import read_record, write_record
from tests.forking import litpeft

TASK = "litpeft_generated_2ds"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, byte_llama: str) -> Path:
    """Return a run of a small causal model, trained for six steps and evaluated at the end."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    assert main([*fit_arguments_of(byte_llama), "--model.adapter", "LoRA", "--run_dir", str(folder)]) == 0
    return folder


def fit_arguments_of(model: str) -> list[str]:
    return [
        *("fit", "--model", "CausalLM", "--model.model_name", model, "--model.dtype", "fp32"),
        *("--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "0.01"),
        *("--data", "ArithmeticInstructions", "--data.train_rows", "12", "--data.val_rows", "4"),
        *("--data.batch_size", "2", "--data.max_length", "256", "--benchmarks.before", "false"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
        *("--benchmarks.tasks", f"[{TASK}]", "--benchmarks.limit", "8", "--benchmarks.keep_items", "true"),
    ]


def test_evaluate_reproduces_the_scores_of_the_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    [earlier] = read_record(run)["benchmarks"]
    command = ["evaluate", str(run), "--limit", "8", "--keep_items", "--accelerator", "cpu"]
    assert main([*command, "--tasks", f"{TASK},litpeft_generated_1da"]) == 0
    output = capsys.readouterr().out
    assert "generated 2ds acc" in output
    assert "step-000006" in output
    [now] = read_record(run)["benchmarks"]
    assert now["step"] == earlier["step"] == 6
    assert now["results"][TASK] == earlier["results"][TASK]
    assert now["results"]["litpeft_generated_1da"]["items"] == 8
    assert now["seconds"] > earlier["seconds"]
    saved = json.loads((run / "benchmark_items" / "step-000006.json").read_text())
    assert set(saved) == {TASK, "litpeft_generated_1da"}
    (run.parent / "text.txt").write_text("the film was a story")
    assert main([*command, "--tasks", "perplexity", "--text_file", str(run.parent / "text.txt")]) == 0
    assert set(read_record(run)["benchmarks"][0]["results"]) == {TASK, "litpeft_generated_1da", "perplexity"}
    assert main(["compare", str(run), "--figures", f"{TASK}_acc,perplexity_bits_per_byte"]) == 0


def test_benchmarks_can_be_added_to_an_old_record_without_them(run: Path) -> None:
    record = read_record(run)
    try:
        write_record(run, {name: value for name, value in record.items() if name != "benchmarks"})
        assert main(["evaluate", str(run), "--limit", "2", "--tasks", TASK, "--accelerator", "cpu"]) == 0
        assert read_record(run)["benchmarks"][0]["results"][TASK]["items"] == 2
    finally:
        write_record(run, record)


def test_new_results_replace_earlier_results_and_skips() -> None:
    first = {"step": 6, "seconds": 1.0, "results": {"a": 1}, "skipped": {"b": "late", "c": "late"}}
    second = {"step": 6, "seconds": 2.0, "results": {"b": 2, "a": 3}, "skipped": {"a": "never"}}
    earlier = {"step": 0, "seconds": 5.0, "results": {}, "skipped": {}}
    result = merged([earlier, first], second)
    assert result[0] == earlier
    assert result[1] == {"step": 6, "seconds": 3.0, "results": {"a": 3, "b": 2}, "skipped": {"c": "late"}}
    assert merged(None, first) == [first]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "--tasks", TASK], "none/record.json: No such file or directory."),
        (["RUN"], "litpeft evaluate: give --tasks, the benchmarks to run, or --merged."),
        (["RUN", "--tasks", "litpeft_nothing"], "benchmarks.tasks: lm-eval has no task 'litpeft_nothing'"),
        (["RUN", "--tasks", TASK, "--limit", "0"], "benchmarks.limit must be at least 1, got 0."),
        (["RUN", "--tasks", "perplexity", "--text_file", "none.txt"], "text_file none.txt: No such file or directory."),
        (
            ["RUN", "--tasks", "litpeft_blimp_causative", "--data_dir", "none"],
            "data_dir none: there is no causative.js",
        ),
        (["RUN", "--tasks", TASK, "--checkpoint", "none/step-000001"], "none"),
        (["RUN", "--tasks", " , "], "--tasks names no benchmark"),
    ],
)
def test_mistakes_are_one_sentence(
    run: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    before = read_record(run)
    assert main(["evaluate", *(str(run) if word == "RUN" else word for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert read_record(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [pytest.param("DoRA", marks=pytest.mark.whole), "QLoRA"])
def test_scores_equal_those_of_lm_evals_command_on_the_exported_model(
    tmp_path: Path, byte_llama: str, adapter: str
) -> None:
    """Compare each item of the merged model (for QLoRA, with the dequantised base) in fp32, in another process."""
    tasks = ["litpeft_generated_2ds", "litpeft_generated_4da", "litpeft_blimp_causative"]
    rows = [{"sentence_good": f"the film {i} was good.", "sentence_bad": f"the film {i} were good."} for i in range(20)]
    (tmp_path / "causative.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = fit_arguments_of(byte_llama)
    arguments[arguments.index("--benchmarks.tasks") + 1] = f"[{','.join(tasks)}]"
    arguments += [
        *("--benchmarks.data_dir", str(tmp_path), "--model.adapter", adapter),
        *("--model.adapter.targets", "all-linear"),
    ]
    done = litpeft(*arguments, "--run_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exported = litpeft("export", "run", "merged", "--format", "merged", "--dtype", "fp32", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", "pretrained=merged,dtype=float32"),
        *("--tasks", ",".join(tasks), "--include_path", str(TASKS), "--limit", "8", "--batch_size", "4"),
        *("--metadata", json.dumps({"data_dir": str(tmp_path)}), "--device", "cpu", "--log_samples"),
        *("--output_path", "out"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    saved = json.loads((tmp_path / "run" / "benchmark_items" / "step-000006.json").read_text())
    results = read_record(tmp_path / "run")["benchmarks"][-1]["results"]
    for name in tasks:
        [file] = (tmp_path / "out").rglob(f"samples_{name}_*.jsonl")
        samples = sorted(
            (json.loads(line) for line in file.read_text().splitlines()), key=lambda sample: sample["doc_id"]
        )
        assert saved[name]["acc"] == [sample["acc"] for sample in samples]
        assert results[name]["items"] == len(samples) == 8
    [file] = (tmp_path / "out").rglob("results_*.json")
    for name, scores in json.loads(file.read_text())["results"].items():
        assert results[name]["scores"]["acc"] == pytest.approx(scores["acc,none"])
        if scores["acc_stderr,none"] != "N/A":
            assert results[name]["standard_errors"]["acc"] == pytest.approx(scores["acc_stderr,none"])


def test_evaluating_twice_gives_the_same_results(run: Path) -> None:
    torch.manual_seed(1)
    scores = []
    for _ in range(2):
        assert main(["evaluate", str(run), "--tasks", TASK, "--limit", "5", "--accelerator", "cpu"]) == 0
        scores.append(read_record(run)["benchmarks"][0]["results"][TASK])
        torch.manual_seed(2)
    assert scores[0] == scores[1]

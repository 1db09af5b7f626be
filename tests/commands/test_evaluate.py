"""`litpeft evaluate`, by the real command line; and lm-eval's own command line on the model that is exported."""

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
from tests.conftest import litpeft

TASK = "litpeft_generated_2ds"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, byte_llama: str) -> Path:
    """Of a small causal model, trained for six steps and measured at the end."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    assert main([*fitting(byte_llama), "--model.adapter", "LoRA", "--run_dir", str(folder)]) == 0
    return folder


def fitting(model: str) -> list[str]:
    return [
        *("fit", "--model", "CausalLM", "--model.model_name", model, "--model.dtype", "fp32"),
        *("--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "0.01"),
        *("--data", "ArithmeticInstructions", "--data.train_rows", "12", "--data.val_rows", "4"),
        *("--data.batch_size", "2", "--data.max_length", "256", "--benchmarks.before", "false"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
        *("--benchmarks.tasks", f"[{TASK}]", "--benchmarks.limit", "8", "--benchmarks.keep_items", "true"),
    ]


def test_afterwards_it_says_what_was_measured_at_the_end(run: Path, capsys: pytest.CaptureFixture) -> None:
    [earlier] = read_record(run)["benchmarks"]
    asked = ["evaluate", str(run), "--limit", "8", "--keep_items", "--accelerator", "cpu"]
    assert main([*asked, "--tasks", f"{TASK},litpeft_generated_1da"]) == 0
    told = capsys.readouterr().out
    assert "generated 2ds acc" in told
    assert "step-000006" in told
    [now] = read_record(run)["benchmarks"]
    assert now["step"] == earlier["step"] == 6
    assert now["results"][TASK] == earlier["results"][TASK]
    assert now["results"]["litpeft_generated_1da"]["items"] == 8
    assert now["seconds"] > earlier["seconds"]
    kept = json.loads((run / "benchmark_items" / "step-000006.json").read_text())
    assert set(kept) == {TASK, "litpeft_generated_1da"}
    (run.parent / "text.txt").write_text("the film was a story")
    assert main([*asked, "--tasks", "perplexity", "--text_file", str(run.parent / "text.txt")]) == 0
    assert set(read_record(run)["benchmarks"][0]["results"]) == {TASK, "litpeft_generated_1da", "perplexity"}
    assert main(["compare", str(run), "--figures", f"{TASK}_acc,perplexity_bits_per_byte"]) == 0


def test_a_record_from_before_there_were_benchmarks_takes_them(run: Path) -> None:
    record = read_record(run)
    try:
        write_record(run, {name: value for name, value in record.items() if name != "benchmarks"})
        assert main(["evaluate", str(run), "--limit", "2", "--tasks", TASK, "--accelerator", "cpu"]) == 0
        assert read_record(run)["benchmarks"][0]["results"][TASK]["items"] == 2
    finally:
        write_record(run, record)


def test_what_is_measured_again_replaces_and_what_was_skipped_is_forgotten_once_it_is_there() -> None:
    first = {"step": 6, "seconds": 1.0, "results": {"a": 1}, "skipped": {"b": "late", "c": "late"}}
    second = {"step": 6, "seconds": 2.0, "results": {"b": 2, "a": 3}, "skipped": {"a": "never"}}
    earlier = {"step": 0, "seconds": 5.0, "results": {}, "skipped": {}}
    told = merged([earlier, first], second)
    assert told[0] == earlier
    assert told[1] == {"step": 6, "seconds": 3.0, "results": {"a": 3, "b": 2}, "skipped": {"c": "late"}}
    assert merged(None, first) == [first]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none", "--tasks", TASK], "none/record.json: No such file or directory."),
        (["RUN"], "litpeft evaluate: the following arguments are required: --tasks"),
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
def test_mistakes_are_one_sentence(run: Path, capsys: pytest.CaptureFixture, words: list[str], said: str) -> None:
    before = read_record(run)
    assert main(["evaluate", *(str(run) if word == "RUN" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert read_record(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["DoRA", "QLoRA"])
def test_scores_are_those_of_lm_eval_s_own_command_on_the_exported_model(
    tmp_path: Path, byte_llama: str, adapter: str
) -> None:
    """Item by item: merged into the base (of QLoRA, the dequantised one), in fp32, by other processes and other code."""
    tasks = ["litpeft_generated_2ds", "litpeft_generated_4da", "litpeft_blimp_causative"]
    rows = [{"sentence_good": f"the film {i} was good.", "sentence_bad": f"the film {i} were good."} for i in range(20)]
    (tmp_path / "causative.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = fitting(byte_llama)
    words[words.index("--benchmarks.tasks") + 1] = f"[{','.join(tasks)}]"
    words += [
        "--benchmarks.data_dir",
        str(tmp_path),
        "--model.adapter",
        adapter,
        "--model.adapter.targets",
        "all-linear",
    ]
    done = litpeft(*words, "--run_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exported = litpeft("export", "run", "merged", "--format", "merged", "--dtype", "fp32", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", "pretrained=merged,dtype=float32"),
        *("--tasks", ",".join(tasks), "--include_path", str(TASKS), "--limit", "8", "--batch_size", "4"),
        *("--metadata", json.dumps({"data_dir": str(tmp_path)}), "--device", "cpu", "--log_samples"),
        *("--output_path", "out"),
    ]
    theirs = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert theirs.returncode == 0, theirs.stderr[-3000:]
    kept = json.loads((tmp_path / "run" / "benchmark_items" / "step-000006.json").read_text())
    results = read_record(tmp_path / "run")["benchmarks"][-1]["results"]
    for name in tasks:
        [file] = (tmp_path / "out").rglob(f"samples_{name}_*.jsonl")
        samples = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda each: each["doc_id"])
        assert kept[name]["acc"] == [sample["acc"] for sample in samples]
        assert results[name]["items"] == len(samples) == 8
    [file] = (tmp_path / "out").rglob("results_*.json")
    for name, told in json.loads(file.read_text())["results"].items():
        assert results[name]["scores"]["acc"] == pytest.approx(told["acc,none"])
        if told["acc_stderr,none"] != "N/A":
            assert results[name]["standard_errors"]["acc"] == pytest.approx(told["acc_stderr,none"])


def test_on_the_same_weights_two_evaluations_are_the_same(run: Path) -> None:
    torch.manual_seed(1)
    scores = []
    for _ in range(2):
        assert main(["evaluate", str(run), "--tasks", TASK, "--limit", "5", "--accelerator", "cpu"]) == 0
        scores.append(read_record(run)["benchmarks"][0]["results"][TASK])
        torch.manual_seed(2)
    assert scores[0] == scores[1]

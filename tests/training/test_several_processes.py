"""Several processes give the results of one process on the same batches, and fail, stop and resume together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from litpeft.commands.estimate import Plan
from litpeft.data.templates import TEXTS
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests import forking
from tests.conftest import litpeft, write_sentences, write_tiny_bert
from tests.resuming import differences, run
from tests.training.launching import output_file, run_processes, run_quietly, start_together

pytestmark = pytest.mark.slow
ROUNDING = 1e-5
ADAPTERS = {
    "none": ["Full"],
    "lora": ["LoRA"],
    "dora": ["DoRA"],
    "qlora-nf4": ["QLoRA"],
    "qlora-fp4": ["QLoRA", "--model.adapter.quant_type", "fp4"],
}
CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--model.dtype", "fp32"]
# SGD, because Adam would hide a gradient that is wrong by a factor
SGD = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1", "--model.optimizer.momentum", "0.9"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """93 rows are five batches of 16 and one of 13 (7 + 6 per rank); 33 rows leave one row, which is merged."""
    folder = tmp_path_factory.mktemp("texts")
    files = write_sentences(folder / "train.tsv", 93), write_sentences(folder / "val.tsv", 33, seed=1)
    return ["--data", "SST2", "--data.train_file", files[0], "--data.val_file", files[1]]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> list[str]:
    """Return options of a classifier without dropout, because the masks differ from process to process."""
    folder = tmp_path_factory.mktemp("no-dropout")
    write_tiny_bert(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
    return ["fit", "--model", "SequenceClassification", "--model.model_name", str(folder), *texts, *CPU, *SGD]


@pytest.fixture(scope="module")
def language_model(byte_llama: str) -> list[str]:
    """Return options of a language model on 23 rows, two batches per step: ranks differ in their number of tokens."""
    rows = ["--data.train_rows", "23", "--data.val_rows", "9", "--data.max_length", "256"]
    model = ["--model", "CausalLM", "--model.model_name", byte_llama, "--data", "ArithmeticInstructions", *rows]
    return ["fit", *model, *CPU, *SGD, "--trainer.accumulate_grad_batches", "2", "--trainer.gradient_clip_val", "1.0"]


def two_processes(rows: int, strategy: str) -> list[str]:
    """Return options that give two processes batches of this many rows together."""
    return ["--data.batch_size", str(rows // 2), "--trainer.devices", "2", "--trainer.strategy", strategy]


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference between the final weights of two runs."""
    a, b = (load_file(newest_checkpoint(folder) / "trainable.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def check_equal(one: Path, other: Path, strategy: str) -> None:
    a, b = read_record(one), read_record(other)
    assert largest_difference(one, other) < ROUNDING
    for name in (
        "status",
        "steps",
        "epochs",
        "effective_batch_size",
        "trainable_params",
        "total_params",
        "model_bytes",
    ):
        assert a[name] == b[name], name
    for name in ("train_loss", "val_loss", "val_accuracy", "val_f1"):
        assert a[name] == pytest.approx(b[name], abs=ROUNDING), name
    assert (b["processes"], b["strategy"]) == (2, strategy)
    assert len(b["peaks_by_process"]) == 2
    assert b["peak_rss_bytes"] == max(peaks["peak_rss_bytes"] for peaks in b["peaks_by_process"])
    # figures per second depend on the machine, figures per row do not
    for name in ("train_tokens_per_second", "trained_tokens_per_second"):
        rows = "train_samples_per_second"
        assert a[name] / a[rows] == pytest.approx(b[name] / b[rows], rel=1e-9), name
    # FLOPs of all ranks; each rank pads only to its own longest row
    assert 0.8 < b["model_flops_per_step"] / a["model_flops_per_step"] < 1.01
    examples: list[dict[str, Any]] = [json.loads((folder / "val_examples.json").read_text()) for folder in (one, other)]
    assert examples[0]["table"] == examples[1]["table"]
    assert examples[0]["loss"] == pytest.approx(examples[1]["loss"], abs=ROUNDING)
    assert len(list(other.glob("events.out.tfevents.*"))) == 1
    assert len(list((other / "checkpoints").iterdir())) == 1


COUNTED = ["--record.predictions", "true", "--throughput.warmup_steps", "0", "--throughput.sample_every", "2"]
COUNTED += ["--memory.track_steps", "[]"]  # tracked steps would be excluded from the rates


@pytest.mark.parametrize(
    ("kind", "adapter", "strategies"),
    [
        ("classifier", "none", ("ddp", "fsdp2")),
        pytest.param("classifier", "lora", ("ddp",), marks=pytest.mark.whole),
        pytest.param("classifier", "dora", ("ddp",), marks=pytest.mark.whole),
        ("classifier", "qlora-nf4", ("ddp", "fsdp2")),
        pytest.param("classifier", "qlora-fp4", ("ddp",), marks=pytest.mark.whole),
        ("language_model", "lora", ("ddp", "fsdp2")),
    ],
)
def test_two_processes_give_the_weights_of_one(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, adapter: str, strategies: tuple[str, ...]
) -> None:
    rows = {"classifier": 16, "language_model": 4}[kind]
    arguments = [*request.getfixturevalue(kind), "--model.adapter", *ADAPTERS[adapter], *COUNTED]
    one, log = tmp_path / "one", tmp_path / "log"
    assert run([*arguments, "--data.batch_size", str(rows), "--run_dir", str(one)], log) == 0, log.read_text()
    for strategy in strategies:
        other = tmp_path / strategy
        codes = run_processes([*arguments, *two_processes(rows, strategy), "--run_dir", str(other)], log)
        assert codes == [0, 0], output_file(log, 0).read_text()
        check_equal(one, other, strategy)
        assert output_file(log, 1).read_text() == ""


@pytest.mark.parametrize("kind", ["classifier", "language_model"])
def test_two_processes_with_batches_of_tokens_give_the_weights_of_one(
    tmp_path: Path, classifier: list[str], byte_llama: str, kind: str
) -> None:
    """The tokens are multiples of the lengths, so both runs see the same batches, of different numbers of rows."""
    log = tmp_path / "log"
    if kind == "classifier":  # rows of 4, 6 and 12 tokens
        tokens, file, arguments = 24, tmp_path / "rows.tsv", classifier
        lines = [f"{'film ' * (2, 4, 10)[i % 5 % 3]}\t{i % 2}" for i in range(92)]
        file.write_text("sentence\tlabel\n" + "\n".join(lines))
    else:  # rows of 256, 384 and 512 tokens
        tokens, file = 1536, tmp_path / "rows.json"
        around = len(TEXTS["alpaca"]["prompt_no_input"].format(instruction="a")) + 1  # bytes, and the end token
        rows = [{"instruction": "a", "output": "b" * ((256, 384, 512)[i % 5 % 3] - around)} for i in range(92)]
        file.write_text(json.dumps(rows))
        arguments = ["fit", "--model", "CausalLM", "--model.model_name", byte_llama, "--data", "Alpaca", *CPU, *SGD]
        arguments += ["--data.max_length", "512", "--trainer.accumulate_grad_batches", "2"]
    arguments = [*arguments, "--data.train_file", str(file), "--data.val_file", str(file), "--model.adapter", "LoRA"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run([*arguments, "--data.batch_tokens", str(2 * tokens), "--run_dir", str(one)], log) == 0, log.read_text()
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_tokens", str(tokens)]
    codes = run_processes([*arguments, *devices, "--run_dir", str(two)], log)
    assert codes == [0, 0], output_file(log, 0).read_text()
    assert largest_difference(one, two) < ROUNDING
    a, b = read_record(one), read_record(two)
    assert a["data_summary"]["tokens_per_row"]["train"]["longest"] == (12 if kind == "classifier" else 512)
    assert a["effective_batch_size"] == b["effective_batch_size"]
    assert a["train_loss"] == pytest.approx(b["train_loss"], abs=ROUNDING)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_signal_to_one_stops_all_and_the_resumed_run_is_bit_identical(
    tmp_path: Path, tiny_model: str, texts: list[str], strategy: str
) -> None:
    """With dropout: each process has its own masks."""
    arguments = ["fit", "--model", "SequenceClassification", "--model.model_name", tiny_model, *texts, *CPU]
    arguments += ["--model.adapter", "LoRA", "--model.adapter.dropout", "0.1", *two_processes(16, strategy)]
    log, whole, stopped = tmp_path / "log", tmp_path / "whole", tmp_path / "stopped"
    assert run_processes([*arguments, "--run_dir", str(whole)], log) == [0, 0]
    fault = ["--trainer.callbacks", "tests.training.faults.SignalTo", "--trainer.callbacks.rank", "1"]
    fault += ["--trainer.callbacks.number", str(int(signal.SIGTERM)), "--trainer.callbacks.batch", "2"]
    codes = run_processes([*arguments, *fault, "--run_dir", str(stopped)], log)
    assert codes[0] == 143, output_file(log, 0).read_text()
    assert read_record(stopped)["status"] == "interrupted"
    assert newest_checkpoint(stopped).name == "step-000003"
    assert run_processes([*arguments, "--run_dir", str(stopped), "--resume"], log) == [0, 0], output_file(
        log, 0
    ).read_text()
    assert differences(whole, stopped) == []


def test_a_sharded_checkpoint_resumes_in_one_process(tmp_path: Path, classifier: list[str], texts: list[str]) -> None:
    """With the optimizer's momentum; one process runs the test."""
    arguments, log = [*classifier, "--model.adapter", "DoRA"], tmp_path / "log"
    one, other = tmp_path / "one", tmp_path / "other"
    alone = ["--data.batch_size", "16"]
    assert run([*arguments, *alone, "--run_dir", str(one), "--trainer.max_steps", "5"], log) == 0
    assert run_processes(
        [*arguments, *two_processes(16, "fsdp2"), "--run_dir", str(other), "--trainer.max_steps", "3"], log
    ) == [
        0,
        0,
    ]
    placed = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    longer = ["--run_dir", str(other), "--resume", "--trainer.max_steps", "5"]
    assert run(["fit", *longer, *placed, "--data.batch_size", "8"], log) == 2
    assert "data.init_args.batch_size" in log.read_text() or "trainer.devices is 1" in log.read_text()
    assert run(["fit", *longer, *placed, *alone], log) == 0, log.read_text()
    assert largest_difference(one, other) < ROUNDING
    assert run(["test", "--run_dir", str(other), "--data.test_file", texts[-1]], log) == 0, log.read_text()
    assert read_record(other)["test_loss"] == pytest.approx(read_record(one)["val_loss"], abs=ROUNDING)


FAULTS = {  # fault in the second process -> the sentence of the first process, and its exit code
    "PoisonIn": (2, "the training loss is nan at step 2 (batch 2 of epoch 0"),
    "FailIn": (1, "the run failed: process 1: no memory is left"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_process_ends_all_with_one_sentence(tmp_path: Path, classifier: list[str], fault: str) -> None:
    code, sentence = FAULTS[fault]
    arguments = [*classifier, "--model.adapter", "LoRA", *two_processes(16, "ddp"), "--run_dir", str(tmp_path / "run")]
    arguments += ["--trainer.callbacks", f"tests.training.faults.{fault}", "--trainer.callbacks.rank", "1"]
    codes = run_processes([*arguments, "--trainer.callbacks.batch", "2"], tmp_path / "log")
    assert codes[0] == code
    assert codes[1] not in (0, -signal.SIGKILL)
    outputs = [output_file(tmp_path / "log", rank).read_text() for rank in (0, 1)]
    (message,) = re.findall(r"^litpeft: error: (.*)$", "".join(outputs), re.MULTILINE)
    assert message.startswith(sentence)
    assert "Traceback" not in "".join(outputs)
    record = read_record(tmp_path / "run")
    assert record["status"] == "failed"
    assert record["error"] in message


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_before_the_others_have_met_ends_them_all(
    tmp_path: Path, classifier: list[str], rank: int
) -> None:
    """Only this process has the wrong option; the other would wait for a day."""
    good = [*classifier, "--model.adapter", "LoRA", *two_processes(16, "ddp"), "--run_dir", str(tmp_path / "run")]
    bad = [*good, "--data.train_samples", "many"]
    logs = [output_file(tmp_path / "log", each) for each in (0, 1)]
    codes = start_together(run_quietly, [(bad if each == rank else good, logs[each]) for each in (0, 1)])
    assert codes[0] == 2
    assert codes[1] not in (0, -signal.SIGKILL)
    assert "data.train_samples must be int" in logs[rank].read_text()
    told = logs[0].read_text()
    assert ("litpeft: error: process 1: data.train_samples" in told) == (rank == 1)
    assert "Traceback" not in told + logs[1].read_text()


def test_the_command_lines_of_the_readme(tmp_path: Path, classifier: list[str]) -> None:
    """Lightning starts the second process itself with the same arguments; torchrun starts both."""
    arguments = [*classifier, "--model.adapter", "LoRA", "--data.batch_size", "8", "--trainer.devices", "2"]
    arguments += ["--trainer.max_steps", "2", "--run_dir", str(tmp_path / "run")]
    made = litpeft(*arguments, GLOO_SOCKET_IFNAME="lo")
    assert made.returncode == 0, made.stderr
    assert [line for line in made.stderr.splitlines() if not line.startswith("litpeft: ")] == []
    assert made.stderr.count("litpeft: train: ") == 1  # told by the first process only
    assert read_record(tmp_path / "run")["strategy"] == "ddp"
    used = forking.litpeft(*arguments)
    assert (used.returncode, used.stderr.count("litpeft: error")) == (2, 1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "litpeft"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    made = subprocess.run(
        [*launcher, *arguments, "--overwrite", "--trainer.strategy", "fsdp2"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    record = read_record(tmp_path / "run")
    assert (record["status"], record["strategy"], record["processes"]) == ("ok", "fsdp2", 2)


REFUSED = {
    "--trainer.devices 2 --trainer.strategy deepspeed": "trainer.strategy deepspeed: give ddp (each process holds the whole model)",
    "--trainer.devices 2 --model.gradient_checkpointing reentrant": "reentrant does not work with several processes; give non_reentrant.",
    "--trainer.devices 2 --trainer.strategy fsdp2 --model.compile_blocks true": "model.compile_blocks does not work with trainer.strategy fsdp2",
    "--trainer.devices 2 --trainer.strategy fsdp2 --model.dtype fp16": "model.dtype fp16 does not work with trainer.strategy fsdp2; give ddp",
    "--trainer.devices 2 --trainer.strategy fsdp2 --model.optimizer bitsandbytes.optim.AdamW8bit": "cannot hold sharded parameters (trainer.strategy fsdp2)",
    "--trainer.devices 2 --trainer.strategy fsdp2 --benchmarks.tasks held_out": "run litpeft evaluate on the finished run, or give ddp.",
}


@pytest.mark.parametrize("options", REFUSED)
def test_unsupported_options_with_several_processes_are_refused(
    tmp_path: Path, classifier: list[str], options: str
) -> None:
    log = tmp_path / "log"
    assert run([*classifier, *options.split(), "--run_dir", str(tmp_path / "run")], log) == 2
    assert REFUSED[options] in log.read_text()


def test_a_search_for_a_learning_rate_uses_one_process(tmp_path: Path, classifier: list[str]) -> None:
    arguments = ["find_lr", *classifier[1:], "--trainer.devices", "2", "--run_dir", str(tmp_path)]
    assert run(arguments, tmp_path / "log") == 2
    assert "litpeft find_lr runs in one process" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_an_estimate_with_the_options_of_fit_matches_the_record(
    tmp_path: Path, classifier: list[str], strategy: str
) -> None:
    options = [*classifier[1:], "--model.adapter", "Full", *two_processes(16, strategy)]
    run_dir = ["--run_dir", str(tmp_path / "run"), "--trainer.max_steps", "1"]
    assert run_processes(["fit", *options, *run_dir], tmp_path / "log") == [0, 0]
    tracked = read_record(tmp_path / "run")["memory_phases"]["first_step"]
    plan = Plan([*options, "--device", "cpu"])
    found = plan.trace(plan.task.adapter).phases["first_step"]
    assert found.tensors.bytes == pytest.approx(tracked["peak_tensor_bytes"], rel=0.01)
    assert found.tensors.split["communication"] == pytest.approx(tracked["tensor_bytes"]["communication"], rel=0.01)
    assert found.sent_bytes == pytest.approx(tracked["sent_bytes"], rel=0.01)

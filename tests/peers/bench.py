"""`make bench-peers`: compare litpeft with Hugging Face Trainer + PEFT.

Classification: MiniLM on the demo's snippets, batch size 32. Instructions: SmolLM2-135M on Alpaca, batch size 8, 256
tokens. Both sides use the same rows, learning rate, dropout, targets and dtype. They run in alternation (A B A B ...),
each in its own process on one thread, so that changes in machine speed affect both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from litpeft.data.arithmetic import ArithmeticInstructions
from litpeft.runs.record import read_record
from tests.peers.step_peak import STEPS
from tests.real_models import minilm, smollm2, snippets

FIGURES = ("train_tokens_per_second", "step_seconds_p50", "peak_tensor_bytes", "peak_rss_bytes")
WARMUP = STEPS + 1  # the measurements in the first steps cost time
ADAPTERS = {"none": "Full", "lora": "LoRA", "dora": "DoRA", "qlora-nf4": "QLoRA"}
SETTINGS = {"classification": (32, 64), "instructions": (8, 256)}  # batch size, maximum tokens per row


def run(command: list[str], threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "KINETO_LOG_LEVEL": "9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def rows_of(task: str, count: int, file: Path | None, other_model: Path | None) -> tuple[Path, list[dict[str, str]]]:
    """Return the model folder and the training rows of both sides."""
    if task == "classification":
        model, text = other_model or minilm(), snippets()
        with open(text, encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))
    else:
        model = other_model or smollm2()
        if file is None:  # without Alpaca: generated sums
            examples = ArithmeticInstructions(train_rows=count).examples("train")
            rows = [{"instruction": question, "input": "", "output": answer} for question, _, answer in examples]
        else:
            rows = [row for row in json.loads(file.read_text(encoding="utf-8")) if row["output"].strip()]
    random.Random(0).shuffle(rows)
    return model, rows[:count]


def run_litpeft(task: str, adapter: str, model: Path, rows: Path, options: argparse.Namespace) -> dict[str, Any]:
    batch, length = options.batch_size or SETTINGS[task][0], options.max_length or SETTINGS[task][1]
    classify = task == "classification"
    arguments = ["--model", "SequenceClassification" if classify else "CausalLM", "--model.model_name", str(model)]
    arguments += ["--data", "TextClassification" if classify else "Alpaca", "--data.train_file", str(rows)]
    arguments += ["--model.dtype", options.dtype, "--model.adapter", ADAPTERS[adapter]]
    if adapter != "none":
        targets = "[query,value]" if classify else "[q_proj,v_proj]"
        arguments += ["--model.adapter.rank", "8", "--model.adapter.alpha", "16", "--model.adapter.targets", targets]
        arguments += ["--model.adapter.dropout", str(options.dropout)]
    arguments += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", str(options.lr)]
    arguments += ["--model.optimizer.fused", "true", "--model.optimizer.weight_decay", "0"]
    arguments += ["--data.batch_size", str(batch)]
    arguments += ["--data.max_length", str(length), "--data.val_file", str(rows), "--trainer.limit_val_batches", "0"]
    arguments += ["--throughput.warmup_steps", str(WARMUP), "--trainer.enable_progress_bar", "false"]
    arguments += ["--trainer.gradient_clip_val", "1.0", "--trainer.logger", "false"]
    arguments += ["--trainer.callbacks", "tests.peers.step_peak.Measure"]
    with tempfile.TemporaryDirectory() as scratch:
        run([sys.executable, "-m", "litpeft", "fit", "--run_dir", scratch, *arguments], options.threads)
        return read_record(Path(scratch)) | json.loads((Path(scratch) / "peak.json").read_text())


def run_trainer(task: str, adapter: str, model: Path, rows: Path, options: argparse.Namespace) -> dict[str, Any]:
    batch, length = options.batch_size or SETTINGS[task][0], options.max_length or SETTINGS[task][1]
    arguments = ["--task", task, "--model", str(model), "--train_file", str(rows), "--adapter", adapter]
    arguments += ["--dtype", options.dtype, "--batch_size", str(batch), "--max_length", str(length)]
    arguments += ["--lr", str(options.lr), "--dropout", str(options.dropout), "--warmup_steps", str(WARMUP)]
    return json.loads(
        run([sys.executable, "-m", "tests.peers.hf_trainer", *arguments], options.threads).splitlines()[-1]
    )


def compare(task: str, adapter: str, options: argparse.Namespace) -> None:
    model, rows = rows_of(task, options.rows[task], options.alpaca, options.model)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.json"
        file.write_text(json.dumps(rows))
        pairs = [
            (run_litpeft(task, adapter, model, file, options), run_trainer(task, adapter, model, file, options))
            for _ in range(options.pairs)
        ]
    litpeft, trainer = pairs[-1]
    assert litpeft["trainable_params"] == trainer["trainable_params"], "the trainable parameters differ"
    print(
        f"\n{task}, {adapter}, {options.dtype}, {len(rows)} rows; {options.pairs} pairs on {options.threads} thread(s)"
    )
    for name in FIGURES:
        a, b = (statistics.median(pair[side][name] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[0][name] / pair[1][name] for pair in pairs)
        print(f"  {name:26} litpeft {a:16,.3f}   trainer+peft {b:16,.3f}   ratio {ratio:.2f}")
    ratio = statistics.median(1 / p[0]["padded_tokens_per_second"] / p[0]["floor_seconds_per_token"] for p in pairs)
    print(f"  a litpeft step takes {ratio:.2f} times as long as the matrix products with the frozen weights alone")
    for name, part in (("mean of the first 5 losses", slice(0, 5)), ("mean of the last 5 losses", slice(-5, None))):
        a, b = (statistics.mean(side["losses"][part]) for side in (litpeft, trainer))
        print(f"  {name:26} litpeft {a:16.4f}   trainer+peft {b:16.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--adapters", nargs="+", choices=list(ADAPTERS), default=["lora", "dora", "qlora-nf4"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="dropout of the adapters; the models keep their own dropout"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--classification_rows", type=int, default=1280)
    parser.add_argument("--instruction_rows", type=int, default=128)
    parser.add_argument("--model", type=Path, help="folder of a model to use instead, on both sides")
    parser.add_argument("--batch_size", type=int, help="rows per batch")
    parser.add_argument("--max_length", type=int, help="maximum tokens per row")
    parser.add_argument("--alpaca", type=Path, help="JSON file with the rows of Alpaca; default: generated sums")
    options = parser.parse_args()
    options.rows = {"classification": options.classification_rows, "instructions": options.instruction_rows}
    for task in options.tasks:
        for adapter in options.adapters:
            compare(task, adapter, options)


if __name__ == "__main__":
    main()

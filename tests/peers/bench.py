"""`make bench-peers`: litpeft beside Hugging Face Trainer + PEFT, as a ratio.

Classification: MiniLM on the demo's snippets, batches of 32. Instructions: SmolLM2-135M on Alpaca's rows, batches of 8, 256
tokens. The same rows, learning rate, dropout, targets and dtype on both sides. They run in alternation (A B A B ...), each
in a process of its own on one thread, so that a drift of the machine falls on both.
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
WARMUP = STEPS + 1  # what is measured within them costs time
ADAPTERS = {"none": "Full", "lora": "LoRA", "dora": "DoRA", "qlora-nf4": "QLoRA"}
SETTINGS = {"classification": (32, 64), "instructions": (8, 256)}  # batch size, tokens a row at most


def run(command: list[str], threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "KINETO_LOG_LEVEL": "9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def rows_of(task: str, count: int, file: Path | None, given: Path | None) -> tuple[Path, list[dict[str, str]]]:
    """The model, and the rows that both sides train on."""
    if task == "classification":
        model, text = given or minilm(), snippets()
        with open(text, encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))
    else:
        model = given or smollm2()
        if file is None:  # without Alpaca's own rows: sums
            made = ArithmeticInstructions(train_rows=count).examples("train")
            rows = [{"instruction": asked, "input": "", "output": answer} for asked, _, answer in made]
        else:
            rows = [row for row in json.loads(file.read_text(encoding="utf-8")) if row["output"].strip()]
    random.Random(0).shuffle(rows)
    return model, rows[:count]


def ours(task: str, adapter: str, model: Path, rows: Path, options: argparse.Namespace) -> dict[str, Any]:
    batch, length = options.batch_size or SETTINGS[task][0], options.max_length or SETTINGS[task][1]
    classify = task == "classification"
    words = ["--model", "SequenceClassification" if classify else "CausalLM", "--model.model_name", str(model)]
    words += ["--data", "TextClassification" if classify else "Alpaca", "--data.train_file", str(rows)]
    words += ["--model.dtype", options.dtype, "--model.adapter", ADAPTERS[adapter]]
    if adapter != "none":
        targets = "[query,value]" if classify else "[q_proj,v_proj]"
        words += ["--model.adapter.rank", "8", "--model.adapter.alpha", "16", "--model.adapter.targets", targets]
        words += ["--model.adapter.dropout", str(options.dropout)]
    words += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", str(options.lr)]
    words += ["--model.optimizer.fused", "true", "--model.optimizer.weight_decay", "0", "--data.batch_size", str(batch)]
    words += ["--data.max_length", str(length), "--data.val_file", str(rows), "--trainer.limit_val_batches", "0"]
    words += ["--throughput.warmup_steps", str(WARMUP), "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.gradient_clip_val", "1.0", "--trainer.logger", "false"]
    words += ["--trainer.callbacks", "tests.peers.step_peak.Measure"]
    with tempfile.TemporaryDirectory() as scratch:
        run([sys.executable, "-m", "litpeft", "fit", "--run_dir", scratch, *words], options.threads)
        return read_record(Path(scratch)) | json.loads((Path(scratch) / "peak.json").read_text())


def theirs(task: str, adapter: str, model: Path, rows: Path, options: argparse.Namespace) -> dict[str, Any]:
    batch, length = options.batch_size or SETTINGS[task][0], options.max_length or SETTINGS[task][1]
    words = ["--task", task, "--model", str(model), "--train_file", str(rows), "--adapter", adapter]
    words += ["--dtype", options.dtype, "--batch_size", str(batch), "--max_length", str(length)]
    words += ["--lr", str(options.lr), "--dropout", str(options.dropout), "--warmup_steps", str(WARMUP)]
    return json.loads(run([sys.executable, "-m", "tests.peers.hf_trainer", *words], options.threads).splitlines()[-1])


def compare(task: str, adapter: str, options: argparse.Namespace) -> None:
    model, rows = rows_of(task, options.rows[task], options.alpaca, options.model)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.json"
        file.write_text(json.dumps(rows))
        pairs = [
            (ours(task, adapter, model, file, options), theirs(task, adapter, model, file, options))
            for _ in range(options.pairs)
        ]
    mine, other = pairs[-1]
    assert mine["trainable_params"] == other["trainable_params"], "the two sides do not train the same"
    print(
        f"\n{task}, {adapter}, {options.dtype}, {len(rows)} rows; {options.pairs} pairs on {options.threads} thread(s)"
    )
    for name in FIGURES:
        a, b = (statistics.median(pair[side][name] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[0][name] / pair[1][name] for pair in pairs)
        print(f"  {name:26} litpeft {a:16,.3f}   trainer+peft {b:16,.3f}   ratio {ratio:.2f}")
    over = statistics.median(1 / p[0]["padded_tokens_per_second"] / p[0]["floor_seconds_per_token"] for p in pairs)
    print(f"  litpeft's step is {over:.2f} times its floor, the products with the frozen weights alone")
    for name, part in (("mean of the first 5 losses", slice(0, 5)), ("mean of the last 5 losses", slice(-5, None))):
        a, b = (statistics.mean(side["losses"][part]) for side in (mine, other))
        print(f"  {name:26} litpeft {a:16.4f}   trainer+peft {b:16.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--adapters", nargs="+", choices=list(ADAPTERS), default=["lora", "dora", "qlora-nf4"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapters; that of the models stays on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--classification_rows", type=int, default=1280)
    parser.add_argument("--instruction_rows", type=int, default=128)
    parser.add_argument("--model", type=Path, help="folder of another model for both sides")
    parser.add_argument("--batch_size", type=int, help="rows a batch")
    parser.add_argument("--max_length", type=int, help="tokens a row at most")
    parser.add_argument("--alpaca", type=Path, help="Alpaca's rows as JSON; generated sums without it")
    options = parser.parse_args()
    options.rows = {"classification": options.classification_rows, "instructions": options.instruction_rows}
    for task in options.tasks:
        for adapter in options.adapters:
            compare(task, adapter, options)


if __name__ == "__main__":
    main()

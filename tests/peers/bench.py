"""`make bench`: litpeft beside Hugging Face Trainer + PEFT, as a ratio.

Both fine-tune MiniLM on the demo's snippets: the same rows a step, learning rate, dropout, targets and dtype. They run in
alternation (A B A B ...), each in a process of its own on one thread, so that a drift of the machine falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from litpeft.commands.demo import fetch_assets
from litpeft.data.cache import default_cache_dir
from litpeft.records import read_record

FIGURES = ("train_tokens_per_second", "step_seconds_p50", "peak_rss_bytes")
WARMUP, BATCH, LENGTH = 5, 32, 64


def run(command: list[str], threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def ours(model: Path, text: Path, options: argparse.Namespace) -> dict[str, float]:
    adapter = {
        "lora": ["LoRA", "--model.adapter.rank", "8", "--model.adapter.alpha", "16", "--model.adapter.dropout", "0.05"],
        "none": ["Full"],
    }[options.adapter]
    with tempfile.TemporaryDirectory() as scratch:
        run(
            [
                *(sys.executable, "-m", "litpeft", "fit", "--run_dir", scratch, "--model", "SequenceClassification"),
                *("--model.model_name", str(model), "--model.dtype", options.dtype, "--model.adapter", *adapter),
                *("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", str(options.lr)),
                *(
                    "--model.optimizer.fused",
                    "true",
                    "--model.optimizer.weight_decay",
                    "0",
                    "--data",
                    "TextClassification",
                ),
                *("--data.train_file", str(text), "--data.train_samples", str(options.samples)),
                *("--data.batch_size", str(BATCH), "--data.max_length", str(LENGTH), "--data.val_samples", "64"),
                *("--throughput.warmup_steps", str(WARMUP), "--trainer.enable_progress_bar", "false"),
                *("--trainer.gradient_clip_val", "1.0", "--trainer.logger", "false"),
            ],
            options.threads,
        )
        return read_record(Path(scratch))


def theirs(model: Path, text: Path, options: argparse.Namespace) -> dict[str, float]:
    script = Path(__file__).parent / "hf_trainer.py"
    words = ["--model", str(model), "--train_file", str(text), "--adapter", options.adapter, "--dtype", options.dtype]
    words += ["--samples", str(options.samples), "--batch_size", str(BATCH), "--max_length", str(LENGTH)]
    words += ["--lr", str(options.lr), "--warmup_steps", str(WARMUP)]
    return json.loads(run([sys.executable, str(script), *words], options.threads).splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--adapter", choices=["none", "lora"], default="lora")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--samples", type=int, default=1280)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model, text = fetch_assets(default_cache_dir() / "demo")
    pairs = []
    for number in range(options.pairs):
        pairs.append((ours(model, text, options), theirs(model, text, options)))
        a, b = pairs[-1]
        print(
            f"pair {number + 1}: {a['train_tokens_per_second']:,.0f} to {b['train_tokens_per_second']:,.0f} tokens/s",
            flush=True,
        )
    assert a["trainable_params"] == b["trainable_params"], "the two sides do not train the same"
    print(f"\n{options.adapter} {options.dtype}, medians of {options.pairs} pairs on {options.threads} thread(s):")
    for name in FIGURES:
        mine, other = (statistics.median(pair[i][name] for pair in pairs) for i in (0, 1))
        ratio = statistics.median(pair[0][name] / pair[1][name] for pair in pairs)
        print(f"{name:26} litpeft {mine:14,.3f}   trainer+peft {other:14,.3f}   ratio {ratio:.2f}")
    print(f"train loss                 litpeft {a['train_loss']:14.4f}   trainer+peft {b['train_loss']:14.4f}")


if __name__ == "__main__":
    main()

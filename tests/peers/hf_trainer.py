"""The peer: Hugging Face Trainer + PEFT on a classification set, set up as well as we know how.

Base weights in bf16 (or fp32) with fp32 adapters, batches grouped by length, dynamic padding, fused AdamW, no evaluation
and no saving. Prints one JSON line by the names of litpeft's record.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import transformers
from datasets import load_dataset
from peft import LoraConfig, get_peft_model


class Clock(transformers.TrainerCallback):
    """When each step ended, and the losses that were logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, args, state, control, **_) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **_) -> None:
        self.losses += [float(logs["loss"])] if "loss" in (logs or {}) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train_file", required=True, help="TSV with columns text and label (names)")
    parser.add_argument("--adapter", choices=["none", "lora"], required=True)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--max_length", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--warmup_steps", type=int, required=True, help="first steps that the rates leave out")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    rows = load_dataset("csv", data_files=options.train_file, delimiter="\t", quoting=3, split="train")
    rows = rows.shuffle(seed=0).select(range(options.samples))
    rows = rows.map(
        lambda row: (
            tokenizer(row["text"], truncation=True, max_length=options.max_length)
            | {"labels": ["negative", "positive"].index(row["label"])}
        ),
        remove_columns=["text", "label"],
    )
    mixed = options.dtype == "bf16" and options.adapter == "none"  # full fine-tuning keeps fp32 weights
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=2, dtype=torch.bfloat16 if options.dtype == "bf16" and not mixed else torch.float32
    )
    if options.adapter == "lora":
        config = LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["query", "value"], task_type="SEQ_CLS"
        )
        model = get_peft_model(model, config)
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        settings = transformers.TrainingArguments(
            output_dir=scratch,
            report_to=[],
            save_strategy="no",
            per_device_train_batch_size=options.batch_size,
            num_train_epochs=1,
            learning_rate=options.lr,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            bf16=mixed,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=5,
            train_sampling_strategy="group_by_length",
        )
        trainer = transformers.Trainer(
            model=model,
            args=settings,
            train_dataset=rows,
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            callbacks=[clock],
        )
        trainer.train()
    skipped = options.warmup_steps
    seconds = np.diff(clock.ends)[skipped - 1 :]
    share = len(seconds) / len(clock.ends)  # lengths are grouped at random, so the tokens of a share of steps follow it
    told = {
        "train_tokens_per_second": sum(map(len, rows["input_ids"])) * share / float(seconds.sum()),
        "step_seconds_p50": float(np.median(seconds)),
        "peak_rss_bytes": int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024,
        "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_loss": float(np.mean(clock.losses)),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()

"""The peer of `make bench-peers`: train with Hugging Face Trainer + PEFT, in their fastest fair setup.

Base weights in bf16, fp32 or 4-bit with fp32 adapters, batches grouped by length, dynamic padding, masked prompts, fused
AdamW, no evaluation and no saving. Prints one JSON line with the field names of litpeft's record.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from litpeft.data.templates import ALPACA
from litpeft.data.token_rows import IGNORED
from tests.peers.live_bytes import StepPeak
from tests.peers.step_peak import STEPS


class Clock(transformers.TrainerCallback):
    """Record the end time of each step, the logged losses, and peak memory in the first steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.peak = StepPeak()

    def on_step_begin(self, args, state, control, **_) -> None:
        if state.global_step == 0:
            self.peak.start()

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step == STEPS:
            self.peak.stop()
        self.ends.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **_) -> None:
        self.losses += [float(logs["loss"])] if "loss" in (logs or {}) else []


def labelled(rows: list[dict[str, str]], tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Return tokenised texts with their class."""
    names = sorted({row["label"] for row in rows})
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=length)
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": names.index(row["label"])}
        for ids, row in zip(encoded["input_ids"], rows, strict=True)
    ]


def instructed(rows: list[dict[str, str]], tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Return prompts with responses; prompt tokens have no loss."""
    encoded = []
    for row in rows:
        text = ALPACA["prompt_input" if row.get("input") else "prompt_no_input"]
        prompt = tokenizer(text.format(**{"input": "", **row}))["input_ids"]
        response = tokenizer(row["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids, labels = (prompt + response)[:length], ([IGNORED] * len(prompt) + response)[:length]
        if any(label != IGNORED for label in labels):
            encoded.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["classification", "instructions"], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train_file", required=True, help="JSON: text and label, or instruction, input and output")
    parser.add_argument("--adapter", choices=["none", "lora", "dora", "qlora-nf4"], required=True)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--max_length", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--warmup_steps", type=int, required=True, help="first steps that the rates exclude")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    classify = options.task == "classification"
    rows = json.loads(Path(options.train_file).read_text())
    encoded = (labelled if classify else instructed)(rows, tokenizer, options.max_length)
    mixed = options.dtype == "bf16" and options.adapter == "none"  # full fine-tuning keeps fp32 weights
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    settings: dict[str, Any] = {"dtype": torch.float32 if mixed else dtype}
    if options.adapter.startswith("qlora"):
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # replaces the defaults; PEFT cannot train a 4-bit head
            llm_int8_skip_modules=["classifier"] if classify else None,
        )
    if classify:
        auto = transformers.AutoModelForSequenceClassification
        settings["num_labels"] = 2
        collate: Any = transformers.DataCollatorWithPadding(tokenizer)
        targets, task = ["query", "value"], "SEQ_CLS"
    else:
        auto, targets, task = transformers.AutoModelForCausalLM, ["q_proj", "v_proj"], "CAUSAL_LM"
        collate = transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    model = auto.from_pretrained(options.model, **settings)
    if options.adapter != "none":
        extra = {"lora_dropout": options.dropout, "use_dora": options.adapter == "dora"}
        config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type=task, **extra)
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
            logging_steps=1,
            train_sampling_strategy="group_by_length",
        )
        trainer = transformers.Trainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_list(encoded),
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    skipped = options.warmup_steps
    seconds = np.diff(clock.ends)[skipped - 1 :]
    # lengths are shuffled, so a share of the steps has about the same share of the tokens
    share = len(seconds) / len(clock.ends)
    results = {
        "train_tokens_per_second": sum(len(row["input_ids"]) for row in encoded) * share / float(seconds.sum()),
        "step_seconds_p50": float(np.median(seconds)),
        "peak_tensor_bytes": clock.peak.bytes,
        "peak_rss_bytes": int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024,
        "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "losses": clock.losses,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Write run folders with made-up figures, as `litpeft fit` does."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from litpeft.runs.record import new_record, write_record

CLASSES = {"none": "Full", "lora": "LoRA", "dora": "DoRA", "qlora-nf4": "QLoRA"}
FIGURES = {
    **{"val_loss": 0.4, "peak_tensor_bytes": 300_000_000, "peak_rss_bytes": 1_500_000_000, "train_seconds": 90.0},
    **{"train_tokens_per_second": 2000.0, "step_seconds_p50": 0.36},
    **{"trainable_params": 74_498, "adapter_bytes": 297_992, "model_bytes": 45_732_616},
}
CONFIG = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": None, "log_every_n_steps": 10},
    "model": {
        "class_path": "litpeft.tasks.SequenceClassification",
        "init_args": {
            "model_name": "minilm",
            "adapter": {"class_path": "litpeft.adapters.LoRA", "init_args": {"rank": 8, "rank_pattern": {}}},
            "dtype": "bf16",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
            "scheduler": None,
        },
    },
    "data": {
        "class_path": "litpeft.data.SST2",
        "init_args": {"train_file": "train.tsv", "val_file": "val.tsv", "batch_size": 32, "seed": None},
    },
    "checkpoint": {"every_n_steps": None, "keep": "last"},
    "throughput": {"sample_every": 10},
}


def write_run(
    folder: Path,
    adapter: str = "lora",
    seed: int = 0,
    accuracy: float | None = 0.85,
    options: dict[str, Any] | None = None,
    examples: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """Write a run folder; `options` are dotted config keys, `fields` replace fields of the record."""
    config = deepcopy(CONFIG)
    config["seed_everything"] = seed
    config["model"]["init_args"]["adapter"]["class_path"] = f"litpeft.adapters.{CLASSES[adapter]}"
    if adapter == "none":
        config["model"]["init_args"]["adapter"]["init_args"] = {}
    for key, item in (options or {}).items():
        *path, last = key.split(".")
        section = config
        for part in path:
            section = section.setdefault(part, {})
        section[last] = item
    tables = {split: {"fingerprint": f"{split}-1"} for split in ("train", "val")}
    lr = config["model"]["init_args"]["optimizer"]["init_args"].get("lr")
    record = new_record() | FIGURES | {
        **{"status": "ok", "experiment": "made_up", "adapter": adapter, "seed": seed, "val_accuracy": accuracy},
        **{"config": config, "optimizer": "torch.optim.adamw.AdamW", "optimizer_settings": [{"initial_lr": lr}]},
        **{"data_summary": {"rows": {"train": 6920, "val": 872}, "tables": tables}, "val_step": 100},
        **{"machine": {"processor": "x", "cpu_count": 2, "threads": 1, "device": "cpu", "cuda": None}},
        **{"packages": {"torch": "2.13.0"}, "git": {"commit": "a" * 40, "dirty": False}},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if examples is not None:
        (folder / "val_examples.json").write_text(json.dumps({"step": 100, "table": "val-1"} | examples))
        record["val_examples"] = "val_examples.json"
    write_record(folder, record | fields)
    return folder


def write_grid(folder: Path, accuracies: dict[str, list[float]], **common: Any) -> Path:
    """Write runs for each adapter and seed."""
    for adapter, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            write_run(folder / adapter / f"seed{seed}", adapter, seed, accuracy, **common)
    return folder

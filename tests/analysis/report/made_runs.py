"""Write run folders with records and event files of made-up numbers: three groups of three seeds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from litpeft.runs.record import new_record, write_record

MIB = 2**20
GROUPS = {  # accuracy, seconds per step, MiB of (base weights, adapter, gradients, optimizer state, activations)
    "none": (0.90, 0.60, (90, 0, 90, 180, 200)),
    "lora": (0.89, 0.40, (90, 2, 2, 4, 190)),
    "qlora-nf4": (0.86, 0.50, (26, 2, 2, 4, 210)),
}
SPLIT = "base_weights", "adapter_weights", "gradients", "optimizer_state", "activations"


def write_runs(folder: Path, adapters: Mapping[str, str] | None = None, seeds: int = 3, steps: int = 200) -> Path:
    """Write finished runs, and one run that failed with out of memory.

    Args:
        folder: folder of the runs.
        adapters: {group: adapter name to record instead}.
        seeds: number of seeds per group.
        steps: number of steps; every tenth is logged.
    """
    for name in GROUPS:
        shown = (adapters or {}).get(name, name)
        for seed in range(seeds):
            write_run(folder / name / f"seed{seed}", shown, name, seed, steps)
    write_run(
        folder / "lora" / f"seed{seeds}", (adapters or {}).get("lora", "lora"), "lora", seeds, steps, status="oom"
    )
    return folder


def write_run(folder: Path, adapter: str, like: str, seed: int, steps: int = 200, **more: Any) -> dict[str, Any]:
    """Write one run and return its record; `more` replaces fields of the record."""
    folder.mkdir(parents=True)
    draw = random.Random(f"{like} {seed}")
    accuracy, seconds, split = GROUPS[like]
    accuracy += draw.gauss(0, 0.004)
    validations = [
        {
            "step": steps * part // 4,
            "epochs": part / 4,
            "train_seconds": seconds * steps * part / 4,
            "val_loss": 0.3 + 0.4 / part,
            "val_accuracy": accuracy - 0.1 / part + 0.025,
        }
        for part in (1, 2, 3, 4)
    ]
    bytes_of = {name: size * MIB for name, size in zip(SPLIT, split, strict=True)}
    record = new_record() | {
        "status": "ok",
        "experiment": "made_up",
        "adapter": adapter,
        "seed": seed,
        "steps": steps,
        "model_name": "tiny",
        "precision": "bf16",
        "trainable_params": split[1] * MIB // 4 or split[0] * MIB // 2,
        "total_params": 45 * MIB,
        "adapter_bytes": split[1] * MIB or split[0] * MIB,
        "model_bytes": split[0] * MIB,
        "peak_tensor_bytes": sum(split) * MIB,
        "peak_rss_bytes": (sum(split) + 600 + draw.randint(0, 9)) * MIB,
        "memory_phases": {
            "load": {"peak_rss_bytes": 500 * MIB, "tensor_bytes": bytes_of | {"gradients": 0, "activations": 0}},
            "train": {"peak_rss_bytes": 700 * MIB, "peak_tensor_bytes": sum(split) * MIB, "tensor_bytes": bytes_of},
            "validate": {"peak_rss_bytes": 650 * MIB},
        },
        "train_seconds": seconds * steps,
        "step_seconds_p50": seconds * (1 + draw.uniform(-0.05, 0.05)),
        "step_split_seconds_p50": {
            "data_wait": 0.01,
            "forward": seconds / 3,
            "backward": seconds / 2,
            "optimizer": 0.02,
        },
        "train_tokens_per_second": 1000 / seconds + draw.gauss(0, 20),
        "train_loss": 0.3,
        "val_loss": validations[-1]["val_loss"] + draw.gauss(0, 0.005),
        "val_accuracy": accuracy,
        "validations": validations,
        "config": {"seed_everything": seed, "model": {"init_args": {"adapter": {"class_path": f"litpeft.{like}"}}}},
        "machine": {"processor": "AMD EPYC", "device": "cpu", "cpu_count": 2},
        "packages": {"torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
    }
    if more.get("status", "ok") != "ok":
        record |= {"val_loss": None, "val_accuracy": None, "validations": None, "error": "CUDA is out of memory: ..."}
    write_record(folder, record | more)
    with SummaryWriter(str(folder)) as writer:
        for step in range(9, steps, 10):
            writer.add_scalar("train_loss", 0.7 * 0.985 ** (step / 2) + 0.2 + draw.gauss(0, 0.03), step)
            writer.add_scalar("lr", 1e-3 * (1 - step / steps), step)
            writer.add_scalar("train_tokens_per_second", 1000 / seconds + draw.gauss(0, 50), step)
        writer.add_scalar("train_tokens_per_second", 1.0, steps)  # the value logged at the end is not part of the curve
    return record

"""What a record says of a run before anything is measured: what was asked for, where it runs, and what was built."""

from __future__ import annotations

import os
from typing import Any

from lightning import LightningModule, Trainer

from litpeft.optim.build import live_settings
from litpeft.runs.environment import git_state, machine, packages
from litpeft.training.strategies import name_of


def setting(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What is known before the model is loaded, by the record's names."""
    adapter = pl_module.adapter
    return {
        "adapter": adapter.name,
        "adapter_options": adapter.settings(),
        "task": type(pl_module).__name__,
        "model_name": pl_module.model_name,
        "data": type(trainer.datamodule).__name__,
        "precision": pl_module.dtype_name,
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "packages": packages(),
        "machine": machine(pl_module.device),
        "git": git_state(),
    }


def built(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What is known once the model, the data and the optimizer are there."""
    counts = pl_module.adapter.describe(pl_module.backbone)
    sizes = {name: counts.pop(name) for name in ("trainable_params", "total_params", "adapter_bytes", "model_bytes")}
    optimizer, schedules, data = trainer.optimizers[0], trainer.lr_scheduler_configs, trainer.datamodule
    return sizes | {
        "adapter_summary": counts,
        "data_summary": data.describe(),
        "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__name__}",
        "optimizer_settings": live_settings(optimizer),
        "scheduler": type(schedules[0].scheduler).__name__ if schedules else None,
        "new_tensors": pl_module.new_tensors,
        "load_seconds": pl_module.load_seconds,
        "effective_batch_size": data.batch_size * trainer.accumulate_grad_batches * trainer.world_size,
        "processes": trainer.world_size,
        "strategy": name_of(trainer.strategy),
    }

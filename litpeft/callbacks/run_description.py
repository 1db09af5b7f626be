"""The record fields that describe a run before training: configuration, machine, model, data and optimizer."""

from __future__ import annotations

import os
import sys
from typing import Any

from lightning import LightningModule, Trainer

from litpeft.adapters.quantised_model import quantisation_name
from litpeft.data.told import tell
from litpeft.optim.build import optimizer_settings
from litpeft.runs.environment import git_state, machine, packages
from litpeft.tasks.row_weights import mean_rows
from litpeft.training.strategies import parallel_strategy_name


def describe_setup(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the record fields that are known before the model is loaded."""
    adapter = pl_module.adapter
    return {
        "adapter": adapter.name,
        "adapter_options": adapter.settings(),
        "task": type(pl_module).__name__,
        "model_name": pl_module.model_name,
        "data": type(trainer.datamodule).__name__,
        "precision": pl_module.dtype_name,
        "tf32": pl_module.tf32 and pl_module.device.type == "cuda",
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "packages": packages(),
        "machine": machine(pl_module.device),
        "git": git_state(),
    }


SMALL_SHARE = 0.02  # of all parameters: what an adapter leaves out is recorded, and printed from this share


def print_notices(trainer: Trainer, record: dict[str, Any]) -> None:
    """Print what the user should know about data and model before training, once if several processes train."""
    if not trainer.is_global_zero:
        return
    tell(record["data_summary"])
    if mean := mean_rows(trainer):
        print(
            f"litpeft: batches of at most {trainer.datamodule.batch_tokens:,} tokens per device (data.batch_tokens), "
            f"{mean / trainer.world_size:.1f} rows on average; data.batch_size is not used.",
            file=sys.stderr,
        )
    tell_what_is_not_adapted(record)
    tell_how_head_labels_match(record)
    tell_what_is_random(record)


def tell_if_not_validated(trainer: Trainer, record: dict[str, Any]) -> None:
    """Print after training that its last weights were not validated: the record's figures are of an earlier step."""
    if not trainer.is_global_zero or not trainer.enable_validation:
        return
    steps = [each["step"] for each in record["validations"] or []]
    if steps[-1:] != [trainer.global_step]:
        figures = f"those of step {steps[-1]:,}" if steps else "unknown"
        print(
            f"litpeft: warning: the weights at the end (step {trainer.global_step:,}) were not validated; the "
            f"validation figures are {figures}: give a smaller trainer.val_check_interval or "
            "trainer.check_val_every_n_epoch.",
            file=sys.stderr,
        )


def tell_what_is_random(record: dict[str, Any]) -> None:
    """Print that a model which is not trained has new tensors, such as a head."""
    if record["trainable_params"] == 0 and (new := record["new_tensors"]):
        print(
            f"litpeft: warning: {new[0]} and {len(new) - 1} other tensors are new and random, and nothing is trained: "
            "the figures say nothing about the model.",
            file=sys.stderr,
        )


def tell_what_is_not_adapted(record: dict[str, Any]) -> None:
    """Print which kinds of weights the adapter leaves out, if they hold at least 2 % of the parameters."""
    for kind, found in (record["adapter_summary"] or {}).get("not_adapted", {}).items():
        share = found["params"] / record["total_params"]
        if share >= SMALL_SHARE:
            reachable = kind == "experts" and record["adapter_options"].get("method") is None  # not by PEFT's methods
            advice = "; to adapt them, add mlp to model.adapter.targets" if reachable else ""
            print(
                f"litpeft: {kind} ({found['example']}, ...): {share:.0%} of the parameters; not adapted, in "
                f"{found['dtype']}{advice}.",
                file=sys.stderr,
            )


def tell_how_head_labels_match(record: dict[str, Any]) -> None:
    """Print how the labels of a pretrained head match those of the data, if their order or their names differ."""
    if match := record["head_labels"]:
        pairs = ", ".join(f"{theirs} as {ours}" for ours, theirs in match["names"].items())
        by_name = "litpeft: the head's rows were reordered to the labels of the data, by name"
        by_number = "litpeft: warning: the head has other label names than the data; its rows are kept in their order"
        print(f"{by_name if match['matched_by'] == 'name' else by_number}: {pairs}.", file=sys.stderr)


def describe_model(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the record fields that are known once the model, the data and the optimizer are created."""
    counts = pl_module.adapter.describe(pl_module.backbone)
    sizes = {name: counts.pop(name) for name in ("trainable_params", "total_params", "adapter_bytes", "model_bytes")}
    if not pl_module.adapter.trains:
        sizes["trainable_params"] = 0  # a new head is in the checkpoint, as it was drawn
    schedules, data = trainer.lr_scheduler_configs, trainer.datamodule
    rows = mean_rows(trainer) or data.batch_size * trainer.world_size
    optimizer = trainer.optimizers[0] if pl_module.adapter.trains else None  # not Lightning's stand-in
    return sizes | {
        "adapter_summary": counts,
        "data_summary": data.describe(),
        "optimizer": optimizer and f"{type(optimizer).__module__}.{type(optimizer).__name__}",
        "optimizer_settings": optimizer and optimizer_settings(optimizer),
        "scheduler": type(schedules[0].scheduler).__name__ if schedules else None,
        "base": quantisation_name(pl_module.backbone),
        "new_tensors": pl_module.new_tensors,
        "head_labels": getattr(pl_module, "head_labels", None),
        "main_metrics": getattr(pl_module, "main_metrics", None),
        "metric_directions": getattr(pl_module, "metric_directions", None),
        "load_seconds": pl_module.load_seconds,
        "kernels": pl_module.kernels_used,
        "effective_batch_size": round(rows * trainer.accumulate_grad_batches),
        "processes": trainer.world_size,
        "strategy": parallel_strategy_name(trainer.strategy),
    }

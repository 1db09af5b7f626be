"""Checks of option values and of options together, which the parser cannot make."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import torch
from jsonargparse import Namespace

from litpeft.cli.parser import class_at
from litpeft.errors import UserError
from litpeft.runs.record_schema import is_utf8

STRATEGY_NAMES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2")
LARGEST = 10**15  # limit for any number (bytes, rows, steps); torch takes integers of 63 bits
GROUPS = ("trainer", "throughput", "memory", "predictions", "checkpoint", "record", "benchmarks")  # option groups
DIGITS = re.compile(r"\d{4301}")  # Python refuses to parse integers of more than 4,300 digits


def check_values(options: Namespace) -> None:
    """Check values that the parser accepts but that no file, model or machine can take.

    Raises:
        UserError: names the option.
    """
    for group in GROUPS:
        if group in options and not isinstance(options[group], Namespace):
            raise UserError(f"{group} must hold options by name, such as {group}.NAME, got {options[group]!r}.")
    for name, value in vars(options.as_flat()).items():
        if not (isinstance(value, float) and math.isinf(value) and _is_default(options, name, value)):
            check_value(name.replace(".init_args", ""), value)


def _is_default(options: Namespace, name: str, value: Any) -> bool:
    """Return whether an optimizer or schedule option has its class default, such as Prodigy's growth_rate: inf."""
    owner, _, argument = name.rpartition(".init_args.")
    path = options.get(f"{owner}.class_path") if owner else None
    if not isinstance(path, str):
        return False
    parameters = inspect.signature(class_at(path)).parameters
    return argument in parameters and parameters[argument].default == value


def check_value(name: str, value: Any) -> None:
    """Raise a UserError that names the option if a value, or one inside of it, is not usable anywhere."""
    if isinstance(value, (list, tuple, dict)):
        for item in value if not isinstance(value, dict) else [*value, *value.values()]:
            check_value(name, item)
    elif isinstance(value, str) and "\0" in value:
        raise UserError(f"{name} holds a NUL character, which no file name and no text may contain.")
    elif isinstance(value, str) and not is_utf8(value):
        raise UserError(f"{name} {value!r} is not UTF-8, so no record could hold it.")
    elif isinstance(value, str) and DIGITS.search(value):
        raise UserError(f"{name} has more than 4,300 digits, which no option takes.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value}.")
    elif isinstance(value, (int, float)) and abs(value) > LARGEST:
        raise UserError(f"{name} must be less than {LARGEST:.0e}{' in size' if value < 0 else ''}.")


def check_distributed(options: Namespace, verb: str) -> None:
    """Check that the options work with several processes.

    Raises:
        UserError: names the option and what to give instead.
    """
    trainer, task = options.trainer, options.model.init_args
    if not isinstance(trainer.strategy, str) or trainer.strategy not in STRATEGY_NAMES:
        given = getattr(trainer.strategy, "class_path", trainer.strategy)
        raise UserError(
            f"trainer.strategy {given}: give ddp (each process holds the whole model) or fsdp2 (sharded parameters)."
        )
    if not is_distributed(trainer):
        return
    if verb not in ("fit", "estimate"):
        raise UserError(
            f"trainer.devices: litpeft {verb} runs in one process; leave out trainer.devices and trainer.strategy."
        )
    if task.gradient_checkpointing == "reentrant":
        raise UserError(
            "model.gradient_checkpointing reentrant does not work with several processes; give non_reentrant."
        )
    if trainer.strategy != "fsdp2":
        return
    if task.dtype == "fp16":
        raise UserError("model.dtype fp16 does not work with trainer.strategy fsdp2; give ddp, or --model.dtype bf16.")
    if task.compile_blocks:
        raise UserError("model.compile_blocks does not work with trainer.strategy fsdp2; leave it out, or give ddp.")
    if task.optimizer and task.optimizer.class_path.startswith("bitsandbytes."):
        raise UserError(
            f"model.optimizer {task.optimizer.class_path} cannot hold sharded parameters (trainer.strategy fsdp2); "
            "give a torch optimizer, or ddp."
        )
    if options.benchmarks.tasks:
        raise UserError(
            "benchmarks.tasks: with trainer.strategy fsdp2 no process holds the whole model; "
            "run litpeft evaluate on the finished run, or give ddp."
        )


def is_distributed(trainer: Namespace) -> bool:
    """Return whether several processes may train together (`auto` means all devices)."""
    return str(trainer.devices) != "1" or trainer.num_nodes != 1 or trainer.strategy != "auto"


# callbacks of Lightning that would change what is trained, or that copy or cut the task -> what to do instead
UNSUPPORTED_CALLBACKS = {
    "GradientAccumulationScheduler": "schedules and resume need one number; give --trainer.accumulate_grad_batches",
    "BatchSizeFinder": "it would change the batches of a comparison; `litpeft estimate` shows the largest batch",
    "LearningRateFinder": "use `litpeft find_lr`",
    "Timer": "give --trainer.max_time",
    "BackboneFinetuning": "choose the trainable parameters with --model.adapter",
    "BaseFinetuning": "choose the trainable parameters with --model.adapter",
    "ModelPruning": "litpeft does not train pruned models",
    "OnExceptionCheckpoint": "it would save between optimizer steps; give --checkpoint.every_n_steps",
    "SpikeDetection": "Lightning cannot restore its state, so such a run could not be resumed; leave it out",
    "BasePredictionWriter": "litpeft predict already writes the predictions to a file",
}


def check_callbacks(callbacks: Any) -> None:
    """Refuse callbacks of Lightning that do not work with litpeft.

    Raises:
        UserError: names the callback and what to do instead.
    """
    for each in callbacks if isinstance(callbacks, list) else [callbacks]:
        path = each.get("class_path") if isinstance(each, (dict, Namespace)) else None
        name = str(path).rpartition(".")[2]
        if name in UNSUPPORTED_CALLBACKS and str(path).startswith(("lightning.", "pytorch_lightning.")):
            raise UserError(f"trainer.callbacks {name}: {UNSUPPORTED_CALLBACKS[name]}.")


def name_devices(callbacks: Any) -> None:
    """Replace devices in callbacks' options by their names: a configuration file cannot hold a torch.device."""
    for each in callbacks if isinstance(callbacks, list) else [callbacks]:
        options = each.get("init_args") if isinstance(each, (dict, Namespace)) else None
        if options and isinstance(options.get("device"), torch.device):
            options["device"] = str(options["device"])


def check_trainer(trainer: Namespace) -> None:
    """Refuse trainer options that would silently change what is trained or compared.

    Raises:
        UserError: names the option and what to give instead.
    """
    if trainer.precision not in (None, "32-true", "32", 32):
        raise UserError(
            f"trainer.precision {trainer.precision} would also change the dtype of the trainable tensors; "
            "leave it out and give --model.dtype bf16, fp16 or fp32."
        )
    if trainer.default_root_dir is not None:
        raise UserError("trainer.default_root_dir: give --run_dir instead, the folder for all files of the run.")
    if trainer.max_steps is None:
        raise UserError("trainer.max_steps must be a number of steps, or -1 for no limit.")
    if isinstance(trainer.max_time, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", trainer.max_time.strip()):
        raise UserError(f"trainer.max_time must be DAYS:HOURS:MINUTES:SECONDS (00:12:00:00), got {trainer.max_time!r}.")
    check_callbacks(trainer.callbacks)
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[name] == 0:
            raise UserError(f"trainer.{name} must not be 0; nothing would be trained.")
    if trainer.overfit_batches:
        raise UserError("trainer.overfit_batches: give --data.train_samples instead.")
    for name in ("val", "test", "predict"):
        limit = trainer[f"limit_{name}_batches"]
        if limit and not (isinstance(limit, float) and limit == 1) and not trainer.fast_dev_run:
            raise UserError(
                f"trainer.limit_{name}_batches would use the longest texts only; give "
                f"--data.{name}_{'file' if name == 'predict' else 'samples'} instead."
            )

"""Check what can be checked of a command line before torch and Lightning are imported, which takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from litpeft.cli.config_files import find_config, read_yaml
from litpeft.errors import UserError, did_you_mean
from litpeft.runs.folder import saved_config

COMMON = {  # names of other tools -> litpeft's options
    "--seed": "--seed_everything",
    "--lr": "--model.optimizer.lr",
    "--learning_rate": "--model.optimizer.lr",
    "--epochs": "--trainer.max_epochs",
    "--batch_size": "--data.batch_size",
}
# what stands before the first dot of an option, for all verbs together; a test compares them with the parsers
GROUPS = (
    *("config", "c", "help", "h", "print_config", "seed_everything", "run_dir", "experiment", "resume", "no_resume"),
    *("logger", "overwrite", "no_overwrite", "ckpt_path", "verbose", "weights_only", "return_predictions"),
    *("model", "data", "trainer", "throughput", "memory", "predictions", "checkpoint", "record", "benchmarks"),
)
# options that a mistyped one may have meant
USUAL = (
    *(
        "--config",
        "--seed_everything",
        "--run_dir",
        "--experiment",
        "--resume",
        "--overwrite",
        "--ckpt_path",
        "--model",
    ),
    *("--model.model_name", "--model.adapter", "--model.adapter.rank", "--model.optimizer", "--model.optimizer.lr"),
    *("--model.dtype", "--model.base", "--model.scheduler", "--data", "--data.train_file", "--data.batch_size"),
    *("--data.max_length", "--trainer.max_epochs", "--trainer.max_steps", "--benchmarks.tasks", "--record.predictions"),
)


def look(verb: str, arguments: Sequence[str]) -> None:
    """Check configuration names, the folder of a finished run, and the first part of each option.

    Does nothing once torch is imported: the parser then checks all of it, and everything else.

    Raises:
        UserError: a file does not exist or is not YAML, or an option is unknown.
    """
    if "torch" in sys.modules:
        return
    words = list(arguments)
    names = [word.partition("=")[0] for word in words]
    if {"--help", "-h"} & set(names):
        return
    needs_run = verb != "fit" and not {"--config", "-c", "--model"} & set(names)  # else only the parser can judge
    for place, (word, name) in enumerate(zip(words, names, strict=True)):
        value = word.partition("=")[2] if "=" in word else next(iter(words[place + 1 : place + 2]), "")
        if name in ("--config", "-c") and not value.startswith(("{", "--")):
            find_config(value)
            read_yaml(value)
        elif name == "--run_dir" and needs_run and not value.startswith("--"):
            saved_config(Path(value))
    for word, name in zip(words, names, strict=True):
        if word.startswith("--") and name.lstrip("-").partition(".")[0] not in GROUPS:
            guess = f" (did you mean {COMMON[name]}?)" if name in COMMON else did_you_mean(name, USUAL)
            raise UserError(f"unknown option {name}{guess}.")

"""The arguments after the verb: parsed into pairs, configuration names replaced by files, bad values refused."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from litpeft.cli.config_files import find_config, read_yaml
from litpeft.errors import UserError
from litpeft.runs.folder import CONFIG, saved_config
from litpeft.runs.record_schema import is_utf8
from litpeft.runs.safe_read import check_aliases, check_names

RESET = ("optimizer", "scheduler")  # options whose arguments must not carry over when another class is named
STRATEGY_NAMES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2")
LARGEST = 10**15  # limit for any number (bytes, rows, steps); torch takes integers of 63 bits
GROUPS = ("trainer", "throughput", "memory", "predictions", "checkpoint", "record", "benchmarks")  # option groups
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][-+]?\d+|-\.?inf")
DIGITS = re.compile(r"\d{4301}")  # Python refuses to parse integers of more than 4,300 digits
FLAGS = ("resume", "no_resume", "overwrite", "no_overwrite", "help", "h", "print_config")  # options without a value


def typed_options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return (option, value) pairs in order; both `--a.b 1` and `--a.b=1` give ("a.b", "1")."""
    pairs = []
    rest = iter(arguments)
    for word in rest:
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            pairs.append((key, value if equals or key in FLAGS else next(rest, "")))
    return [("config" if key == "c" else key, value) for key, value in pairs]


def with_configs(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments in a form that jsonargparse can parse, with configuration names replaced by files.

    When a finished run is evaluated or resumed and no model is named, the run's own configuration is put first.

    Raises:
        UserError: a configuration or run does not exist, or a file is not YAML.
    """
    arguments = _with_numbers(arguments)
    _check_order(arguments)
    typed = dict(typed_options(arguments))
    out = []
    for place, word in enumerate(arguments):
        if place and arguments[place - 1] in ("--config", "-c"):
            word = _checked(word)
        elif word.startswith("--config="):
            word = f"--config={_checked(word.removeprefix('--config='))}"
        out.append(word)
    for option, value in typed_options(out):
        _check_value(option, value)
        check_aliases(option, value)
        check_names(f"--{option}", _mapping(value))
    out = _without_leaks(out)
    finished = verb in ("validate", "test", "predict") or "resume" in typed
    if not finished or typed.keys() & {"config", "model", "help", "h"}:
        return out
    if "run_dir" not in typed:
        raise UserError(f"litpeft {verb} needs --run_dir, the folder of a run.")
    saved_config(Path(typed["run_dir"]))  # raises a clear error if the folder holds no run
    return [f"--config={Path(typed['run_dir']) / CONFIG}", *out]


def _check_order(arguments: Sequence[str]) -> None:
    """Refuse stray arguments and options without a value; argparse would not say where they stand."""
    before, rest = "", iter(arguments)
    for word in rest:
        option, equals, _ = word.partition("=")
        if not word.startswith("-") or not word.strip("-"):
            lone = ", which takes no value" if before.lstrip("-") in FLAGS else ""
            raise UserError(f"unknown argument {word!r}{f' after {before}' if before else ''}{lone}.")
        if option.endswith("help"):  # prints help and ends the command
            return
        before = option
        if equals or option.lstrip("-") in FLAGS:
            continue
        value = next(rest, None)
        if option.startswith(("--model.", "--data.")) and (value is None or value.startswith("--")):
            raise UserError(f"{option} needs a value{f' before {value}' if value else ''}.")


def _without_leaks(arguments: Sequence[str]) -> list[str]:
    """Insert a reset of the optimizer (or schedule) before an argument that names another class.

    Otherwise jsonargparse keeps every argument that the new class accepts too (jsonargparse issue 460): SGD would get
    AdamW's weight decay.
    """
    out: list[str] = []
    named: dict[str, str] = {}
    for place, word in enumerate(arguments):
        for key, given in _named_classes(*typed_options(arguments[place : place + 2])[:1]) if word[:1] == "-" else ():
            if named.get(key) and not _same_class(named[key], given):
                out.append(f"--model.{key}=null")
            named[key] = given
        out.append(word)
    return out


def _named_classes(typed: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Yield ("optimizer" or "scheduler", class path) for each class that an option or its file names."""
    option, value = typed
    settings: dict[str, Any] = {}
    if option == "config":
        model = read_yaml(value).get("model")
        settings = model.get("init_args") if isinstance(model, dict) else {}
        settings = settings if isinstance(settings, dict) else {}
    elif option.startswith("model."):
        settings = {option.removeprefix("model.").removesuffix(".class_path"): value}
    for key in RESET:
        each = settings.get(key)
        each = _mapping(each) or each if isinstance(each, str) else each
        path = each.get("class_path") if isinstance(each, dict) else each
        if isinstance(path, str) and path != "null":
            yield key, path


def _mapping(value: str) -> Any:
    """Return the parsed value of `{...}`; None for other values and for invalid YAML, which the parser reports."""
    if not value.startswith("{"):
        return None
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None


def _same_class(one: str, other: str) -> bool:
    """Return whether two class paths may mean the same class; a bare name matches any path that ends in the name."""
    bare = "." not in one or "." not in other
    return one.rpartition(".")[2] == other.rpartition(".")[2] if bare else one == other


def _with_numbers(arguments: Sequence[str]) -> list[str]:
    """Rewrite `--a -1e5` as `--a=-1e5`: argparse takes a negative number with an exponent for an option."""
    out: list[str] = []
    for word in arguments:
        if NEGATIVE.fullmatch(word) and out and out[-1].startswith("--") and "=" not in out[-1]:
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


def _checked(name: str) -> str:
    """Return the file of a configuration after checking that it can be read."""
    file = find_config(name)
    check_names(f"--config {file}", read_yaml(name))
    return file


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
            _check_value(name.replace(".init_args", ""), value)


def _is_default(options: Namespace, name: str, value: Any) -> bool:
    """Return whether an optimizer or schedule option has its class default, such as Prodigy's growth_rate: inf."""
    owner, _, argument = name.rpartition(".init_args.")
    path = options.get(f"{owner}.class_path") if owner else None
    if not isinstance(path, str):
        return False
    module, _, kind = path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), kind)).parameters
    return argument in parameters and parameters[argument].default == value


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, (list, tuple, dict)):
        for item in value if not isinstance(value, dict) else [*value, *value.values()]:
            _check_value(name, item)
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
    if verb != "fit":
        raise UserError(
            f"trainer.devices: litpeft {verb} runs in one process; leave out trainer.devices and trainer.strategy."
        )
    if task.gradient_checkpointing == "reentrant":
        raise UserError(
            "model.gradient_checkpointing reentrant does not work with several processes; give non_reentrant."
        )
    if trainer.strategy != "fsdp2":
        return
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


def check_trainer(trainer: Namespace) -> None:
    """Refuse trainer options that would silently change what is trained or compared.

    Raises:
        UserError: names the option and what to give instead.
    """
    if trainer.precision not in (None, "32-true", "32", 32):
        raise UserError(
            f"trainer.precision {trainer.precision} would also change the dtype of the trainable tensors; "
            "leave it out and give --model.dtype bf16 or fp32."
        )
    if trainer.default_root_dir is not None:
        raise UserError("trainer.default_root_dir: give --run_dir instead, the folder for all files of the run.")
    if trainer.max_steps is None:
        raise UserError("trainer.max_steps must be a number of steps, or -1 for no limit.")
    if isinstance(trainer.max_time, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", trainer.max_time.strip()):
        raise UserError(f"trainer.max_time must be DAYS:HOURS:MINUTES:SECONDS (00:12:00:00), got {trainer.max_time!r}.")
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

"""What was typed after the verb: as pairs, with the configurations that it names put in place, and what is refused."""

from __future__ import annotations

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

CLEAN = ("optimizer", "scheduler")  # of which no argument may outlive the class that it was given to
TOGETHER = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2")  # STRATEGIES, and a choice among them
LARGEST = 10**15  # of any number: a petabyte, or so many rows; torch's own are of 63 bits
GROUPS = ("trainer", "throughput", "memory", "predictions", "checkpoint", "record", "benchmarks")  # names of options
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][-+]?\d+|-\.?inf")
DIGITS = re.compile(r"\d{4301}")  # one more than Python makes a number of
ALONE = ("resume", "no_resume", "overwrite", "no_overwrite", "help", "h", "print_config")  # options without a value


def typed_options(words: Sequence[str]) -> list[tuple[str, str]]:
    """(option, value) of each option, in order: `--a.b 1` and `--a.b=1` alike give ("a.b", "1")."""
    pairs = []
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            pairs.append((key, value if equals or key in ALONE else next(rest, "")))
    return [("config" if key == "c" else key, value) for key, value in pairs]


def with_configs(verb: str, words: Sequence[str]) -> list[str]:
    """The words as jsonargparse can read them: bare names of configurations become files.

    Where a finished run is measured or resumed and no model is named, its own configuration comes first.

    Raises:
        UserError: there is no such configuration or run, or a file is not YAML.
    """
    words = _with_numbers(words)
    _check_order(words)
    typed = dict(typed_options(words))
    out = []
    for place, word in enumerate(words):
        if place and words[place - 1] in ("--config", "-c"):
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
    saved_config(Path(typed["run_dir"]))  # says in a sentence what is missing
    return [f"--config={Path(typed['run_dir']) / CONFIG}", *out]


def _check_order(words: Sequence[str]) -> None:
    """Refuse a word that is no option's value, and a class's option without one: argparse does not tell where."""
    before, rest = "", iter(words)
    for word in rest:
        option, equals, _ = word.partition("=")
        if not word.startswith("-") or not word.strip("-"):
            lone = ", which takes no value" if before.lstrip("-") in ALONE else ""
            raise UserError(f"unknown argument {word!r}{f' after {before}' if before else ''}{lone}.")
        if option.endswith("help"):  # which ends the command, with the name of a class or without
            return
        before = option
        if equals or option.lstrip("-") in ALONE:
            continue
        value = next(rest, None)
        if option.startswith(("--model.", "--data.")) and (value is None or value.startswith("--")):
            raise UserError(f"{option} needs a value{f', and {value} is none' if value else ''}.")


def _without_leaks(words: Sequence[str]) -> list[str]:
    """The words, with the optimizer set back to none before another one is named, and the schedule likewise.

    jsonargparse keeps every argument that the new class takes too (its issue 460): SGD would have AdamW's weight decay.
    """
    out: list[str] = []
    named: dict[str, str] = {}
    for place, word in enumerate(words):
        for key, given in _named_classes(*typed_options(words[place : place + 2])[:1]) if word[:1] == "-" else ():
            if named.get(key) and not _same_class(named[key], given):
                out.append(f"--model.{key}=null")
            named[key] = given
        out.append(word)
    return out


def _named_classes(typed: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """("optimizer" or "scheduler", class) that an option names, by itself or in a file."""
    option, value = typed
    told: dict[str, Any] = {}
    if option == "config":
        model = read_yaml(value).get("model")
        told = model.get("init_args") if isinstance(model, dict) else {}
        told = told if isinstance(told, dict) else {}
    elif option.startswith("model."):
        told = {option.removeprefix("model.").removesuffix(".class_path"): value}
    for key in CLEAN:
        each = told.get(key)
        each = _mapping(each) or each if isinstance(each, str) else each
        path = each.get("class_path") if isinstance(each, dict) else each
        if isinstance(path, str) and path != "null":
            yield key, path


def _mapping(value: str) -> Any:
    """What `{...}` says; None of another value, and of one that is no YAML, of which the parser is going to tell."""
    if not value.startswith("{"):
        return None
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None


def _same_class(one: str, other: str) -> bool:
    """Whether two paths may name one class: a bare name is that of any path which ends in it."""
    bare = "." not in one or "." not in other
    return one.rpartition(".")[2] == other.rpartition(".")[2] if bare else one == other


def _with_numbers(words: Sequence[str]) -> list[str]:
    """`--a -1e5` as `--a=-1e5`: argparse knows no exponents, and would take the number for an option."""
    out: list[str] = []
    for word in words:
        if NEGATIVE.fullmatch(word) and out and out[-1].startswith("--") and "=" not in out[-1]:
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


def _checked(name: str) -> str:
    """The file that a configuration's name means, if it can be read."""
    file = find_config(name)
    check_names(f"--config {file}", read_yaml(name))
    return file


def check_values(options: Namespace) -> None:
    """Refuse what the parser lets pass and no file, model or machine can take.

    Raises:
        UserError: names the option.
    """
    for group in GROUPS:
        if group in options and not isinstance(options[group], Namespace):
            raise UserError(f"{group} must hold options by name, such as {group}.NAME, got {options[group]!r}.")
    for name, value in vars(options.as_flat()).items():
        _check_value(name.replace(".init_args", ""), value)


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, (list, tuple, dict)):
        for item in value if not isinstance(value, dict) else [*value, *value.values()]:
            _check_value(name, item)
    elif isinstance(value, str) and "\0" in value:
        raise UserError(f"{name} holds a NUL, which no name of a file and no text may.")
    elif isinstance(value, str) and not is_utf8(value):
        raise UserError(f"{name} {value!r} is not UTF-8; a record could not tell it.")
    elif isinstance(value, str) and DIGITS.search(value):
        raise UserError(f"{name} has more than 4,300 digits, which no option takes.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value}.")
    elif isinstance(value, (int, float)) and abs(value) > LARGEST:
        raise UserError(f"{name} must be less than {LARGEST:.0e}{' in size' if value < 0 else ''}.")


def check_together(options: Namespace, verb: str) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        UserError: names the option and what to give instead.
    """
    trainer, task = options.trainer, options.model.init_args
    if not isinstance(trainer.strategy, str) or trainer.strategy not in TOGETHER:
        given = getattr(trainer.strategy, "class_path", trainer.strategy)
        raise UserError(f"trainer.strategy {given}: give ddp (each process holds the model) or fsdp2 (a share of it).")
    if not several(trainer):
        return
    if verb != "fit":
        raise UserError(f"trainer.devices: litpeft {verb} works with one process; leave it and trainer.strategy out.")
    if task.gradient_checkpointing == "reentrant":
        raise UserError("model.gradient_checkpointing reentrant is not for several processes; give non_reentrant.")
    if trainer.strategy != "fsdp2":
        return
    if task.compile_blocks:
        raise UserError("model.compile_blocks is not for trainer.strategy fsdp2; leave it out, or give ddp.")
    if task.optimizer and task.optimizer.class_path.startswith("bitsandbytes."):
        raise UserError(
            f"model.optimizer {task.optimizer.class_path} cannot hold shares of trainer.strategy fsdp2; "
            "give one of torch, or ddp."
        )
    if options.benchmarks.tasks:
        raise UserError(
            "benchmarks.tasks: no process of trainer.strategy fsdp2 has the model to measure; "
            "run litpeft evaluate on the finished run, or give ddp."
        )


def several(trainer: Namespace) -> bool:
    """Whether processes are to train together, or may be: `auto` is all devices that there are."""
    return str(trainer.devices) != "1" or trainer.num_nodes != 1 or trainer.strategy != "auto"


def check_trainer(trainer: Namespace) -> None:
    """Refuse what would change a comparison without a word.

    Raises:
        UserError: names the option and what to give instead.
    """
    if trainer.precision not in (None, "32-true", "32", 32):
        raise UserError(
            f"trainer.precision {trainer.precision} would change the dtype of trained tensors as well; "
            "leave it out and give --model.dtype bf16 or fp32."
        )
    if trainer.default_root_dir is not None:
        raise UserError("trainer.default_root_dir: give --run_dir instead, the folder that all of a run goes into.")
    if trainer.max_steps is None:
        raise UserError("trainer.max_steps must be a number of steps, or -1 for no limit.")
    if isinstance(trainer.max_time, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", trainer.max_time.strip()):
        raise UserError(f"trainer.max_time must be DAYS:HOURS:MINUTES:SECONDS (00:12:00:00), got {trainer.max_time!r}.")
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[name] == 0:
            raise UserError(f"trainer.{name} must not be 0: nothing would be trained.")
    if trainer.overfit_batches:
        raise UserError("trainer.overfit_batches: give --data.train_samples instead.")
    for name in ("val", "test", "predict"):
        limit = trainer[f"limit_{name}_batches"]
        if limit and not (isinstance(limit, float) and limit == 1) and not trainer.fast_dev_run:
            raise UserError(
                f"trainer.limit_{name}_batches would take the longest texts only; give "
                f"--data.{name}_{'file' if name == 'predict' else 'samples'} instead."
            )

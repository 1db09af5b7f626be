"""The arguments after the verb: parsed into pairs, configuration names replaced by files, bad values refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from litpeft.cli.config_files import find_config, read_yaml
from litpeft.cli.option_checks import check_value
from litpeft.cli.typed_options import FLAGS, typed_options
from litpeft.errors import UserError
from litpeft.runs.folder import CONFIG, saved_config
from litpeft.runs.safe_read import check_aliases, check_names

RESET = ("optimizer", "scheduler")  # options whose arguments must not carry over when another class is named
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][-+]?\d+|-\.?inf")


def with_configs(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments in a form that jsonargparse can parse, with configuration names replaced by files.

    When a finished run is evaluated or resumed and no model is named, the run's own configuration is put first.

    Raises:
        UserError: a configuration or run does not exist, or a file is not YAML.
    """
    arguments = _with_numbers(arguments)
    _check_order(arguments)
    arguments = _one_logger_option(arguments)
    typed = dict(typed_options(arguments))
    out = []
    for place, word in enumerate(arguments):
        if place and arguments[place - 1] in ("--config", "-c"):
            word = _checked(word)
        elif word.startswith("--config="):
            word = f"--config={_checked(word.removeprefix('--config='))}"
        out.append(word)
    for option, value in typed_options(out):
        check_value(option, value)
        check_aliases(option, value)
        if not option.startswith("trainer.callbacks"):  # whose arguments may be mappings with numbers as keys
            check_names(f"--{option}", _mapping(value))
    out = _without_leaks(_adapters_first(out))
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


def _adapters_first(arguments: Sequence[str]) -> list[str]:
    """Move configurations of adapters before what names an optimizer.

    Their optimizer is a default with the adapter's learning rate: `--config sgd --config lora` trains with SGD, and
    `--config adamw` keeps the rate, as in the other order.
    """
    out: list[str] = []
    first: int | None = None  # place of what names an optimizer first
    words = iter(arguments)
    for word in words:
        pair = [word] if "=" in word or word not in ("--config", "-c") else [word, next(words, "")]
        option, value = next(iter(typed_options(pair)), ("", ""))
        if option == "config" and first is not None and _is_adapter(value):
            out[first:first] = pair
            first += len(pair)
            continue
        if first is None and (option.startswith("model.optimizer") or _names_optimizer(option, value)):
            first = len(out)
        out += pair
    return out


def _is_adapter(file: str) -> bool:
    """Return whether a configuration holds an adapter with its optimizer and nothing else."""
    content = read_yaml(file)
    model = content.get("model")
    settings = model.get("init_args") if isinstance(model, dict) and model.keys() == {"init_args"} else None
    return (
        content.keys() == {"model"}
        and isinstance(settings, dict)
        and {"adapter"} <= settings.keys() <= {"adapter", "optimizer"}
    )


def _names_optimizer(option: str, value: str) -> bool:
    """Return whether an option is a configuration that names an optimizer and is not that of an adapter."""
    if option != "config" or _is_adapter(value):
        return False
    model = read_yaml(value).get("model")
    settings = model.get("init_args") if isinstance(model, dict) else None
    return isinstance(settings, dict) and settings.get("optimizer") is not None


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


def _one_logger_option(arguments: Sequence[str]) -> list[str]:
    """Join what several `--logger` options name into one, at the end."""
    out, names, rest = [], [], iter(arguments)
    for word in rest:
        option, equals, value = word.partition("=")
        if option == "--logger":
            names.append(value if equals else next(rest, ""))
        else:
            out.append(word)
    return out if not names else [*out, f"--logger={','.join(names)}"]


def _checked(name: str) -> str:
    """Return the file of a configuration after checking that it can be read."""
    file = find_config(name)
    check_names(f"--config {file}", read_yaml(name))
    return file

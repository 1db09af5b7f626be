"""Python arguments as options of the command line, and error messages that speak of arguments."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litpeft.errors import UserError, naming_options, renamed

FLAGS = ("resume", "overwrite", "retry", "dry_run")  # options without a value


def option_words(arguments: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line: `model__adapter__rank=8` becomes `--model.adapter.rank=8`.

    Raises:
        UserError: a value is an object that no option can hold.
    """
    words = []
    # an option that names a class stands before the options of the class
    for name, value in sorted(arguments.items(), key=lambda pair: pair[0].count("__")):
        option = name.replace("__", ".")
        if name in FLAGS:
            words += [f"--{option}"] if value else []
        else:
            words.append(f"--{option}={as_text(name, value)}")
    return words


def as_text(name: str, value: Any) -> str:
    """Return a value as it is typed on the command line.

    Args:
        name: the argument, for errors.
        value: a text, number, boolean, None, path, class, or a list or dict of them.
    """
    if isinstance(value, str):
        return value
    plain = _plain(name, value)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, type):
        return _class_path(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy or torch
        return value.item()
    kind = type(value).__name__
    raise UserError(
        f"{name} is an object of class {kind}; give the name of the class, and its options as {name}__OPTION, "
        f"such as {name}={kind!r}."
    )


def _class_path(kind: type) -> str:
    """Return the path of a class in the outermost package that has it: `torch.optim.SGD`."""
    parts = kind.__module__.split(".")
    for count in range(2, len(parts)):
        package = ".".join(parts[:count])
        if getattr(importlib.import_module(package), kind.__name__, None) is kind:
            return f"{package}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def config_words(configs: tuple[Any, ...], scratch: Path) -> list[str]:
    """Return `--config` for each configuration: a name, a path, or a dict, which is written into a folder.

    Args:
        configs: the configurations, in order.
        scratch: a folder for files.

    Raises:
        UserError: a configuration is of another type.
    """
    words = []
    for number, config in enumerate(configs):
        if isinstance(config, Mapping):
            import yaml

            path = scratch / str(number) / "config.yaml"
            path.parent.mkdir()
            path.write_text(yaml.safe_dump(_plain("the configuration", config), sort_keys=False), encoding="utf-8")
            config = path
        if not isinstance(config, (str, os.PathLike)):
            raise UserError(
                f"a configuration is a name, a path or a dict, got {type(config).__name__}; give options by name, "
                "such as model__model_name=..."
            )
        words.append(f"--config={os.fspath(config)}")
    return words


@contextmanager
def naming_arguments(scratch: Path | None = None, replaced: str = "") -> Iterator[None]:
    """Let errors inside the with block name Python arguments instead of options.

    Args:
        scratch: a folder of temporary files, whose names mean nothing to the user.
        replaced: what the files in it are for the user; empty to leave the name of the file out.
    """
    try:
        with naming_options():
            yield
    except UserError as error:
        message = str(error)
        if scratch is not None:
            temporary = rf"{re.escape(str(scratch))}[\w/.\\-]*(: )?"
            message = re.sub(temporary, lambda found: replaced + (found[1] or "") if replaced else "", message)
        raise UserError(in_arguments(message)) from error


def in_arguments(message: str) -> str:
    """Return an error message with arguments in place of options: `--model.dtype fp32` -> `model__dtype fp32`."""
    return renamed(message, lambda option: option.replace(".", "__"))

"""Add context to errors: the configuration file that set an option, or the trainer option that Lightning rejects."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from litpeft.cli.config_files import find_config, read_yaml
from litpeft.cli.typed_options import typed_options
from litpeft.errors import UserError, first_sentence

# how messages begin: `data.seed must ...`, `model.adapter has no option 'rnk'`, `unknown option modle ...`
OPTION = re.compile(r"unknown option (\S+?)(?:\.$| \()|(\w+(?:\.\w+)*)(?: has no option '([^']+)')?")
QUOTED = re.compile(r"`(\w+)`|(\w+)=")  # how Lightning writes argument names


@contextmanager
def naming_source(arguments: Sequence[str]) -> Iterator[None]:
    """Name the source of errors in the with block: the configuration file, or the trainer option.

    Args:
        arguments: the command line, including the configuration of a finished run.
    """
    try:
        yield
    except UserError as error:
        file = _file_of(str(error), arguments)
        if file is None:
            raise
        raise UserError(f"{file}: {error}") from error
    except (ValueError, TypeError, MisconfigurationException) as error:
        option = trainer_option(error)
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if option is None or "lightning" not in Path(where).parts:
            raise
        raise UserError(f"trainer.{option}: {first_sentence(error)}.") from error


@contextmanager
def naming_trainer_option() -> Iterator[None]:
    """Name the trainer option in errors of Lightning's Trainer, which often names the value only."""
    try:
        yield
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"trainer.{trainer_option(error) or '*'}: {' '.join(str(error).split())}") from error


def trainer_option(error: Exception) -> str | None:
    """Return the Trainer argument that an error message of Lightning mentions; None if it mentions none."""
    known = inspect.signature(Trainer.__init__).parameters
    quoted = [first or second for first, second in QUOTED.findall(str(error))]
    return next((name for name in [*quoted, *re.findall(r"\w+_\w+", str(error))] if name in known), None)


def _file_of(message: str, arguments: Sequence[str]) -> str | None:
    """Return the configuration file that set the option in a message; None if it was typed or not set at all."""
    match = OPTION.match(message)
    if match is None:
        return None
    option = _plain(match[1] or ".".join(filter(None, match.group(2, 3))))
    found = None
    for key, value in typed_options(arguments):  # the last setting counts
        if key == "config":
            found = find_config(value) if option in _options(read_yaml(value)) else found
        elif key == option or (option.startswith(f"{key}.") and value.startswith("{")):
            found = None
    return found


def _options(content: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted names of all options in a configuration, at any depth."""
    for name, value in content.items() if isinstance(content, dict) else ():
        yield _plain(f"{above}.{name}")
        yield from _options(value, f"{above}.{name}")


def _plain(option: str) -> str:
    """Return an option as it is typed: `model.adapter` for `model.init_args.adapter.class_path`."""
    return ".".join(part for part in option.split(".") if part not in ("", "init_args", "class_path"))

"""What a sentence about an option lacks: the file that the option stands in or, of Lightning's, the option itself."""

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

from litpeft.cli.arguments import typed_options
from litpeft.cli.config_files import find_config, read_yaml
from litpeft.errors import UserError, first_sentence

# what a sentence begins with: `data.seed must ...`, `model.adapter has no option 'rnk'`, `unknown option modle ...`
FIRST = re.compile(r"unknown option (\S+?)(?:\.$| \()|(\w+(?:\.\w+)*)(?: has no option '([^']+)')?")
QUOTED = re.compile(r"`(\w+)`|(\w+)=")  # how Lightning writes a name


@contextmanager
def named(words: Sequence[str]) -> Iterator[None]:
    """Within, a mistake in a file is told with the file, and one that Lightning finds in the data with the option.

    Args:
        words: of the command line, with the configuration of a finished run among them.
    """
    try:
        yield
    except UserError as error:
        file = _file_of(str(error), words)
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
def making_trainer() -> Iterator[None]:
    """Within, what Lightning's Trainer does not take is told with the option: it does not tell whose the value is."""
    try:
        yield
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"trainer.{trainer_option(error) or '*'}: {' '.join(str(error).split())}") from error


def trainer_option(error: Exception) -> str | None:
    """The argument of Lightning's Trainer that an error of it speaks of."""
    own = inspect.signature(Trainer.__init__).parameters
    named = [quoted or given for quoted, given in QUOTED.findall(str(error))]
    return next((name for name in [*named, *re.findall(r"\w+_\w+", str(error))] if name in own), None)


def _file_of(sentence: str, words: Sequence[str]) -> str | None:
    """The file that says what a sentence is about; None where that was typed, or nobody has said it."""
    match = FIRST.match(sentence)
    if match is None:
        return None
    option = _plain(match[1] or ".".join(filter(None, match.group(2, 3))))
    found = None
    for key, value in typed_options(words):  # the last one counts
        if key == "config":
            found = find_config(value) if option in _options(read_yaml(value)) else found
        elif key == option or (option.startswith(f"{key}.") and value.startswith("{")):
            found = None
    return found


def _options(content: Any, above: str = "") -> Iterator[str]:
    """Names of all that a configuration tells of, at any depth."""
    for name, value in content.items() if isinstance(content, dict) else ():
        yield _plain(f"{above}.{name}")
        yield from _options(value, f"{above}.{name}")


def _plain(option: str) -> str:
    """As it is typed: `model.init_args.adapter.class_path` is `model.adapter`."""
    return ".".join(part for part in option.split(".") if part not in ("", "init_args", "class_path"))

"""The error class for user mistakes, and how messages from the system and from libraries become one sentence."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM}
# options in messages, with or without dashes, and endings of files that only look like options
GROUPS = "model|data|trainer|checkpoint|benchmarks|throughput|memory|predictions|record"
DASHED = re.compile(r"(?<![\w/])--([a-zA-Z]\w*(?:\.\w+)*)")
DOTTED = re.compile(rf"(?<![\w/.'\"-])((?:{GROUPS})(?:\.[a-zA-Z_]\w*)+)(?![\w/])")
FILES = ("json", "jsonl", "csv", "tsv", "txt", "yaml", "yml", "parquet", "safetensors", "bin", "pt", "gz", "zip")

_blocks = 0  # number of `naming_options` blocks that are open


class UserError(Exception):
    """Something that the user gave cannot be used.

    The message is one sentence: it names the option or file, says what is wrong and what to do. The command line
    prints it without a traceback and exits with code 2; so do notebooks, without the exit.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if _blocks else renamed(message, _last_part))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows."""
        return [f"UserError: {self}"]


def renamed(message: str, name: Callable[[str], str]) -> str:
    """Return a message with another name for each option, which `name` makes from `model.adapter.rank`."""

    def dotted(found: re.Match[str]) -> str:
        return found[1] if found[1].rpartition(".")[2] in FILES else name(found[1])

    return DOTTED.sub(dotted, DASHED.sub(lambda found: name(found[1]), message))


def _last_part(option: str) -> str:
    return option.rpartition(".")[2]


@contextmanager
def naming_options() -> Iterator[None]:
    """Let errors that are made inside the with block name options as they are typed: `--model.adapter.rank`.

    Outside, where users call constructors in Python, errors name arguments: `rank`.
    """
    global _blocks
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1


def check_choices(option: str, constructor: Callable[..., None], given: Mapping[str, Any]) -> None:
    """Raise a UserError if an argument whose type is a `Literal` has another value: Python itself does not check types.

    Args:
        option: option of the object, such as `model.adapter`.
        constructor: the `__init__` whose annotations have the choices.
        given: its arguments by name, as `locals()` in its first line.
    """
    for name, hint in get_type_hints(constructor).items():
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        others = tuple(get_origin(part) or part for part in parts if get_origin(part) is not Literal)
        if choices and given[name] not in choices and not isinstance(given[name], others):
            raise UserError(f"{option}.{name} must be one of {', '.join(choices)}, got {given[name]!r}.")


def one_line(message: str, max_length: int = 900) -> str:
    """Return a message as one printable line, shortened in the middle if it is longer than `max_length` characters.

    Control and invisible characters are escaped: a quoted value may hold terminal colours or right-to-left text.
    """
    message = re.sub(r"\s*[\r\n]+\s*", " ", message.strip())
    if len(message) > max_length:
        message = f"{message[: 2 * max_length // 3]} ... {message[-max_length // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Turn an operating system error inside the with block into a `UserError` that names the option and the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}.") from error


def find_system_error(error: BaseException | None) -> OSError | None:
    """Return the operating system error behind an exception: the exception itself, or a disk error that caused it."""
    first = error
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None and (error is first or error.errno in DISK):
            return error
        error = error.__cause__ or error.__context__
    return None


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an exception's message, on one line and without a full stop."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean NAME?)" for the most similar known name, ignoring case; "" if no name is similar.

    Names that go on after this one with a hyphen are all named.
    """
    names = {each.lower(): each for each in sorted(known)}
    name = name.lower()
    close = difflib.get_close_matches(name, names, n=5)
    swapped = [each for each in close if sorted(each) == sorted(name)]  # lroa: lora before road
    longer = [each for each in names if each.startswith(f"{name}-")]  # qlora: not lora
    found = swapped[:1] or longer or close[:1]
    return f" (did you mean {' or '.join(names[each] for each in found)}?)" if found else ""

"""YAML and JSON from files: what they say, or one sentence about what is wrong. Nothing in them is executed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from litpeft.errors import UserError

DEEPEST = 100  # lists and mappings in each other; configurations have ten
MOST = 1_000_000  # values; aliases of aliases (`a: [*b, *b]`) make more of them than any machine holds


def read_text(path: Path, option: str = "") -> str:
    """What stands in a text file.

    Args:
        path: of the file.
        option: what named it, for the error message.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}.".lstrip()) from error
    except ValueError as error:  # not UTF-8, or a name that no file can have
        raise UserError(f"{option} {path}: {error}.".lstrip()) from error


def read_yaml_file(path: Path, option: str = "") -> Any:
    """What a YAML file says.

    Raises:
        UserError: it cannot be read or is not YAML; with the line, where that is known.
    """
    import yaml  # not before it is needed: `litpeft configs` is to answer at once

    text = read_text(path, option)
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _check_depth(yaml.parse(text, loader))
        content = yaml.load(text, loader)
        _count(content)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # yaml itself raises the others: of a day that no month has, of a number with thousands of digits, of `!!int x`
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        if isinstance(error, yaml.reader.ReaderError):
            line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else None
        place = f" line {line}" if line else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or of_python(error)
        raise UserError(f"{option} {path}{place}: not valid YAML: {reason}.".lstrip()) from error
    return content


def read_options(path: Path, option: str) -> dict[str, Any]:
    """Return the options in a YAML configuration file: a mapping whose keys are option names.

    Args:
        path: the file.
        option: the command-line option that named the file, for error messages.

    Raises:
        UserError: the file cannot be read, is not YAML, or is not a mapping from names to values.
    """
    content = read_yaml_file(path, option)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{option} {path}: it must hold options by name.")
    return content


def read_json_file(path: Path, option: str = "") -> Any:
    """What a JSON file says.

    Raises:
        UserError: it cannot be read or is not JSON.
    """
    text = read_text(path, option)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{option} {path} is not JSON: {of_python(error)}.".lstrip()) from error


def check_names(place: str, content: Any, above: str = "") -> None:
    """Of options, at any depth: the parser tells of a strange one without its file."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(name, str) or not name or any(map(str.isspace, name)):
            raise UserError(f"{place}: {name!r} is no name of an option.")
        option = above if name == "init_args" else f"{above}.{name}".lstrip(".")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{place}: {option} holds a NUL, which no name of a file and no text may.")
        check_names(place, value, option)


def check_aliases(option: str, text: str) -> None:
    """Of a value as it was typed: `&a [*a]` holds itself, which the parser would follow without end."""
    if "&" in text and "*" in text:
        import yaml

        try:
            _count(yaml.safe_load(text))
        except ValueError as error:
            raise UserError(f"{option}: {error}.") from error
        except (yaml.YAMLError, TypeError, AttributeError, RecursionError):
            pass  # of which the parser is going to tell


def of_python(error: Exception) -> str:
    """RecursionError speaks of Python's own depth, and a number of thousands of digits of how to allow it."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).partition(";")[0]


def _check_depth(events: Iterable[Any]) -> None:
    """Refuse what is nested so deeply that libyaml's loader, which calls itself, would end the process."""
    depth = 0
    for event in events:
        name = type(event).__name__
        depth += name.endswith("StartEvent") - name.endswith("EndEvent")
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")


def _count(content: Any) -> None:
    """Refuse what holds itself, or becomes too much when aliases are written out."""
    count, level = 0, [content]
    while level:
        count += len(level)
        if count > MOST:
            raise ValueError(f"it holds itself, or more than {MOST:,} values")
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]

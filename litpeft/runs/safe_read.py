"""Read YAML and JSON files safely; errors are reported in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from litpeft.errors import UserError

DEEPEST = 100  # limit of nesting; configurations use about ten levels
MOST = 1_000_000  # limit of values: aliases of aliases (`a: [*b, *b]`) expand without bound


def read_text(path: Path, option: str = "") -> str:
    """Return the content of a UTF-8 text file.

    Args:
        path: the file.
        option: command-line option that named the file, for error messages.

    Raises:
        UserError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}.".lstrip()) from error
    except ValueError as error:  # not UTF-8, or an invalid file name
        raise UserError(f"{option} {path}: {error}.".lstrip()) from error


def read_yaml_file(path: Path, option: str = "") -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: the file cannot be read or is not valid YAML; the message has the line if it is known.
    """
    import yaml  # imported here to keep `litpeft configs` fast

    text = read_text(path, option)
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _check_depth(yaml.parse(text, loader))
        content = yaml.load(text, loader)
        _check_size(content)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # yaml raises the other errors for impossible dates, numbers with thousands of digits, and `!!int x`
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        if isinstance(error, yaml.reader.ReaderError) and (found := yaml.reader.Reader.NON_PRINTABLE.search(text)):
            line = text.count("\n", 0, found.start()) + 1  # not error.position, which libyaml counts in bytes
        place = f" line {line}" if line else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or parse_error_reason(error)
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
        raise UserError(f"{option} {path}: it must be a mapping from option names to values.")
    return content


def read_json_file(path: Path, option: str = "") -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: the file cannot be read or is not valid JSON.
    """
    text = read_text(path, option)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{option} {path} is not JSON: {parse_error_reason(error)}.".lstrip()) from error


def check_names(place: str, content: Any, above: str = "") -> None:
    """Check the option names at every depth; the parser's own error would not name the file."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(name, str) or not name or any(map(str.isspace, name)):
            raise UserError(f"{place}: {name!r} is not an option name.")
        option = above if name == "init_args" else f"{above}.{name}".lstrip(".")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{place}: {option} holds a NUL character; remove it.")
        check_names(place, value, option)


def check_aliases(option: str, text: str) -> None:
    """Check that a typed value does not contain itself by YAML aliases, as `&a [*a]` does: the parser would hang."""
    if "&" in text and "*" in text:
        import yaml

        try:
            _check_size(yaml.safe_load(text))
        except ValueError as error:
            raise UserError(f"{option}: {error}.") from error
        except (yaml.YAMLError, TypeError, AttributeError, RecursionError):
            pass  # the parser reports these errors


def parse_error_reason(error: Exception) -> str:
    """Return the reason of a parsing error without Python's own advice (recursion limit, digits of a number)."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).partition(";")[0]


def _check_depth(events: Iterable[Any]) -> None:
    """Raise ValueError if YAML is nested so deeply that libyaml's recursive loader would crash the process."""
    depth = 0
    for event in events:
        name = type(event).__name__
        depth += name.endswith("StartEvent") - name.endswith("EndEvent")
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")


def _check_size(content: Any) -> None:
    """Raise ValueError if a value contains itself, or is too large once aliases are expanded."""
    count, level = 0, [content]
    while level:
        count += len(level)
        if count > MOST:
            raise ValueError(f"it contains itself, or more than {MOST:,} values")
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]

"""Read the axes of an experiment file, and the values of `tune`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litpeft.cli.config_files import read_yaml
from litpeft.errors import UserError
from litpeft.runs.strategy_names import stored_name

RESERVED = re.compile(r"config|run_dir|experiment|resume|overwrite|seed_everything|ckpt_path")  # set by the sweep
OPTION = re.compile(r"(model|data|trainer|checkpoint|throughput|memory|record|predictions|benchmarks)(\.|$)")
EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # YAML 1.1 reads 1e-4 as text, 1.0e-4 as a number


@dataclass(frozen=True)
class Choice:
    """One value of an axis.

    Attributes:
        name: name of the value, used in labels, `exclude` and `baseline`.
        configs: configurations to add.
        options: {command-line option: value} to set.
        tune: {command-line option: values to try}, which override the experiment's `tune`.
    """

    name: str
    configs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, list[Any]] = field(default_factory=dict)


def read_choices(place: str, axis: str, values: Any) -> list[Choice]:
    """Return the values of an axis: configurations, values of an option, options that change together, or variants.

    Args:
        place: where the axis is in the file, for error messages.
        axis: name of the axis.
        values: content of the axis in the file.
    """
    if isinstance(values, dict) and values and all(isinstance(each, list) for each in values.values()):
        options = options_of(place, values)
        if len({len(each) for each in options.values()}) > 1:
            raise UserError(f"{place}: lists that change together must have the same length.")
        points = [dict(zip(options, point, strict=True)) for point in zip(*options.values(), strict=True)]
        found = [Choice(shown_value(*next(iter(point.items()))), (), point) for point in points]
    elif isinstance(values, dict):
        found = [_variant(f"{place}.{name}", str(name), content) for name, content in values.items()]
    elif isinstance(values, list) and OPTION.match(axis):
        options_of(place, {axis: None})
        found = [Choice(shown_value(axis, value), (), {axis: value}) for value in values]
    elif isinstance(values, list):
        found = [Choice(Path(stored_name(name)).stem, (name,)) for name in config_names(place, values)]
    else:
        raise UserError(f"{place} must be a list of values, or a mapping of named variants, got {values!r}.")
    _check_different(place, [choice.name for choice in found], values if isinstance(values, list) else [])
    return found


def _variant(place: str, name: str, content: Any) -> Choice:
    if isinstance(content, str):  # the name of a configuration
        return Choice(name, tuple(config_names(place, [content])))
    content = dict(mapping_of(place, "variant", content or {}))
    configs = config_names(f"{place}.configs", content.pop("configs", None) or [])
    tune = read_tune(f"{place}.tune", content.pop("tune", None))
    return Choice(name, tuple(configs), options_of(place, content), tune)


def read_tune(place: str, content: Any) -> dict[str, list[Any]]:
    """Return the options to tune and the values to try: {option: values}."""
    found = {}
    for option, values in options_of(place, content or {}).items():
        if not isinstance(values, list):
            raise UserError(f"{place}.{option} must be a list of values to try, got {values!r}.")
        found[option] = tried = [_as_number(each) for each in values]
        _check_different(f"{place}.{option}", [shown_value(option, each) for each in tried], tried)
    return found


def _as_number(value: Any) -> Any:
    """Return text such as `1e-4` as a number, and any other value unchanged."""
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _check_different(place: str, names: list[str], values: list[Any]) -> None:
    """Raise a UserError if there is no value, or one comes twice, also as a number in two spellings: 1e-4, 0.0001."""
    numbers = [each for each in map(_as_number, values) if type(each) in (int, float)]
    if not names or len(set(names)) < len(names) or len(set(numbers)) < len(numbers):
        raise UserError(f"{place} must be a list of different values, got {', '.join(names) or 'no value'}.")


def mapping_of(place: str | Path, what: str, value: Any) -> dict[str, Any]:
    """Return the value, after checking that it is a mapping whose keys are text."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{place}: {what} must be a mapping with names as keys, got {value!r}.")
    return value


def options_of(place: str, content: Any) -> dict[str, Any]:
    """Return the options in a mapping, after checking that each can be set by a sweep."""
    for option in mapping_of(place, "it", content):
        if not isinstance(option, str) or RESERVED.fullmatch(option):
            raise UserError(f"{place}: {option} is set by the sweep; use configs or seeds instead.")
        if not OPTION.match(option):
            raise UserError(f"{place}: {option!r} is not an option of litpeft fit, such as model.adapter.rank.")
    return dict(content)


def config_names(place: str, names: Any) -> list[str]:
    """Return a list of configuration names, after checking that each can be read."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place} must be a list of configuration names or files, got {names!r}.")
    for name in names:
        try:
            read_yaml(name)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    return names


def choice_name(path: Path, key: str, axis: str, value: Any, choices: dict[str, list[Choice]]) -> str:
    """Return the name of the value of an axis that `exclude` or `baseline` gives, by its name or as in `axes`.

    Args:
        path: the experiment file, for error messages.
        key: `exclude` or `baseline`.
        axis: name of an axis.
        value: the value that is given.
        choices: {axis: its values}.

    Raises:
        UserError: there is no such axis, or it has no such value.
    """
    if axis not in choices:
        raise UserError(f"{path}: {key} names {axis!r}, but the axes are {', '.join(choices)}.")
    names = [choice.name for choice in choices[axis]]
    for name in names:
        spellings = str(value), stored_name(str(value)), shown_value(axis, value)
        if name in spellings or name.partition("=")[2] == str(value):
            return name
    raise UserError(f"{path}: {key}: {axis} has no value {value!r}; it has {', '.join(names)}.")


def without_option(axis: str, name: str) -> str:
    """Return the name of a value of an axis without that of its option: `8` for `rank=8`."""
    return name.removeprefix(f"{axis.rpartition('.')[2]}=")


def shown_value(option: str, value: Any) -> str:
    """Return the name of an option value: `rank=8`; classes and files are shortened to their last name."""
    text = value if isinstance(value, str) else typed(value).replace('"', "").replace(" ", "")
    if isinstance(value, str) and "/" in value:
        text = Path(value).name
    elif isinstance(value, str) and re.fullmatch(r"[a-z_]\w*(\.\w+)+", value):
        text = value.rpartition(".")[2]
    return f"{option.rpartition('.')[2]}={text}"


def typed(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)  # YAML has dates, JSON has not

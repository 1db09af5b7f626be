"""Parsers of the verbs, and tables of their options, for the generated pages."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

ADDED = ("model", "data", "trainer")  # groups of options with a page of their own, or Lightning's
SKIPPED = ("help", "config", "print_config")


class Parsed(BaseException):
    """Raised with the parser of a command, before the command runs."""


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options of `fit` and related verbs, without those of the task, the data and Lightning's Trainer."""
    actions = [a for a in parser._actions if a.option_strings and a.dest not in SKIPPED]
    plain = [a for a in actions if a.dest.partition(".")[0] not in ADDED and not a.dest.endswith(".help")]
    groups = {a.dest.partition(".")[0] for a in plain if "." in a.dest}
    return [a for a in plain if a.dest not in groups and a.help != argparse.SUPPRESS]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb."""
    from litpeft.__main__ import TRAINER_VERBS, main
    from litpeft.commands.parser import CommandParser

    if verb in (*TRAINER_VERBS, "estimate", "find_lr", "data"):
        return trainer_parser("show_data" if verb == "data" else verb)

    def stop(self: CommandParser, *_: Any, **__: Any) -> None:
        raise Parsed(self)

    with patch.object(CommandParser, "parse_known_args", stop):
        try:
            main([verb])
        except Parsed as found:
            return found.args[0]
    raise RuntimeError(f"litpeft {verb} has no CommandParser")


def trainer_parser(verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb that takes the options of `fit`."""
    from litpeft.cli.lightning_cli import LitPeftCLI
    from litpeft.commands import data as show_data
    from litpeft.commands import estimate, find_lr

    planned = {"estimate": estimate.EstimateCLI, "find_lr": find_lr.FindCLI, "show_data": show_data.DataCLI}
    kind = planned.get(verb, LitPeftCLI)
    with stopped_before_parsing():
        try:
            kind(verb, ["--config", "base", "--config", "sst2"])
        except Parsed as found:
            parser = found.args[0]
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[verb]


@contextmanager
def stopped_before_parsing() -> Iterator[None]:
    from lightning.pytorch.cli import LightningCLI

    def stop(self: LightningCLI, parser: argparse.ArgumentParser, *_: Any) -> None:
        raise Parsed(parser)

    with patch.object(LightningCLI, "parse_arguments", stop):
        yield


def table(actions: Iterable[argparse.Action], short: bool = False) -> str:
    """Return a table of options; with `short`, their names have no dashes."""
    rows = ["| option | values | default | meaning |", "| --- | --- | --- | --- |"]
    for action in actions:
        name = (
            ", ".join(f"`{n}`" for n in action.option_strings if not n.endswith("+"))
            or f"`{action.metavar or action.dest}`"
        )
        name = name.replace("`--", "`") if short else name
        rows.append(f"| {name} | {cell(values(action))} | {cell(default(action))} | {cell(meaning(action))} |")
    return "\n".join(rows)


def values(action: argparse.Action) -> str:
    """Return what an option takes."""
    if action.choices:
        return ", ".join(f"`{each}`" for each in action.choices)
    hint = getattr(action, "_typehint", None) or action.type
    if action.nargs == 0 or (len(action.option_strings) == 2 and action.option_strings[1].startswith("--no")):
        return ""
    if hint is None or inspect.isfunction(hint) or hint is str:
        return "text"
    if "Callable" in str(hint):
        return "a class"
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    text = re.sub(r"(?:[\w]+\.)+(\w+)", r"\1", text)  # module names
    text = re.sub(r"(?:Optional|Union)\[(.*)\]", r"\1", text).replace("NoneType", "null").replace("None", "null")
    text = re.sub(r"Literal\[([^]]*)\]", lambda m: m[1].replace("'", ""), text)
    return f"`{text.replace('str', 'text').replace('bool', 'true, false')}`"


def default(action: argparse.Action) -> str:
    value = action.default
    if value is None or value == argparse.SUPPRESS or "default:" in (action.help or "").lower():
        return ""
    if not isinstance(value, (str, int, float, bool, list, tuple, dict)):
        value = getattr(value, "__name__", None) or str(value)
    if isinstance(value, (bool, list, tuple, dict)):  # as in YAML
        value = str(value).lower() if isinstance(value, bool) else str(list(value)).replace("'", "")
    return f"`{value}`" if value not in ("", "[]") else ""


def meaning(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%")
    return re.sub(r" *\(type: .*", "", text, flags=re.DOTALL)


def cell(text: str) -> str:
    """Return a text as the cell of a table: outside of code, no sign formats the text."""
    parts = re.split(r"(`[^`]*`)", " ".join(str(text).split()))  # every second part is code
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_|])", r"\\\1", parts[i].replace("<", "&lt;"))
    return "".join(parts)

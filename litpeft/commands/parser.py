"""The argument parser of commands that do not need torch; a mistake gives one sentence."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from litpeft.errors import UserError, did_you_mean


class CommandParser(argparse.ArgumentParser):
    """A parser that raises `UserError` instead of printing its usage; options cannot be abbreviated.

    Args:
        verb: name of the command.
        options: arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, verb: str, **options: Any) -> None:
        super().__init__(
            prog=f"litpeft {verb}", allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter, **options
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._typed = [str(word).partition("=")[0] for word in args or () if str(word).startswith("--")]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = list(self._option_string_actions)
        if unknown := next(
            (word for word in self._typed if word not in known), None
        ):  # more useful than what is missing
            message = f"unknown option {unknown}{did_you_mean(unknown, known)}"
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help.")

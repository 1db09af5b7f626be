"""The argument parser of commands that do not need torch; a mistake gives one sentence."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from litpeft.errors import UserError


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

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help.")

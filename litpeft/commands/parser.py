"""The parser of the commands that need no torch: a mistake is one sentence, as everywhere."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from litpeft.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """Raises `UserError` where the stock parser prints its usage and exits; no option can be cut short.

    Args:
        verb: of the command.
        options: as of `ArgumentParser`.
    """

    def __init__(self, verb: str, **options: Any) -> None:
        super().__init__(
            prog=f"litpeft {verb}", allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help.")

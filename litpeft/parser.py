"""The command line's parser: a mistake is one sentence with a suggestion, not a page of usage."""

from __future__ import annotations

import difflib
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from litpeft.errors import UserError

PATIENCE = 0.6  # of difflib: how like a known name a mistyped one must be to be suggested


class OneLineParser(LightningArgumentParser):
    """Raises `UserError` where the stock parser prints its usage and exits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # --trainer.max_epoch would be taken for --trainer.max_epochs, and a new option could change what a script means
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(_sentence(message, parser)) from ex

    def option_names(self) -> list[str]:
        """The options that the parser knows, with their dashes."""
        return [word for action in self._actions for word in action.option_strings if word.startswith("--")]


def _sentence(message: str, parser: LightningArgumentParser) -> str:
    text = " ".join(message.split())
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)", text):
        return f"unknown option {match[1]}{_guess(match[1].split('=')[0], parser.option_names())}."
    return text


def _guess(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=PATIENCE)
    return f" (did you mean {close[0]}?)" if close else ""

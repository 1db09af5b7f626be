"""`litpeft chat`: talk to the model of a run in the terminal, or show it texts or images to label."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litpeft.commands.parser import CommandParser
from litpeft.commands.sampling import add_answering_options, check_answering_options, check_has_checkpoint
from litpeft.errors import UserError, writing

if TYPE_CHECKING:
    from litpeft.commands.chat_sides import Side

DESCRIPTION = """talk to the model of a run in the terminal

The conversation is rendered with the template that the model was trained with. A classifier, regression or image
model answers each line by itself: type a text, or the path of an image. Without a terminal, each line of the standard
input is a turn. Ctrl-C stops an answer, Ctrl-D quits.
"""
COMMANDS = {
    "/reset": "start a new conversation",
    "/save FILE": "write the conversation to a new JSON Lines file, which litpeft can train on",
    "/quit": "leave the chat",
    "/help": "list these commands",
}
WORDS = {command.partition(" ")[0] for command in COMMANDS}


def main(arguments: list[str]) -> int:
    parser = CommandParser("chat", description=DESCRIPTION)
    add_answering_options(parser)
    parser.add_argument(
        "--compare", metavar="RUN2", help="show the answers of another run too, or of the `base` without the adapter"
    )
    options = parser.parse_args(arguments)
    generation = check_answering_options(options)
    if options.compare not in (None, "base"):
        check_has_checkpoint(Path(options.compare))
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    sides = _sides(options, generation)
    if interactive:
        print(f"{_greeting(options)}; type {sides[0].asks_for}; /help lists commands, Ctrl-D quits")
    return _talk(sides, interactive)


def _sides(options: Any, generation: dict[str, Any]) -> list[Side]:
    from litpeft.cli.answering_models import load_models  # slow imports: mistakes in the options were reported before
    from litpeft.cli.console import quieten
    from litpeft.commands.chat_sides import side_of

    quieten()
    models = load_models(options.run_dir, options.compare, options.accelerator)
    return [side_of(model, generation, options) for model in models]


def _greeting(options: Any) -> str:
    other = f" beside {options.compare}" if options.compare else ""
    way = f"sampling at temperature {options.temperature:g}" if options.temperature else "the most likely tokens"
    return f"{options.run_dir}{other}; answers are {way}"


def _talk(sides: Sequence[Side], interactive: bool) -> int:
    """Answer line after line until the end of the input; return 1 if a line of a file could not be answered."""
    from litpeft.commands.chat_screen import answer, lines

    fine = True
    for line in lines(interactive):
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            break
        if word in WORDS or re.fullmatch(r"/\w+", word):
            fine &= _command(word, rest.strip(), sides)
        elif word:
            fine &= answer(sides, line.strip(), interactive)
    return 0 if interactive or fine else 1


def _command(word: str, rest: str, sides: Sequence[Side]) -> bool:
    """Carry out a command of the chat, and return whether that worked."""
    if word == "/reset":
        for side in sides:
            side.reset()
    elif word == "/save":
        try:
            print(_save(rest, sides))
        except UserError as error:
            print(f"litpeft: error: {error}", file=sys.stderr)
            return False
    elif word == "/help":
        print("\n".join(f"  {command:12} {text}" for command, text in COMMANDS.items()))
    else:
        print(f"litpeft: error: there is no command {word}; /help lists them.", file=sys.stderr)
        return False
    return True


def _save(name: str, sides: Sequence[Side]) -> str:
    """Write the conversation of each side to a file, and return a sentence about it."""
    rows = [row for side in sides for row in side.saved()]
    if not name:
        raise UserError("/save needs a file, such as /save chat.jsonl.")
    if not rows:
        raise UserError("/save: there is nothing to save yet.")
    path = Path(name).expanduser()
    with writing("/save", path), path.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return f"saved to {path}"

"""What a chat shows: answers as they come, and those of two models side by side on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from litpeft.commands.chat_sides import Side
from litpeft.errors import UserError, one_line

LEAST_WIDTH = 60  # columns of a terminal for answers side by side
HINT = "press Ctrl-D or type /quit to leave"


def lines(interactive: bool) -> Iterator[str]:
    """Yield what the user types, line by line: from a prompt on a terminal, else from standard input."""
    if not interactive:
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with suppress(ImportError):  # not on every platform
        import readline  # noqa: F401 (arrow keys and history)
    while True:
        try:
            yield input("you: ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{HINT}")


def answer(sides: Sequence[Side], text: str, interactive: bool) -> bool:
    """Let each side answer a text, and show the answers; return whether all could."""
    if interactive and len(sides) > 1:
        from rich.console import Console

        if (console := Console()).width >= LEAST_WIDTH:
            return _side_by_side(sides, text, console)
    fine = True
    for side in sides:
        if interactive or len(sides) > 1:
            _write(f"{side.name}: ")
        fine &= _answered(side, text, _write)
        _write("\n")
    return fine


def _side_by_side(sides: Sequence[Side], text: str, console: Any) -> bool:
    """Show the answers in the columns of a table, which is drawn again while they are generated."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    said, fine = [""] * len(sides), True

    def table() -> Table:
        drawn = Table(expand=True)
        for side in sides:
            drawn.add_column(side.name, ratio=1, overflow="fold")
        drawn.add_row(*map(Text, said))  # not str, in which rich reads [tags]
        return drawn

    with Live(console=console, transient=True, auto_refresh=False) as live:
        for number, side in enumerate(sides):

            def write(piece: str, number: int = number) -> None:
                said[number] += piece
                live.update(table(), refresh=True)

            fine &= _answered(side, text, write)
    console.print(table())  # whole: the live table is cut at the height of the terminal
    return fine


def _answered(side: Side, text: str, write: Callable[[str], None]) -> bool:
    try:
        side.answer(text, write)
    except UserError as error:
        print(f"litpeft: error: {one_line(str(error))}", file=sys.stderr)
        return False
    except (KeyboardInterrupt, SystemExit):  # Lightning makes a SystemExit of Ctrl-C
        write("[stopped]")
    return True


def _write(text: str) -> None:
    print(text, end="", flush=True)

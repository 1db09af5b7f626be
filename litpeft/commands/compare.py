"""`litpeft compare`: print runs as a table of costs and quality, with tests of their differences."""

from __future__ import annotations

import argparse
from pathlib import Path

from litpeft.analysis.comparison import Comparison
from litpeft.analysis.comparison.formats import FORMATS
from litpeft.analysis.comparison.selection import add_compare_options, compare_selected
from litpeft.commands.parser import CommandParser
from litpeft.errors import writing
from litpeft.runs.atomic_write import write_atomically

ENDINGS = {".md": "markdown", ".csv": "csv", ".json": "json", ".tex": "latex"}


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    comparison = compare_selected(options)
    form = options.format or (ENDINGS.get(options.output.suffix) if options.output else None) or "terminal"
    if options.output:
        _write(options.output, comparison, form)
    elif form == "terminal":
        from rich.console import Console  # the other formats do not need rich

        from litpeft.analysis.comparison.terminal import show

        show(comparison, Console())
    else:
        print(FORMATS[form](comparison), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("compare", description=__doc__, epilog="All figures are defined in litpeft/runs/record.py.")
    add_compare_options(parser)
    parser.add_argument(
        "--format", choices=("terminal", *FORMATS), help="default: by the extension of FILE, else terminal"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE")
    return parser


def _write(path: Path, comparison: Comparison, form: str) -> None:
    if form == "terminal":
        from litpeft.analysis.comparison.terminal import as_text

        text = as_text(comparison)
    else:
        text = FORMATS[form](comparison)
    with writing("-o", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    print(path)

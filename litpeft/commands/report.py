"""`litpeft report`: a comparison as a page that one opens in a browser, or as Markdown with pictures."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from litpeft.analysis.comparison.selection import add_selection, selected
from litpeft.analysis.report.markdown import write_markdown
from litpeft.analysis.report.page import write_page
from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError

ENDINGS = {".html": "html", ".htm": "html", ".md": "md"}


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    ending = ENDINGS.get(options.output.suffix) if options.output else None
    form = options.format or ending or "html"
    if ending and ending != form:
        raise UserError(f"--format {form} does not fit -o {options.output}; leave one of them out.")
    path = options.output or Path(f"report.{form}")
    if path.is_dir():
        raise UserError(f"-o {path} is a folder; name a file in it.")
    if form == "html":
        write_page(selected(options), path, f"litpeft report {shlex.join(arguments)}")
    else:
        write_markdown(selected(options), path)
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("report", description=__doc__)
    add_selection(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="by default report.html, or report.md")
    parser.add_argument(
        "--format", choices=("html", "md"), help="html is one file; md has pictures beside it; by default as FILE ends"
    )
    return parser

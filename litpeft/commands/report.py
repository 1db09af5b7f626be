"""`litpeft report`: write a comparison as an HTML page, or as Markdown with images."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from litpeft.analysis.comparison.selection import add_compare_options, compare_selected
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
        raise UserError(f"-o {path} is a folder; give a file name.")
    if form == "html":
        write_page(compare_selected(options), path, f"litpeft report {shlex.join(arguments)}")
    else:
        write_markdown(compare_selected(options), path)
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("report", description=__doc__)
    add_compare_options(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: report.html or report.md")
    parser.add_argument(
        "--format",
        choices=("html", "md"),
        help="html: one file; md: Markdown and image files (default: by the extension of FILE)",
    )
    return parser

"""A comparison on a terminal: the question, what is wrong with it, the tables, and how to read them."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from litpeft.comparison.model import Comparison
from litpeft.comparison.tables import KINDS, Table, alarms, differences_table, figures_table, notes

STYLES = {"better": "green", "worse": "red", "within noise": "yellow", "cannot tell": "dim"}


def show(comparison: Comparison, console: Console) -> None:
    """Print it. A table that is too wide is split by what its figures are about."""
    console.print(Text(comparison.title, style="bold"))
    if comparison.question:
        console.print(Text(comparison.question))
    if sentences := alarms(comparison):
        console.print(Panel(Text("\n".join(sentences)), title="Mind", border_style="bold red", title_align="left"))
    whole = figures_table(comparison)
    console.print(Text(f"\n{whole.title}", style="italic"))
    if Measurement.get(console, console.options.update(width=10_000), _rich(whole)).maximum <= console.width:
        console.print(_rich(whole))
    else:
        for kind in KINDS:
            if figures := [figure for figure in comparison.figures if figure.kind == kind]:
                console.print(_rich(figures_table(comparison, figures)))
    if differences := differences_table(comparison):
        console.print(Text(f"\n{differences.title}", style="italic"))
        _show_differences(differences, console)
    for sentence in notes(comparison):
        console.print(Text(sentence))


def as_text(comparison: Comparison, width: int = 120) -> str:
    """The same without colours, for a file."""
    text = io.StringIO()
    show(comparison, Console(file=text, width=width))
    return text.getvalue()


def _rich(table: Table) -> RichTable:
    """Text objects throughout: brackets in a label are no markup."""
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(table.headings):
        shown.add_column(Text(heading), justify="right" if place else "left")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def _show_differences(table: Table, console: Console) -> None:
    """The figure, which is the first column, stands above its rows; columns stand below each other throughout."""
    headings = ["", *(heading.replace("seeds needed", "seeds\nneeded") for heading in table.headings[2:])]
    lines = [[f"  {label}", *cells] for _, label, *cells in table.rows]
    widths = [max(map(len, column)) for column in zip([line.split("\n")[0] for line in headings], *lines, strict=True)]
    for figure in (None, *dict.fromkeys(row[0] for row in table.rows)):  # None: the headings alone
        shown = RichTable(box=None, pad_edge=False, show_header=figure is None)
        for place, (heading, width) in enumerate(zip(headings, widths, strict=True)):
            shown.add_column(Text(heading), justify="right" if place else "left", min_width=width)
        for row, line in zip(table.rows, lines, strict=True):
            if row[0] == figure:
                shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in line))
        if figure is not None:
            console.print(Text(figure, style="bold"))
        console.print(shown)

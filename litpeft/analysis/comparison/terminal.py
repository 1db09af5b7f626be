"""Print a comparison on a terminal: question, warnings, tables and notes."""

from __future__ import annotations

import io

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from litpeft.analysis.comparison.answer import answer
from litpeft.analysis.comparison.results import Comparison
from litpeft.analysis.comparison.tables import KINDS, Table, alarms, differences_table, figures_table, notes

STYLES = {
    **{"better": "green", "worse": "red", "better (small)": "green", "worse (small)": "red", "equivalent": "cyan"},
    **{"not enough seeds": "dim", "not enough rows": "dim"},
}


def show(comparison: Comparison, console: Console) -> None:
    """Print a comparison; a table that is too wide is split by kind of figure."""
    console.print(Text(comparison.title, style="bold"))
    if comparison.question:
        console.print(Text(comparison.question))
    if sentences := alarms(comparison):
        console.print(Panel(Text("\n".join(sentences)), title="Warnings", border_style="bold red", title_align="left"))
    for sentence in answer(comparison).first:
        console.print(Text(f"\n{sentence}", style="bold"))
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
    """Return the terminal output as text without colours."""
    text = io.StringIO()
    show(comparison, Console(file=text, width=width))
    return text.getvalue()


def _rich(table: Table) -> RichTable:
    """Convert a table for rich; Text objects keep brackets in labels from being read as markup."""
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(table.headings):
        shown.add_column(Text(heading), justify="right" if place else "left")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def _show_differences(table: Table, console: Console) -> None:
    """Print the differences under a heading per figure. Formatted by hand: rich takes a second for 2,000 rows."""
    lines = [["", *table.headings[2:]], *([f"  {label}", *cells] for _, label, *cells in table.rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    above = None
    for figure, line in zip(["", *(row[0] for row in table.rows)], lines, strict=True):
        if figure and figure != above:
            console.print(Text(figure, style="bold"))
        above = figure
        room = [width - cell_len(cell) for cell, width in zip(line, widths, strict=True)]
        parts = [Text(line[0] + " " * room[0])]
        parts += [Text(" " * left + cell, STYLES.get(cell, "")) for cell, left in zip(line[1:], room[1:], strict=True)]
        console.print(Text("  ").join(parts), soft_wrap=True)

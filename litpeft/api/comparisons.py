"""Compare runs in Python and in notebooks, and run sweeps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from litpeft.analysis.comparison import compare as compare_paths
from litpeft.analysis.comparison import results
from litpeft.analysis.comparison.answer import answer
from litpeft.analysis.comparison.formats import csv, markdown
from litpeft.analysis.comparison.margins import Margin, read_margin
from litpeft.analysis.comparison.tables import Table, alarms, differences_table, figures_table, notes
from litpeft.api.arguments import config_words, naming_arguments, option_words
from litpeft.errors import UserError

OWN = ("device", "jobs", "select", "trials", "launcher", "address", "cpus", "gpus")  # options of `litpeft sweep`


class Comparison(results.Comparison):
    """A comparison that shows itself: as Markdown where it is printed, as tables in notebooks."""

    @property
    def answer(self) -> list[str]:
        """The verdict in a sentence, and what to choose."""
        return answer(self).first

    def to_frame(self) -> Any:
        """Return a pandas table: one row per group, means and differences in raw units, as `--format csv` writes them.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_frame() needs pandas, which is not installed; run: pip install pandas.") from error
        return pandas.read_csv(StringIO(csv(self)))

    def __str__(self) -> str:
        return markdown(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the answer, the tables and the notes as HTML, for notebooks."""
        parts = [f"<h3>{escape(self.title)}</h3>"]
        parts += [f"<p>{escape(self.question)}</p>"] if self.question else []
        parts += [f"<p><b>{escape(sentence)}</b></p>" for sentence in self.answer]
        parts += [f"<p>Warning: {escape(sentence)}</p>" for sentence in alarms(self)]
        parts += [_table(each) for each in (figures_table(self), differences_table(self)) if each]
        parts += [f"<p><small>{escape(' '.join(notes(self)))}</small></p>"]
        return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><caption>{escape(table.title)}</caption><tr>{head}</tr>{body}</table>"


def compare(*runs: str | os.PathLike[str] | Iterable[Any], **options: Any) -> Comparison:
    """Compare runs, as `litpeft compare` does.

    Args:
        runs: run folders, folders of runs, or the folder of one sweep: texts, paths, `Run`s, or lists of these.
        options: `by`, `baseline`, `figures`, `targets`, `examples`, `average_over`, `prefer` and `relative`, as of
            `litpeft.analysis.comparison.compare`; `margins`, the smallest differences that matter by name of the figure
            in the unit that the table shows, or in percent of the baseline: `{"val_accuracy": 0.5, "val_loss": "2%"}`.

    Raises:
        UserError: a file cannot be read, a margin is no positive number, or the runs are not comparable.
    """
    paths = [path for each in runs for path in ([each] if isinstance(each, (str, os.PathLike)) else each)]
    if not paths:
        raise UserError("compare needs runs: give run folders, or folders that contain run folders.")
    for name in ("by", "figures"):
        if isinstance(options.get(name), str):
            options[name] = [options[name]]
    if "margins" in options:
        options["margins"] = dict(_margin(name, amount) for name, amount in options["margins"].items())
    with naming_arguments():
        found = compare_paths([Path(path) for path in paths], **options)
    return Comparison(**vars(found))


def _margin(name: str, amount: Any) -> tuple[str, Margin]:
    """Return a margin given as a number or as a text such as `2%`."""
    try:
        return (name, amount) if isinstance(amount, Margin) else read_margin(f"{name}={amount}")
    except ValueError as error:
        raise UserError(f"margins: {name} is {amount!r}; give a positive number, or one with % as a text.") from error


def sweep(
    experiment: str | os.PathLike[str] | Mapping[str, Any],
    dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Comparison | None:
    """Run every trial of an experiment with every seed, as `litpeft sweep` does; return the comparison of its runs.

    Each run is a process of its own. After an interruption, the same call runs what is missing.

    Args:
        experiment: name of a packaged experiment, a file, or a dict with the content of such a file.
        dir: folder of the sweep; by default `runs/EXPERIMENT`.
        options: options of `litpeft sweep` (`jobs`, `retry`, `dry_run`, `launcher`, ...) and options for all runs, with
            `__` for the dot. With `dry_run=True`, the trials are listed, and None is returned.

    Raises:
        UserError: an argument or the experiment is wrong, or no run has finished.
    """
    from litpeft.commands.sweep import main

    with TemporaryDirectory() as scratch, naming_arguments(Path(scratch)):
        if isinstance(experiment, Mapping):
            if dir is None:
                raise UserError("dir is missing: an experiment that is given as a dict has no name.")
            experiment = config_words((experiment,), Path(scratch))[0].partition("=")[2]
        root = Path(dir) if dir is not None else Path("runs") / Path(experiment).stem
        slurm = [f"--slurm={key}={value}" for key, value in (options.pop("slurm", None) or {}).items()]
        options = {name: value for name, value in options.items() if value is not None or name not in OWN}
        with _handlers_kept():
            code = main([os.fspath(experiment), f"--dir={root}", *slurm, *option_words(options)])
    if code >= 128:
        raise KeyboardInterrupt
    return None if options.get("dry_run") else compare(root)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restore the signal handlers that the sweep replaces."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What the user sees of a run: results in a table, and not what the libraries say beside it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings

import datasets
import transformers


def show(title: str, rows: list[tuple[str, str]]) -> None:
    """A table of names and values."""
    # not before Lightning: rich's annotations would make `--trainer.limit_train_batches 1` all of them (1.0)
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    print(title)  # whole, to be copied: it is a path, and wider than the table
    Console().print(table)


def quieten() -> None:
    """Leave the screen to progress, results and errors."""
    threading.excepthook = _without_those_told_elsewhere
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or a warning at every fork of a worker
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*args parameter is intended.*",
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory.*",
        ".*removed in v5.0.0.*",
        ".*treespec.*",
        ".*will be removed in.*",
        ".*broadcast_buffers.*is deprecated.*",
        ".*sync_dist=True.*when logging on epoch level.*",  # what is logged then is of all processes already
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _without_those_told_elsewhere(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread gives an error of the disk to the main one, which ends the run with it."""
    if not issubclass(args.exc_type, OSError):
        sys.__excepthook__(args.exc_type, args.exc_value, args.exc_traceback)

"""Terminal output: tables of results, and silence from the libraries."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings

import datasets
import transformers


def show(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a table of names and values under a title."""
    # import rich after Lightning: otherwise jsonargparse reads `--trainer.limit_train_batches 1` as 1.0, all batches
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    print(title)  # outside the table: a path to copy, often wider than the table
    Console().print(table)


def quieten() -> None:
    """Silence library messages, so that the terminal shows progress, results and errors only."""
    threading.excepthook = _hide_tensorboard_disk_errors
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # otherwise tokenizers warns at every fork of a worker
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # estimate reports its errors
    for message in (
        ".*args parameter is intended.*",
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*`configure_optimizers` returned `None`.*",  # the adapter Untrained
        ".*Checkpoint directory.*",
        ".*removed in v5.0.0.*",
        ".*treespec.*",
        ".*will be removed in.*",
        ".*have overridden `on_before_batch_transfer`.*",  # the task calls the data's own
        ".*broadcast_buffers.*is deprecated.*",
        ".*sync_dist=True.*when logging on epoch level.*",  # these metrics are already reduced over processes
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _hide_tensorboard_disk_errors(args: threading.ExceptHookArgs) -> None:
    """Ignore disk errors in threads: TensorBoard's writer thread passes them to the main thread, which reports them."""
    if not issubclass(args.exc_type, OSError):
        sys.__excepthook__(args.exc_type, args.exc_value, args.exc_traceback)

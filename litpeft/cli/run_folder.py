"""The run folder of a command: locked for `fit`, and the checkpoint that a finished run is evaluated with."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from filelock import FileLock
from jsonargparse import Namespace

from litpeft.errors import UserError
from litpeft.runs.folder import CONFIG, NEW_OPTIONS, newest_checkpoint, saved_config
from litpeft.runs.lock import FolderInUse, lock
from litpeft.runs.record import path_in_run_folder

DEVICE_OPTIONS = ("trainer.devices", "trainer.num_nodes", "trainer.strategy")


def lock_run_folder(run_dir: Path) -> FileLock:
    """Lock a run folder for this process.

    Raises:
        UserError: another process trains into this folder, or the folder cannot be written to.
    """
    try:
        return lock(run_dir)
    except FolderInUse as error:
        raise UserError(
            f"--run_dir {run_dir} is in use by {error.holder}; wait until it ends, or give another folder."
        ) from error
    except FileExistsError as error:
        raise UserError(f"--run_dir {run_dir} is a file; give a folder.") from error
    except OSError as error:
        raise UserError(f"--run_dir {run_dir}: {error.strerror or error}.") from error


def keep_old_options(options: Namespace, run_dir: Path) -> None:
    """Set the options that the run of version 0.1.0 in this folder lacks to what that version did."""
    if not (run_dir / CONFIG).is_file():
        return
    config = saved_config(run_dir)
    for option, value in NEW_OPTIONS.items():
        group, _, name = option.split(".")
        given, saved = options[group].init_args, config.get(group, {}).get("init_args") or {}
        if name in given and name not in saved:
            given[name] = value


def set_devices_and_batches(options: Namespace, given: Container[str]) -> None:
    """Set what need not be as in the training of a finished run: its devices, and how its rows are put into batches.

    Args:
        options: options of the run; changed in place.
        given: options on the command line.
    """
    if not any(option in given for option in DEVICE_OPTIONS):
        trainer = options.trainer
        trainer.devices, trainer.num_nodes, trainer.strategy = 1, 1, "auto"
    if "data.batch_size" in given and options.data.init_args.get("batch_tokens") and "data.batch_tokens" not in given:
        options.data.init_args.batch_tokens = None


def selected_checkpoint(run_dir: Path, record: dict[str, Any]) -> Path:
    """Return the checkpoint that a record names, or the newest one of a run that was killed.

    Raises:
        UserError: the best checkpoint is gone, or the run has no checkpoint.
    """
    named = path_in_run_folder(run_dir, record["checkpoint"]) if record["checkpoint"] else None
    if named is not None and named.is_dir():
        return named
    if named is not None and record["selection"] != "last":
        raise UserError(f"{named}, the {record['selection']} checkpoint of the run, is gone.")
    newest = newest_checkpoint(run_dir)
    if newest is None:
        raise UserError(f"{run_dir} has no checkpoint: its run ended before one was written.")
    return newest

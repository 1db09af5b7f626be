"""Curves of a resumed run: values logged after its checkpoint are removed, because they are logged again."""

from __future__ import annotations

import os
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from litpeft.runs.curve_file import FILE_NAME

EVENTS = "events.out.tfevents.*"


def curve_sizes(run_dir: Path) -> dict[str, int]:
    """Return the size in bytes of the file of curves and of each event file, by name. Flush the event files before."""
    return {file.name: file.stat().st_size for file in _files(run_dir)}


def cut_curves(run_dir: Path, sizes: dict[str, int], keep: Path | None = None) -> None:
    """Truncate the files with curves of a run to their sizes at the checkpoint, and remove later files.

    TensorBoard's `purge_step` would only hide values, and not every reader respects it.

    Args:
        run_dir: the run folder.
        sizes: size in bytes of each file at the checkpoint.
        keep: the file that is being written.
    """
    for file in _files(run_dir):
        if file == keep:
            continue
        if file.name not in sizes:
            file.unlink()
        elif file.stat().st_size > sizes[file.name]:
            os.truncate(file, sizes[file.name])


def _files(run_dir: Path) -> list[Path]:
    own = run_dir / FILE_NAME
    return [*run_dir.glob(EVENTS), *([own] if own.exists() else [])]


def event_file(trainer: Trainer) -> Path | None:
    """Return the event file that TensorBoard is writing; None without TensorBoard."""
    writers = [each.experiment.file_writer for each in trainer.loggers if isinstance(each, TensorBoardLogger)]
    return Path(writers[0].event_writer._file_name) if writers and writers[0] else None


def remove_event_file(trainer: Trainer) -> None:
    """Close and delete the event file that TensorBoard created for this process."""
    path = event_file(trainer)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
    if path is not None:
        path.unlink(missing_ok=True)

"""TensorBoard event files of a resumed run: values logged after its checkpoint are removed, because they come again."""

from __future__ import annotations

import os
from pathlib import Path

EVENTS = "events.out.tfevents.*"


def curve_sizes(run_dir: Path) -> dict[str, int]:
    """Return the size in bytes of each event file of a run, by name. Flush the files before."""
    return {file.name: file.stat().st_size for file in run_dir.glob(EVENTS)}


def cut_curves(run_dir: Path, sizes: dict[str, int], keep: Path | None = None) -> None:
    """Truncate the event files of a run to their sizes at the checkpoint, and remove later files.

    TensorBoard's `purge_step` would only hide values, and not every reader respects it.

    Args:
        run_dir: the run folder.
        sizes: size in bytes of each event file at the checkpoint.
        keep: the file that is being written.
    """
    for file in run_dir.glob(EVENTS):
        if file == keep:
            continue
        if file.name not in sizes:
            file.unlink()
        elif file.stat().st_size > sizes[file.name]:
            os.truncate(file, sizes[file.name])

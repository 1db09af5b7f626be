"""The curves of a run that is resumed: what was drawn after its checkpoint comes again, and is cut off."""

from __future__ import annotations

import os
from pathlib import Path

EVENTS = "events.out.tfevents.*"


def curve_sizes(run_dir: Path) -> dict[str, int]:
    """Bytes of a run's event files, by name: for the checkpoint, once they are flushed."""
    return {file.name: file.stat().st_size for file in run_dir.glob(EVENTS)}


def cut_curves(run_dir: Path, sizes: dict[str, int], keep: Path | None = None) -> None:
    """Shorten a run's event files to what they were when it was saved; later ones go.

    Cut off the files and not hidden by a mark (`purge_step`), which not all readers heed, and none if the clock has
    been set back and the files are out of order.

    Args:
        run_dir: the run's folder.
        sizes: as they were.
        keep: the file that is being written.
    """
    for file in run_dir.glob(EVENTS):
        if file == keep:
            continue
        if file.name not in sizes:
            file.unlink()
        elif file.stat().st_size > sizes[file.name]:
            os.truncate(file, sizes[file.name])

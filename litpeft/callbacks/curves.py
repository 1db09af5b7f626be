"""The curves of a run that is resumed: what was drawn of steps after its checkpoint comes again, and is cut off."""

from __future__ import annotations

from pathlib import Path

EVENTS = "events.out.tfevents.*"
HEAD, TAIL = (
    12,
    4,
)  # bytes about a record: its length and the checksum of that; its own (tensorboard's record_writer.py)


def cut_curves(run_dir: Path, step: int, keep: Path | None = None) -> None:
    """Shorten a run's event files to what lies before an optimizer step, counted from 0; half a record goes as well.

    Cut off the files and not hidden by a mark (`purge_step`), which not all readers heed, and none if the clock has
    been set back and the files are out of order.

    Args:
        run_dir: the run's folder.
        step: the first that is done again.
        keep: the file that is being written.
    """
    for file in sorted(run_dir.glob(EVENTS)):
        if file != keep:
            end = _end(file.read_bytes(), step)
            if end < file.stat().st_size:
                with open(file, "r+b") as opened:
                    opened.truncate(end)


def _end(data: bytes, step: int) -> int:
    """Where the first record of this step or a later one begins, or one that is not whole."""
    from tensorboard.compat.proto.event_pb2 import Event  # a third of a second, for resumed runs alone

    at = 0
    while at + HEAD <= len(data):
        begin = at + HEAD
        end = begin + int.from_bytes(data[at : at + 8], "little")
        if end + TAIL > len(data) or Event.FromString(data[begin:end]).step >= step:
            break
        at = end + TAIL
    return at

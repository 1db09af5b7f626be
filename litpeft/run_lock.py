"""One process a run folder: two that train into it would write over each other."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from litpeft.errors import UserError

LOCK = ".lock"


def lock(run_dir: Path) -> TextIO:
    """Take a run folder for this process, and make it where it is not there; the lock lasts until the file is closed.

    It is the kernel's, and goes with the process however that ends. One of POSIX (`lockf`) and not of BSD (`flock`):
    workers that make batches would inherit the latter, and hold it for seconds after their parent was killed.

    Raises:
        UserError: another process has it, or the folder cannot be written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(run_dir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (held until the run ends)
    except FileExistsError as error:
        raise UserError(f"--run_dir {run_dir} is a file; give a folder.") from error
    except OSError as error:
        raise UserError(f"--run_dir {run_dir}: {error.strerror or error}.") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UserError(
            f"--run_dir {run_dir} is in use by process {holder or '?'}; wait until it ends, or give another folder."
        ) from error
    with suppress(OSError):  # of a full disk: the lock holds without the number
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"{os.getpid()}\n".encode())
    return file

"""Several processes that train together, started as torchrun starts them, but in processes that start at once."""

from __future__ import annotations

import os
import socket
from multiprocessing.connection import wait
from pathlib import Path

from tests.resuming import SERVER
from tests.resuming import _run as run_words

RUN = "litpeft-tests"
PATIENCE = 30  # seconds that the others have after one has failed


def together(words: list[str], log: Path, count: int = 2) -> list[int]:
    """The exit codes of a command line in so many processes; what each says goes to `log`, its rank appended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        placed = {
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
            **{name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
            **{"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            **{"TORCHELASTIC_RUN_ID": RUN, "GLOO_SOCKET_IFNAME": "lo"},
        }
        processes.append(SERVER.Process(target=_run, args=(words, said_by(log, rank), placed)))
        processes[-1].start()
    while any(process.exitcode is None for process in processes):
        wait([process.sentinel for process in processes if process.exitcode is None])
        if any(process.exitcode for process in processes):  # torchrun ends the others, if later than we here
            for process in processes:
                process.join(PATIENCE)
                process.kill()
                process.join()
    return [process.exitcode for process in processes]


def said_by(log: Path, rank: int) -> Path:
    """Where a process's output is."""
    return log.with_name(f"{log.name}.{rank}")


def _run(words: list[str], log: Path, placed: dict[str, str]) -> None:
    os.environ |= placed
    run_words(words, log, None, None, None)

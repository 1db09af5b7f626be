"""Start several processes that train together with torchrun's environment, but without its slow start."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests.forking import SERVER
from tests.resuming import run_in_this_process

RUN = "litpeft-tests"
TIMEOUT = 30  # seconds for the other processes to end after one has failed


def run_processes(arguments: list[str], log: Path, count: int = 2) -> list[int]:
    """Run a command line in several processes; return the exit codes, and write each output to `log` plus the rank."""
    return start_together(run_quietly, [(arguments, output_file(log, rank)) for rank in range(count)])


def start_together(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[int]:
    """Call a function in several processes that can train together; return the exit codes.

    Args:
        target: a function of a module.
        arguments: its arguments in each process, by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, count = [], len(arguments)
    for rank, given in enumerate(arguments):
        environment = {
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
            **{name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
            **{"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            **{"TORCHELASTIC_RUN_ID": RUN, "GLOO_SOCKET_IFNAME": "lo"},
        }
        processes.append(SERVER.Process(target=_call, args=(target, given, environment)))
        processes[-1].start()
    while any(process.exitcode is None for process in processes):
        wait([process.sentinel for process in processes if process.exitcode is None])
        if any(process.exitcode for process in processes):  # torchrun ends the others too, but later
            for process in processes:
                process.join(TIMEOUT)
                process.kill()
                process.join()
    return [process.exitcode for process in processes]


def output_file(log: Path, rank: int) -> Path:
    """Return the file with a process's output."""
    return log.with_name(f"{log.name}.{rank}")


def run_quietly(arguments: list[str], log: Path) -> None:
    """Run a command line in this process, with its output in a file."""
    run_in_this_process(arguments, log, None, None, None)


def _call(target: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ |= environment
    target(*arguments)

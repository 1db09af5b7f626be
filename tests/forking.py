"""Run command lines in processes forked from one that has imported litpeft: a new process needs seconds for the imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import tests.conftest  # noqa: F401 (sets environment variables before the hub's libraries are imported)
from litpeft.__main__ import main
from litpeft.sweeps import trial_server

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.forking", "tests.resuming", "tests.warming_up"])


def litpeft(
    *arguments: str, cwd: Path | None = None, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the litpeft command line in a forked process; else like `tests.conftest.litpeft`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err, given = Path(folder, "out"), Path(folder, "err"), Path(folder, "in")
        given.write_text(stdin)
        process = SERVER.Process(target=_run, args=(arguments, cwd, os.environ | environment, out, err, given))
        process.start()
        process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _run(
    arguments: tuple[str, ...], cwd: Path | None, environment: dict[str, str], out: Path, err: Path, given: Path
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd or os.getcwd())
    write_output(out, err)
    os.dup2(os.open(given, os.O_RDONLY), 0)
    sys.stdin = open(0)  # noqa: SIM115 (multiprocessing has opened /dev/null)
    like_a_new_process()
    if arguments[0] == "sweep":
        fork_the_trial_server()
    raise SystemExit(main(list(arguments)))


def fork_the_trial_server() -> None:
    """Let a sweep in this process use a trial server that is forked here, before the sweep starts threads.

    The server of the product is a new process, which imports everything again; tests/sweeps/test_trial_server.py and
    the interrupted sweep in tests/commands/test_sweep.py start that.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not (pid := os.fork()):
        ours.close()
        os.setsid()
        server = os.getpid()
        request = trial_server.serve(theirs)
        raise SystemExit(trial_server.run_trial(request, server) if request else 0)
    theirs.close()

    def use_it(server: trial_server.TrialServer, environment: object) -> None:
        server.requests, server.process = ours, _Process(pid)

    trial_server.TrialServer.__init__ = use_it


class _Process:
    """The part of `subprocess.Popen` that ends a process, for a forked one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def write_output(out: Path, err: Path) -> None:
    """Write the output of this process to files; both may be the same."""
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)


def like_a_new_process() -> None:
    """Set in a forked process what differs from a new one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    torch.set_num_threads(1)
    # the default; otherwise dataloader workers would use the forkserver
    multiprocessing.set_start_method("fork", force=True)

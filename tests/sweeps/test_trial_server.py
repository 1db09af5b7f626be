"""Trials are forked from a process that has imported litpeft: their output, exit codes, folders, ends, and a killed server."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from litpeft.sweeps.launchers import Local
from litpeft.sweeps.trial_server import ForkedTrial, TrialServer

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="trials are forked on Linux only")
WAITS = """
import os, time
from litpeft.errors import UserError
print("variable", os.environ.get("VARIABLE"), "folder", os.path.basename(os.getcwd()), flush=True)
open("pid", "w").write(str(os.getpid()))
if os.environ["VARIABLE"] == "wait":
    time.sleep(60)
if os.environ["VARIABLE"] == "killed":
    os.kill(os.getpid(), 9)
"""
TRIAL = ["fit", "--model", "mine.Missing", "--data", "SST2"]  # importing mine is enough for these tests


@pytest.fixture(scope="module")
def server() -> Iterator[TrialServer]:
    server = TrialServer(os.environ | {"OMP_NUM_THREADS": "1"})
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(WAITS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wait_for(path: Path) -> int:
    """Wait until a trial has written its process id."""
    while not (path.is_file() and path.read_text()):
        time.sleep(0.02)
    return int(path.read_text())


def test_a_trial_has_its_own_folder_variables_and_log(server: TrialServer, folder: Path) -> None:
    log = folder / "log"
    log.write_text("earlier\n")
    trials = [server.start(TRIAL, log, {"VARIABLE": "first"})]
    assert [trial.wait() for trial in trials] == [2]
    lines = log.read_text().splitlines()
    assert lines[:2] == ["earlier", f"variable first folder {folder.name}"]
    assert lines[-1].startswith("litpeft: error: ")


def test_a_killed_trial_hurts_no_other(server: TrialServer, folder: Path) -> None:
    killed = server.start(TRIAL, folder / "log", {"VARIABLE": "killed"})
    assert killed.wait() == -signal.SIGKILL
    assert server.start(TRIAL, folder / "log", {"VARIABLE": "next"}).wait() == 2


def test_a_trial_is_stopped_by_a_signal(server: TrialServer, folder: Path) -> None:
    trial = server.start(TRIAL, folder / "log", {"VARIABLE": "wait"})
    wait_for(folder / "pid")
    trial.terminate()
    assert trial.wait() == -signal.SIGTERM
    trial.terminate()  # ended already


def test_trials_end_with_their_server_and_later_ones_run_without_it(folder: Path) -> None:
    launch = Local(jobs=1)
    server = launch.server = TrialServer(os.environ)
    trial = server.start(TRIAL, folder / "log", {"VARIABLE": "wait"})
    pid = wait_for(folder / "pid")
    server.process.send_signal(signal.SIGKILL)
    assert trial.wait() == 1
    with pytest.raises(ProcessLookupError):  # noqa: PT012 (the process ends a moment later)
        while True:
            os.kill(pid, 0)
            time.sleep(0.02)
    launch.environment["VARIABLE"] = "alone"
    assert launch(TRIAL, folder / "alone") == 2
    assert "variable alone" in (folder / "alone").read_text()
    launch.close()


def test_no_trial_starts_after_the_sweep_is_stopped(folder: Path) -> None:
    launch = Local(jobs=1)
    launch.stop()
    assert launch(TRIAL, folder / "log") == -signal.SIGTERM
    assert launch.server is None
    assert not (folder / "log").exists()
    launch.close()


def test_an_interrupt_while_a_trial_waits_for_a_server_that_ends_is_an_interrupt() -> None:
    """Ray then cancels the task, where a lost server would have the worker run the trial itself."""
    ours, theirs = socket.socketpair()

    def end_without_a_start() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert theirs.recv(1) == b""  # asked to stop
        theirs.close()

    server = threading.Timer(0.2, end_without_a_start)
    server.start()
    with pytest.raises(KeyboardInterrupt):
        ForkedTrial(ours).wait()
    server.join()

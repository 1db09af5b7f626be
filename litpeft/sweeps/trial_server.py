"""A process that has imported litpeft once forks a process for each trial of a sweep, which then starts in a moment.

The server imports, and touches no device: a forked process could not use a GPU that its parent has initialised. Each
trial is a process of its own in a session of its own, so that a crash, a kill or a lack of memory hurts no other.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PARENT = "LITPEFT_SWEEP_PID"  # environment variable of a trial: the process that it ends with
LONGEST = 1 << 20  # bytes of a request
LISTEN = 0.5  # seconds after which an interrupt by Ray is noticed, which ends no call of the operating system
LOST = 1  # exit code of a trial whose server was killed


class TrialServer:
    """Start the server, and have it fork trials (Linux).

    Args:
        environment: environment variables of the server and its trials.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "litpeft.sweeps.trial_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches only the sweep, which then stops its trials
            )

    def start(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], folder: str | None = None
    ) -> ForkedTrial:
        """Start `litpeft ARGUMENTS`.

        Args:
            arguments: the words after `litpeft`.
            log: file that the output of the trial is appended to.
            environment: environment variables that this trial has besides those of the server.
            folder: working directory of the trial; None: that of this process.

        Raises:
            OSError: the server has ended.
        """
        ours, theirs = socket.socketpair()
        request = {"arguments": list(arguments), "log": str(log), "folder": folder or os.getcwd()}
        with theirs:
            message = json.dumps(request | {"environment": dict(environment)}).encode()
            socket.send_fds(self.requests, [message], [theirs.fileno()])
        return ForkedTrial(ours)

    def close(self) -> None:
        """End the server; trials that still run save and end."""
        self.requests.close()
        self.process.terminate()
        self.process.wait()


class ForkedTrial:
    """A running trial: its process belongs to the server, and a socket tells of its end.

    Args:
        server: socket over which the server sends the exit code.
    """

    def __init__(self, server: socket.socket) -> None:
        self.server = server

    def wait(self) -> int:
        """Wait for the trial, and return its exit code; -N if signal N killed it.

        Raises:
            ConnectionError: the server ended before it started the trial.
            KeyboardInterrupt: this process was interrupted; the trial has saved and ended.
        """
        self.server.settimeout(LISTEN)
        with self.server:
            try:
                return self._code()
            except KeyboardInterrupt:  # Ray cancels its task
                self.terminate()
                with contextlib.suppress(ConnectionError):  # its server has ended, and the trial never started
                    self._code()
                raise

    def _code(self) -> int:
        answers = b""
        while True:
            with contextlib.suppress(TimeoutError):
                part = self.server.recv(LONGEST)
                if not part:
                    break
                answers += part
        if not answers:
            raise ConnectionError("the server of trials ended")
        return int(answers.partition(b"\n")[2] or LOST)

    def terminate(self) -> None:
        """Send SIGTERM to the trial, which then saves and ends."""
        with contextlib.suppress(OSError):  # it has ended
            self.server.shutdown(socket.SHUT_WR)


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork the trials that are asked for, and send the exit code of each.

    Returns:
        In the process of a trial, its request; in the server, None when the sweep has ended.
    """
    poll, running = select.poll(), {}  # descriptor of a process and of its socket -> (pid, both descriptors)
    poll.register(requests, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == requests.fileno():
                message, sockets, *_ = socket.recv_fds(requests, LONGEST, 1)
                if not message:
                    return None
                if not (pid := os.fork()):
                    for each in {*running, *sockets, requests.detach()}:
                        os.close(each)
                    return json.loads(message)
                os.write(sockets[0], b"started\n")
                ends = os.pidfd_open(pid), sockets[0]
                running |= dict.fromkeys(ends, (pid, *ends))
                for each in ends:
                    poll.register(each, select.POLLIN)
            elif descriptor in running:  # not so if the other descriptor of the trial was read just before
                pid, process, answer = running[descriptor]
                if descriptor == answer:  # the launcher closed its half: it wants the trial to stop
                    poll.unregister(answer)
                    os.kill(pid, signal.SIGTERM)
                    continue
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):  # the sweep was killed
                    os.write(answer, f"{code}\n".encode())
                for each in (process, answer):
                    with contextlib.suppress(KeyError):  # unregistered above
                        poll.unregister(each)
                    os.close(each)
                    del running[each]


def run_trial(request: dict[str, Any], server: int) -> int:
    """Run the trial of a request in this forked process, and return its exit code.

    Args:
        request: see `TrialServer.start`.
        server: process that the trial ends with.
    """
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(request["folder"])
    os.environ.update(request["environment"] | {PARENT: str(server)})
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray's workers block SIGINT, and processes inherit this
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    if torch.cuda._is_in_bad_fork():  # an import has asked for the GPUs, which this process could then not use
        os.execv(sys.executable, [sys.executable, "-m", "litpeft", *request["arguments"]])
    return litpeft_main()(request["arguments"])


def litpeft_main() -> Callable[[list[str]], int]:
    """Return the function behind the command `litpeft`, which other modules of `sweeps` must not import."""
    return importlib.import_module("litpeft.__main__").main


def import_everything() -> None:
    """Import what a run imports, and read the signatures of the classes that options create."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from torch.utils import tensorboard  # noqa: F401

        words = ["--model.model_name", "x", "--model.adapter", "LoRA", "--print_config"]
        litpeft_main()(["fit", "--model", "SequenceClassification", "--data", "SST2", *words])
        litpeft_main()(["fit", "--model", "CausalLM", "--data", "Conversations", *words])
    gc.collect()
    gc.freeze()  # the first collection of each forked process would write to, and so copy, all of this memory


if __name__ == "__main__":
    pid = os.getpid()
    import_everything()
    if request := serve(socket.socket(fileno=int(sys.argv[1]))):
        sys.exit(run_trial(request, pid))

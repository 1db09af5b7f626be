"""Launchers run trials on this machine, on a Ray cluster, or under SLURM, each trial in its own process.

A launcher is called with the command line and log file of a trial, waits for the trial, and returns its exit code;
`stop` ends the trials that run, and `close` follows the last one. To add a launcher, write such a class and add it to
`LAUNCHERS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from litpeft.errors import UserError
from litpeft.runs.cores import available_cores
from litpeft.sweeps.trial_server import LISTEN, PARENT, ForkedTrial, TrialServer

Launch = Callable[[Sequence[str], Path], int]


class Local:
    """Run trials on this machine, each with a share of the threads and one GPU.

    Args:
        jobs: number of trials at the same time.
        options: options of other launchers, ignored.
    """

    def __init__(self, jobs: int, **options: object) -> None:
        self.environment = {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs))} | os.environ
        self.server: TrialServer | None = None
        self.forks = hasattr(os, "pidfd_open")  # Linux
        self.running: set[ForkedTrial | subprocess.Popen[bytes]] = set()
        self.stopping = False
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.guard = threading.Lock()
        for slot in range(jobs):
            self.slots.put(slot)

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        slot = self.slots.get()
        try:
            try:
                return self._run(self._fork if self.forks else self._spawn, arguments, log, _device(slot))
            except OSError:  # the server was killed
                self.forks = False
                return self._run(self._spawn, arguments, log, _device(slot))
        finally:
            self.slots.put(slot)

    def _run(
        self,
        start: Callable[..., ForkedTrial | subprocess.Popen[bytes]],
        arguments: Sequence[str],
        log: Path,
        device: dict[str, str],
    ) -> int:
        with self.guard:
            if self.stopping:
                return -signal.SIGTERM
            trial = start(arguments, log, device)
            self.running.add(trial)
        try:
            return trial.wait()
        finally:
            with self.guard:
                self.running.remove(trial)

    def _fork(self, arguments: Sequence[str], log: Path, device: dict[str, str]) -> ForkedTrial:
        if self.server is None:
            self.server = TrialServer(self.environment)
        return self.server.start(arguments, log, device)

    def _spawn(self, arguments: Sequence[str], log: Path, device: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(log, "ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "litpeft", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment | device | {PARENT: str(os.getpid())},
                start_new_session=True,  # Ctrl-C reaches only the sweep, which then stops its trials
            )

    def stop(self) -> None:
        """Send SIGTERM to all running trials, which then save and end."""
        with self.guard:
            self.stopping = True
            for trial in self.running:
                trial.terminate()

    def close(self) -> None:
        """End the process that forks trials."""
        if self.server is not None:
            self.server.close()


class Ray:
    """Run trials as tasks of a Ray cluster; all nodes must share the folder of the sweep.

    Args:
        address: address of the cluster; None starts a cluster on this machine.
        cpus: CPUs per trial.
        gpus: GPUs per trial; fractions are allowed.
        jobs: number of trials at the same time, on a cluster started here.
        options: options of other launchers, ignored.
    """

    def __init__(self, address: str | None, cpus: int, gpus: float, jobs: int, **options: object) -> None:
        self.ray = _needs("ray", "ray")
        if address is None:
            self.ray.init(num_cpus=jobs * cpus, include_dashboard=False, log_to_driver=False)
        else:
            try:
                self.ray.init(address=address, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"--address {address}: no Ray cluster answers at this address: {error}.") from error
        self.task = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run_in_worker)
        self.running: set[object] = set()

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        reference = self.task.remote(list(arguments), str(log), os.getcwd())
        self.running.add(reference)
        return self.ray.get(reference)

    def stop(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference)  # sends an interrupt, after which the trial saves

    def close(self) -> None: ...


class Slurm:
    """Run trials as SLURM jobs with submitit; all nodes must share the folder of the sweep.

    Args:
        cpus: CPUs per trial.
        gpus: GPUs per trial.
        folder: folder for the files of submitit.
        slurm: options of sbatch, such as partition=gpu and time=120 (minutes).
        options: options of other launchers, ignored.
    """

    def __init__(self, cpus: int, gpus: float, folder: Path, slurm: dict[str, str], **options: object) -> None:
        submitit = _needs("submitit", "slurm")
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=slurm.pop("cluster", "slurm"))
        except RuntimeError as error:
            raise UserError(f"--launcher slurm: {error}.") from error
        sbatch = {f"slurm_{key}": int(value) if value.isdecimal() else value for key, value in slurm.items()}
        self.executor.update_parameters(cpus_per_task=cpus, gpus_per_node=int(gpus), **sbatch)
        self.running: list[object] = []

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        job = self.executor.submit(_run, list(arguments), str(log), os.getcwd())
        self.running.append(job)
        return job.result()

    def stop(self) -> None:
        for job in self.running:
            job.cancel()

    def close(self) -> None: ...


LAUNCHERS = {"local": Local, "ray": Ray, "slurm": Slurm}


def _run(arguments: list[str], log: str, folder: str) -> int:
    """Run a trial on the machine that Ray or SLURM chose."""
    command = [sys.executable, "-m", "litpeft", *arguments]
    environment = os.environ | {PARENT: str(os.getpid())}
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(LISTEN)
        except BaseException:  # cancelled: let the trial save and end
            process.terminate()
            process.wait()
            raise


@cache
def _server() -> TrialServer:
    """Return the process that forks the trials of this Ray worker, and ends with it."""
    return TrialServer(os.environ)


def _run_in_worker(arguments: list[str], log: str, folder: str) -> int:
    """Run a trial in a Ray worker, which runs one trial after another: only the first waits for imports."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the workers of a sweep in the background
    devices = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    if hasattr(os, "pidfd_open"):  # Linux
        try:
            return _server().start(arguments, Path(log), devices, folder).wait()
        except OSError:  # the server was killed
            _server.cache_clear()
    return _run(arguments, log, folder)


def _device(slot: int) -> dict[str, str]:
    """Return the environment variable that gives a slot one of the GPUs visible to the sweep."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[slot % count]}


def _needs(package: str, extra: str) -> object:
    try:
        return __import__(package)
    except ImportError as error:
        raise UserError(f"--launcher {extra} needs {package}: pip install 'litpeft[{extra}]'.") from error


def end_with_parent() -> None:
    """Make the kernel send SIGTERM to this trial when its sweep ends, even if the sweep is killed (Linux only)."""
    parent = os.environ.pop(PARENT, None)
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of prctl(2)
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGTERM)

"""Where trials run: on this machine, on a Ray cluster, or under SLURM. One process a trial, always.

A launcher is called with a trial's command and log, waits until the trial has ended, and returns its exit code. To add
one: a function of this kind, and its name in `LAUNCHERS`.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from litpeft.errors import UserError

PARENT = "LITPEFT_SWEEP_PID"  # in a trial's environment
Launch = Callable[[Sequence[str], Path], int]


class Local:
    """Processes on this machine, so many at once, each with its share of threads and a GPU of its own.

    Args:
        jobs: how many at once.
        options: of the sweep.
    """

    def __init__(self, jobs: int, **options: object) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs))} | os.environ | {PARENT: str(os.getpid())}
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.stopping = False
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.guard = threading.Lock()
        for slot in range(jobs):
            self.slots.put(slot)

    def __call__(self, words: Sequence[str], log: Path) -> int:
        slot = self.slots.get()
        try:
            with open(log, "ab") as file:
                with self.guard:
                    if self.stopping:
                        return -signal.SIGTERM
                    process = subprocess.Popen(
                        [sys.executable, "-m", "litpeft", *words],
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=self.environment | _device(slot),
                        start_new_session=True,  # Ctrl-C reaches the sweep alone, which then tells its trials
                    )
                    self.processes.add(process)
                return process.wait()
        finally:
            self.slots.put(slot)

    def stop(self) -> None:
        """Tell all that run to save and end."""
        with self.guard:
            self.stopping = True
            for process in self.processes:
                if process.poll() is None:
                    process.terminate()


class Ray:
    """Tasks of a Ray cluster, each with the CPUs and GPUs that it asks for; the sweep's folder is to be shared.

    Args:
        address: of the cluster; a cluster of this machine alone is begun where there is none.
        cpus: of a trial.
        gpus: of a trial; parts of one are possible.
        jobs: how many at once.
        options: of the sweep.
    """

    def __init__(self, address: str | None, cpus: int, gpus: float, jobs: int, **options: object) -> None:
        self.ray = _needs("ray", "ray")
        if address is None:
            self.ray.init(num_cpus=jobs * cpus, include_dashboard=False, log_to_driver=False)
        else:
            try:
                self.ray.init(address=address, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"--address {address}: no Ray cluster answers there: {error}.") from error
        self.task = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run)
        self.running: set[object] = set()

    def __call__(self, words: Sequence[str], log: Path) -> int:
        reference = self.task.remote(list(words), str(log), os.getcwd())
        self.running.add(reference)
        return self.ray.get(reference)

    def stop(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference)  # an interrupt, by which a trial saves


class Slurm:
    """Jobs under SLURM by submitit; the sweep's folder is to be shared.

    Args:
        cpus: of a trial.
        gpus: of a trial.
        folder: of submitit's own files.
        slurm: options of sbatch, such as partition=gpu and time=120 (minutes).
        options: of the sweep.
    """

    def __init__(self, cpus: int, gpus: float, folder: Path, slurm: dict[str, str], **options: object) -> None:
        submitit = _needs("submitit", "slurm")
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=slurm.pop("cluster", "slurm"))
        except RuntimeError as error:
            raise UserError(f"--launcher slurm: {error}.") from error
        own = {f"slurm_{key}": int(value) if value.isdecimal() else value for key, value in slurm.items()}
        self.executor.update_parameters(cpus_per_task=cpus, gpus_per_node=int(gpus), **own)
        self.running: list[object] = []

    def __call__(self, words: Sequence[str], log: Path) -> int:
        job = self.executor.submit(_run, list(words), str(log), os.getcwd())
        self.running.append(job)
        return job.result()

    def stop(self) -> None:
        for job in self.running:
            job.cancel()


LAUNCHERS = {"local": Local, "ray": Ray, "slurm": Slurm}


def _run(words: list[str], log: str, folder: str) -> int:
    """On the machine that the trial was sent to."""
    command = [sys.executable, "-m", "litpeft", *words]
    environment = os.environ | {PARENT: str(os.getpid())}
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        try:
            return process.wait()
        except BaseException:  # cancelled: the trial saves and ends
            process.terminate()
            process.wait()
            raise


def _device(slot: int) -> dict[str, str]:
    """A GPU for this slot, of those that the sweep itself may see."""
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
    """Be told to save and end when the sweep that started this process is gone, killed even; on Linux alone."""
    parent = os.environ.pop(PARENT, None)
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of prctl(2)
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGTERM)

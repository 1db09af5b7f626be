"""Where trials run: threads and GPUs of a trial on this machine, and what Ray and SLURM are told."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import pytest
import torch

from litpeft.errors import UserError
from litpeft.sweeps import launchers
from litpeft.sweeps.launchers import PARENT, Local, Ray, Slurm, end_with_parent


@pytest.mark.parametrize(("jobs", "given", "threads"), [(1, None, 8), (3, None, 2), (16, None, 1), (3, "5", 5)])
def test_trials_share_the_cores(jobs: int, given: str | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set() if process else set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert Local(jobs).environment["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize(("count", "threads"), [(6, 3), (None, 1)])
def test_on_other_systems_the_cores_are_those_of_the_machine(
    count: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert Local(2 if count else 1).environment["OMP_NUM_THREADS"] == str(threads)


class Trial:
    """A trial that ends at once."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.terminated = code, 0

    def wait(self) -> int:
        return self.code

    def terminate(self) -> None:
        self.terminated += 1


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (0, None, [None, None, None]),
        (2, None, ["0", "1", "0"]),
        (2, "5,GPU-a", ["5", "GPU-a", "5"]),
        (2, "", ["0", "1", "0"]),
    ],
)
def test_each_slot_has_one_of_the_visible_gpus(
    gpus: int, visible: str | None, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    local, devices = Local(3), []
    local._fork = local._spawn = lambda arguments, log, device: (devices.append(device), Trial())[1]
    for _ in range(4):
        assert local(["fit"], Path("log")) == 0
    found = [device.get("CUDA_VISIBLE_DEVICES") for device in devices]
    assert found == [*expected, expected[0]]  # the slots are given back


def test_a_trial_runs_alone_where_the_process_that_forks_trials_was_killed() -> None:
    local, started = Local(1), []

    def killed(*_: Any) -> Trial:
        started.append("fork")
        raise OSError("the server was killed")

    local.forks = True
    local._fork, local._spawn = killed, lambda *_: (started.append("spawn"), Trial(3))[1]
    assert [local(["fit"], Path("log")) for _ in range(2)] == [3, 3]
    assert started == ["fork", "spawn", "spawn"]


def test_a_sweep_that_stops_ends_its_trials_and_starts_none() -> None:
    local, trial = Local(1), Trial()
    local._fork = local._spawn = lambda *_: trial
    trial.wait = lambda: (local.stop(), 0)[1]  # while it runs
    assert local(["fit"], Path("log")) == 0
    assert trial.terminated == 1
    assert local(["fit"], Path("log")) == -signal.SIGTERM
    assert trial.terminated == 1
    local.close()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    module = MagicMock()
    monkeypatch.setitem(sys.modules, "ray", module)
    return module


def test_ray_is_started_here_or_found_at_its_address(ray: MagicMock) -> None:
    Ray(None, cpus=2, gpus=0.5, jobs=3)
    assert ray.init.mock_calls == [call(num_cpus=6, include_dashboard=False, log_to_driver=False)]
    assert ray.remote.mock_calls[0] == call(num_cpus=2, num_gpus=0.5, max_retries=0)
    ray.reset_mock()
    there = Ray("auto", cpus=1, gpus=0, jobs=3)
    assert ray.init.mock_calls == [call(address="auto", log_to_driver=False)]
    ray.get.return_value = 4
    assert there(("fit", "--x"), Path("log")) == 4
    assert there.task.remote.call_args_list == [call(["fit", "--x"], "log", os.getcwd())]
    there.stop()
    assert ray.cancel.call_args_list == [call(there.task.remote.return_value)]
    there.close()


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, RuntimeError])
def test_an_address_without_ray_is_said(kind: type[Exception], ray: MagicMock) -> None:
    ray.init.side_effect = kind("refused")
    with pytest.raises(UserError, match=r"^--address here: no Ray cluster answers at this address: refused\.$"):
        Ray("here", cpus=1, gpus=0, jobs=1)


def test_slurm_gets_its_options_with_numbers_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = MagicMock()
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    slurm = Slurm(2, 1.0, Path("folder"), {"partition": "gpu", "time": "120"})
    assert submitit.AutoExecutor.mock_calls[0] == call(Path("folder"), cluster="slurm")
    executor = submitit.AutoExecutor.return_value
    assert executor.update_parameters.mock_calls == [
        call(cpus_per_task=2, gpus_per_node=1, slurm_partition="gpu", slurm_time=120)
    ]
    executor.submit.return_value.result.return_value = 5
    assert slurm(("fit",), Path("log")) == 5
    assert executor.submit.mock_calls[0] == call(launchers._run, ["fit"], "log", os.getcwd())
    slurm.stop()
    assert executor.submit.return_value.cancel.mock_calls == [call()]
    slurm.close()
    Slurm(1, 0, Path("folder"), {"cluster": "local"})
    assert submitit.AutoExecutor.mock_calls[-2] == call(Path("folder"), cluster="local")
    submitit.AutoExecutor.side_effect = RuntimeError("no srun")
    with pytest.raises(UserError, match=r"^--launcher slurm: no srun\.$"):
        Slurm(1, 0, Path("folder"), {})


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (lambda: Ray(None, 1, 0, 1), "--launcher ray needs ray: pip install 'litpeft[ray]'."),
        (lambda: Slurm(1, 0, Path(), {}), "--launcher slurm needs submitit: pip install 'litpeft[slurm]'."),
    ],
)
def test_a_missing_package_is_named(start: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        start()
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("platform", "parent", "asked", "ended"),
    [
        ("linux", 42, True, False), ("linux", 41, True, True), ("darwin", 42, False, False), ("win32", 41, False, False),
        ("linux", None, False, False),
    ],
)  # fmt: skip
def test_a_trial_ends_with_its_sweep(
    platform: str, parent: int | None, asked: bool, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PR_SET_PDEATHSIG; a sweep that has ended already is no longer the parent."""
    told: list[Any] = []
    monkeypatch.setattr(launchers.sys, "platform", platform)
    kernel = SimpleNamespace(prctl=lambda *given: told.append(given))
    monkeypatch.setattr(launchers, "ctypes", SimpleNamespace(CDLL=lambda name: kernel))
    monkeypatch.setattr(os, "getppid", lambda: 42)
    killed: list[Any] = []
    monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
    monkeypatch.delenv(PARENT, raising=False)
    if parent is not None:
        monkeypatch.setenv(PARENT, str(parent))
    end_with_parent()
    assert told == ([(1, signal.SIGTERM)] if asked else [])
    assert killed == ([(os.getpid(), signal.SIGTERM)] if ended else [])
    assert PARENT not in os.environ  # trials of this trial have another parent

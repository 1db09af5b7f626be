"""Which joules count as training's: those of all its parts, also before a resume, and none of benchmarks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from litpeft.callbacks import energy
from litpeft.callbacks.energy import EnergyRecorder

TASK = SimpleNamespace(device=torch.device("cpu"))


class Machine:
    """A machine whose counters a test moves."""

    def __init__(self) -> None:
        self.joules: dict[str, float | None] = {"cpu_packages": 0.0, "gpu": 0.0}

    def use(self, cpu: float, gpu: float) -> None:
        for source, used in (("cpu_packages", cpu), ("gpu", gpu)):
            if self.joules[source] is not None:
                self.joules[source] += used


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    class Meter:
        def __init__(self, device: torch.device) -> None:
            self.start = dict(made.joules)

        def read(self) -> dict[str, float | None]:
            return {
                source: None if now is None else now - (self.start[source] or 0.0)
                for source, now in made.joules.items()
            }

    monkeypatch.setattr(energy, "EnergyMeter", Meter)
    return made


def train(recorder: EnergyRecorder, machine: Machine, cpu: float, gpu: float) -> None:
    recorder.on_train_start(None, TASK)
    machine.use(cpu, gpu)


def test_benchmarks_do_not_count_and_what_follows_does(machine: Machine) -> None:
    recorder = EnergyRecorder()
    recorder.on_benchmark_start()  # before training: nothing is measured
    machine.use(1000, 1000)
    recorder.on_benchmark_end(None, TASK)
    train(recorder, machine, 10, 20)
    for _ in range(2):
        recorder.on_benchmark_start()
        machine.use(100, 200)
        recorder.on_benchmark_end(None, TASK)
        machine.use(1, 2)
    recorder.on_train_end()
    machine.use(5000, 5000)  # after the run
    assert recorder.measured() == {
        "energy_joules": 36.0, "energy_joules_by_source": {"cpu_packages": 12.0, "gpu": 24.0}
    }  # fmt: skip


def test_the_energy_before_a_resume_counts(machine: Machine) -> None:
    first = EnergyRecorder()
    train(first, machine, 3, 4)
    state = first.state_dict()
    resumed = EnergyRecorder()
    resumed.load_state_dict(state)
    assert resumed.measured()["energy_joules"] == 7.0
    train(resumed, machine, 10, 20)
    resumed.on_train_end()
    assert resumed.measured()["energy_joules_by_source"] == {"cpu_packages": 13.0, "gpu": 24.0}


def test_the_sum_is_unknown_if_one_source_is(machine: Machine) -> None:
    recorder = EnergyRecorder()
    train(recorder, machine, 3, 4)
    machine.joules["gpu"] = None
    recorder.on_train_end()
    assert recorder.measured() == {
        "energy_joules": None, "energy_joules_by_source": {"cpu_packages": 3.0, "gpu": None}
    }  # fmt: skip
    assert EnergyRecorder().measured() == {"energy_joules": None, "energy_joules_by_source": None}

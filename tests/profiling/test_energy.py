"""Energy measured from a made-up powercap folder and a fake NVML."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from litpeft.callbacks import EnergyRecorder
from litpeft.profiling import energy
from litpeft.profiling.energy import READ_EVERY, EnergyMeter

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)
RANGE = 262_143_328_850  # microjoules, the range of a real counter


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a powercap folder with two packages; core, psys and mmio zones must not be counted in addition."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1"}
    zones |= {"intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (tmp_path / zone / "energy_uj").write_text("1000000\n")
    (tmp_path / "intel-rapl").mkdir()  # the folder of the driver
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def write_joules(folder: Path, zone: str, joules: float) -> None:
    (folder / zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")


def fake_nvml(monkeypatch: pytest.MonkeyPatch, millijoules: list[int]) -> list[str]:
    """Install an NVML that returns these energies in turn; return a list that receives the requested boards."""
    boards: list[str] = []
    answers = iter(millijoules)
    module = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: boards.append(name) or "board",
        nvmlDeviceGetTotalEnergyConsumption=lambda board: next(answers),
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"ab-{device.index}"))
    return boards


def test_packages_are_summed_and_counters_that_wrap_around_are_handled(powercap: Path) -> None:
    meter = EnergyMeter(CPU)
    for zone in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        write_joules(powercap, zone, 77_000)
    write_joules(powercap, "intel-rapl:0", 1 + 50)
    write_joules(powercap, "intel-rapl:1", 1 + 7)
    assert meter.read() == {"cpu_packages": pytest.approx(57)}
    write_joules(powercap, "intel-rapl:0", 11)  # 40 less than before: the counter wrapped around
    assert meter.read() == {"cpu_packages": pytest.approx(57 + RANGE / 1e6 - 40)}


def test_a_counter_is_in_millionths_of_a_joule(powercap: Path) -> None:
    meter = EnergyMeter(CPU)
    write_joules(powercap, "intel-rapl:0", 200_001)
    assert meter.read()["cpu_packages"] == pytest.approx(200_000, abs=1e-3)


def test_energy_stays_null_after_a_counter_was_unreadable(powercap: Path) -> None:
    meter = EnergyMeter(CPU)
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.read() == {"cpu_packages": None}
    write_joules(powercap, "intel-rapl:1", 50)
    assert meter.read() == {"cpu_packages": None}


def test_energy_is_null_without_counters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # makes the import fail
    assert EnergyMeter(CPU).read() == {"cpu_packages": None}
    assert EnergyMeter(CUDA).read() == {"cpu_packages": None, "gpu": None}


def test_the_gpu_is_found_by_its_uuid(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards = fake_nvml(monkeypatch, [5_000, 7_500])
    meter = EnergyMeter(CUDA)
    assert meter.read() == {"cpu_packages": 0.0, "gpu": pytest.approx(2.5)}
    assert boards == ["GPU-ab-1"]
    assert meter.read()["gpu"] is None  # the fake driver has no more values


def test_the_recorder_reads_often_enough_to_see_each_wrap_around(
    powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, recorder, module = [0.0], EnergyRecorder(), SimpleNamespace(device=CPU)
    recorder.clock = lambda: now[0]
    recorder.on_train_start(None, module)
    used = 0.0
    for minute in range(1, 5):  # in total more than the range of the counter
        used += 100_000
        write_joules(powercap, "intel-rapl:0", (1 + used) % (RANGE / 1e6))
        now[0] = minute * READ_EVERY
        hook = recorder.on_train_batch_end if minute % 2 else recorder.on_validation_batch_end
        hook(None, module)
    recorder.on_train_end(None, module)
    write_joules(powercap, "intel-rapl:0", 5)  # after the end of training
    recorder.on_validation_batch_end(None, module)
    measured = recorder.measured()
    assert measured["energy_joules"] == measured["energy_joules_by_source"]["cpu_packages"] == pytest.approx(used)


def test_a_resumed_run_adds_the_energy_used_before_its_checkpoint(powercap: Path) -> None:
    first, second, module = EnergyRecorder(), EnergyRecorder(), SimpleNamespace(device=CPU)
    first.on_train_start(None, module)
    write_joules(powercap, "intel-rapl:0", 1 + 30)
    state = first.state_dict()
    write_joules(powercap, "intel-rapl:0", 1 + 99)  # used after the checkpoint, so lost with the process
    second.load_state_dict(state)
    second.on_train_start(None, module)
    write_joules(powercap, "intel-rapl:0", 1 + 100)
    second.on_train_end(None, module)
    assert second.measured()["energy_joules"] == pytest.approx(31)


def test_the_sum_is_null_unless_every_source_is_known(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, [0, 9_000])
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    recorder, module = EnergyRecorder(), SimpleNamespace(device=CUDA)
    assert recorder.measured() == {"energy_joules": None, "energy_joules_by_source": None}
    recorder.on_train_start(None, module)
    assert recorder.measured()["energy_joules_by_source"] == {"cpu_packages": None, "gpu": 9.0}
    assert recorder.measured()["energy_joules"] is None

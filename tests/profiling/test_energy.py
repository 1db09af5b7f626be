"""Joules from a made-up powercap folder and a played NVML."""

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
RANGE = 262_143_328_850  # microjoules, of a real one


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages; their cores, the platform around them, and another way to one of them must not count."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1"}
    zones |= {"intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (tmp_path / zone / "energy_uj").write_text("1000000\n")
    (tmp_path / "intel-rapl").mkdir()  # of the driver
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def put(folder: Path, zone: str, joules: float) -> None:
    (folder / zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")


def played_nvml(monkeypatch: pytest.MonkeyPatch, millijoules: list[int]) -> list[str]:
    """The driver's answers one after the other; returns which boards were asked for."""
    asked: list[str] = []
    answers = iter(millijoules)
    module = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: asked.append(name) or "board",
        nvmlDeviceGetTotalEnergyConsumption=lambda board: next(answers),
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"ab-{device.index}"))
    return asked


def test_packages_add_up_and_start_again_at_the_end_of_their_range(powercap: Path) -> None:
    meter = EnergyMeter(CPU)
    for zone in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        put(powercap, zone, 77_000)
    put(powercap, "intel-rapl:0", 1 + 50)
    put(powercap, "intel-rapl:1", 1 + 7)
    assert meter.read() == {"cpu_packages": pytest.approx(57)}
    put(powercap, "intel-rapl:0", 11)  # 40 less: it went to the end of its range and came to 11
    assert meter.read() == {"cpu_packages": pytest.approx(57 + RANGE / 1e6 - 40)}


def test_what_cannot_be_read_is_null_for_good(powercap: Path) -> None:
    meter = EnergyMeter(CPU)
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.read() == {"cpu_packages": None}
    put(powercap, "intel-rapl:1", 50)
    assert meter.read() == {"cpu_packages": None}


def test_without_counters_it_is_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not to be imported
    assert EnergyMeter(CPU).read() == {"cpu_packages": None}
    assert EnergyMeter(CUDA).read() == {"cpu_packages": None, "gpu": None}


def test_the_board_is_found_by_its_identity(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = played_nvml(monkeypatch, [5_000, 7_500])
    meter = EnergyMeter(CUDA)
    assert meter.read() == {"cpu_packages": 0.0, "gpu": pytest.approx(2.5)}
    assert asked == ["GPU-ab-1"]
    assert meter.read()["gpu"] is None  # the driver answers no more


def test_the_recorder_reads_before_a_range_is_through(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, recorder, module = [0.0], EnergyRecorder(), SimpleNamespace(device=CPU)
    recorder.clock = lambda: now[0]
    recorder.on_train_start(None, module)
    used = 0.0
    for minute in range(1, 5):  # together more than a range
        used += 100_000
        put(powercap, "intel-rapl:0", (1 + used) % (RANGE / 1e6))
        now[0] = minute * READ_EVERY
        hook = recorder.on_train_batch_end if minute % 2 else recorder.on_validation_batch_end
        hook(None, module)
    recorder.on_train_end(None, module)
    put(powercap, "intel-rapl:0", 5)  # after the training
    recorder.on_validation_batch_end(None, module)
    told = recorder.measured()
    assert told["energy_joules"] == told["energy_joules_by_source"]["cpu_packages"] == pytest.approx(used)


def test_a_resumed_run_adds_what_was_used_before_its_checkpoint(powercap: Path) -> None:
    first, second, module = EnergyRecorder(), EnergyRecorder(), SimpleNamespace(device=CPU)
    first.on_train_start(None, module)
    put(powercap, "intel-rapl:0", 1 + 30)
    state = first.state_dict()
    put(powercap, "intel-rapl:0", 1 + 99)  # lost with the process
    second.load_state_dict(state)
    second.on_train_start(None, module)
    put(powercap, "intel-rapl:0", 1 + 100)
    second.on_train_end(None, module)
    assert second.measured()["energy_joules"] == pytest.approx(31)


def test_the_sum_is_null_unless_all_of_it_is_known(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played_nvml(monkeypatch, [0, 9_000])
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    recorder, module = EnergyRecorder(), SimpleNamespace(device=CUDA)
    assert recorder.measured() == {"energy_joules": None, "energy_joules_by_source": None}
    recorder.on_train_start(None, module)
    assert recorder.measured()["energy_joules_by_source"] == {"cpu_packages": None, "gpu": 9.0}
    assert recorder.measured()["energy_joules"] is None

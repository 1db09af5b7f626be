"""Resident memory of this process against the kernel's own numbers, with and without /proc."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from litpeft.profiling.memory import host


def kernel(name: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc on this system")
def test_resident_memory_is_what_the_kernel_says() -> None:
    assert host.rss_bytes() == pytest.approx(kernel("VmRSS"), rel=0.02)
    assert host.peak_rss_bytes() == pytest.approx(kernel("VmHWM"), rel=0.02)


def test_without_proc_the_peak_is_the_one_of_getrusage_and_the_present_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "PROC", tmp_path)
    assert host.rss_bytes() is None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * host.RSS_UNIT
    assert host.peak_rss_bytes() == pytest.approx(peak, rel=0.02)
    assert 2**26 < peak < 2**37  # bytes: torch alone needs more than 64 MiB
    monkeypatch.setattr(host, "PROC", tmp_path / "none")
    assert host.reset_peak_rss() is False


@pytest.mark.parametrize("text", ["VmRSS:\t  10 kB\nVmHWM:\t  1234 kB\n", "VmHWM: 1234 kB"])
def test_the_numbers_of_proc_are_pages_and_kibibytes(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "PROC", tmp_path)
    (tmp_path / "statm").write_text("900 70 8 1 0 60 0\n")  # proc(5): size, resident, shared, ..., in pages
    (tmp_path / "status").write_text(text)
    assert host.rss_bytes() == 70 * resource.getpagesize()
    assert host.peak_rss_bytes() == 1234 * 1024
    assert host.reset_peak_rss() is True
    assert (tmp_path / "clear_refs").read_text() == "5"  # proc(5): resets the peak


def test_a_kernel_without_the_peak_is_asked_by_getrusage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "PROC", tmp_path)
    (tmp_path / "status").write_text("VmRSS:\t  10 kB\n")
    assert host.peak_rss_bytes() == pytest.approx(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * host.RSS_UNIT, rel=0.02
    )
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert host.peak_rss_bytes() is None


def test_getrusage_counts_kibibytes_except_on_macos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "PROC", tmp_path)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3_000_000))
    assert host.peak_rss_bytes() == 3_000_000 * (1 if sys.platform == "darwin" else 1024)

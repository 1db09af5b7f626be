"""What a record says about the machine, the packages and the code of a run."""

from __future__ import annotations

import io
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from litpeft.runs import environment
from litpeft.runs.logger_runs import save_versions, saved_versions


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_bitsandbytes(name: str) -> str:
        if name == "bitsandbytes":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(environment, "version", without_bitsandbytes)
    found = environment.packages()
    assert found["bitsandbytes"] is None
    assert found["torch"] == version("torch")
    assert found["python"].startswith("3.")


def test_the_machine_of_a_run_on_the_cpu() -> None:
    found = environment.machine(torch.device("cpu"))
    assert (found["device"], found["device_bytes"]) == ("cpu", None)
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]


def test_the_commit_of_the_working_directory_and_its_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert environment.git_state() is None

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert environment.git_state() is None  # without a commit
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    assert environment.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "b").write_text("not tracked")
    assert environment.git_state()["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment.git_state()["dirty"] is True


def test_the_machine_of_a_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * 2**30))
    found = environment.machine(torch.device("cuda", 1))
    assert (found["device"], found["device_bytes"], found["cuda"]) == ("GPU 1", 8 * 2**30, torch.version.cuda)
    assert (found["system"], found["cpu_count"]) == (platform.platform(), os.cpu_count())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor: x\nmodel name\t: Fast: CPU 3 \nmodel name\t: other\n", "Fast: CPU 3"),
        ("vendor: x\n", "the processor"), (None, "the processor"),
    ],
)  # fmt: skip
def test_the_processor_is_named(text: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: str, encoding: str) -> io.StringIO:
        if text is None:
            raise FileNotFoundError(path)
        return io.StringIO(text)

    monkeypatch.setattr(environment, "open", opened, raising=False)
    monkeypatch.setattr(platform, "processor", lambda: "the processor")
    assert environment.machine(torch.device("cpu"))["processor"] == expected
    if text is None:
        monkeypatch.setattr(platform, "processor", lambda: "")
        assert environment.machine(torch.device("cpu"))["processor"] == platform.machine()


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_git_the_state_is_unknown(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment.git_state() is None


def test_loggers_have_the_names_that_were_saved(tmp_path: Path) -> None:
    assert saved_versions(tmp_path) == {}
    save_versions(tmp_path, {"WandbLogger": "abc", "CometLogger": "def"})
    assert saved_versions(tmp_path) == {"WandbLogger": "abc", "CometLogger": "def"}
    assert (tmp_path / "loggers.json").read_text().count("\n") == 4
    for text in ("{", "[1]", "[" * 100_000, "3"):
        (tmp_path / "loggers.json").write_text(text)
        assert saved_versions(tmp_path) == {}
    (tmp_path / "loggers.json").write_text('{"A": 3}')
    assert saved_versions(tmp_path) == {"A": "3"}

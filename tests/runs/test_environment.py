"""What a record says about the machine, the packages and the code of a run."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from litpeft.runs import environment


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

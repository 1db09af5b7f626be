"""Models by folder, package and hub id, and what is said where one cannot be had."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

from litpeft import hub
from litpeft.errors import UserError
from litpeft.hub import asking_hub, local_or_hub


def test_a_folder_a_package_and_a_hub_id(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_or_hub(tiny_model, "model.model_name") == tiny_model
    assert local_or_hub("org/some-model", "model.model_name") == "org/some-model"
    package = tmp_path / "tiny_package"
    shutil.copytree(tiny_model, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert local_or_hub("package:tiny_package", "model.model_name") == str(package / "model")
    shutil.copytree(tiny_model, package / "another")
    with pytest.raises(UserError, match="the package holds 2 folders with config.json"):
        local_or_hub("package:tiny_package", "model.model_name")


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        local_or_hub(name, "model.model_name")


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.model_name .*: the folder has no config.json"):
        local_or_hub(str(tmp_path), "model.model_name")


def test_what_the_libraries_raise_becomes_a_sentence() -> None:
    class RepositoryNotFoundError(OSError):
        pass

    cases = {
        RepositoryNotFoundError("404"): "the hub has no such repository, or it needs a login; give a folder",
        ConnectionError("refused"): "the hub cannot be reached and it is not in the local cache; give a folder",
        OSError("Broken header. Long explanation"): "cannot be loaded: Broken header",
    }
    for error, said in cases.items():
        with (
            pytest.raises(UserError, match=f"model.model_name some/name:? {said}"),
            asking_hub("some/name", "model.model_name", "a folder"),
        ):
            raise error
    with pytest.raises(ZeroDivisionError), asking_hub("some/name", "model.model_name", "a folder"):
        raise ZeroDivisionError


def test_an_unreachable_hub_costs_one_short_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked = []

    def refuse(address, timeout):
        asked.append((address, timeout))
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    hub._go_offline_if_unreachable.cache_clear()
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be reached"), asking_hub("some/name", "data.dataset", "files"):
            datasets.load_dataset("some/name")
    assert len(asked) == 1
    assert asked[0][1] <= 3
    assert constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE

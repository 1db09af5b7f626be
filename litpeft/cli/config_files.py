"""The configurations that come with the package, by their bare names: `--config sst2` is `configs/data/sst2.yaml`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.runs.safe_read import read_options

FOLDERS = ("configs", "experiments")


def shipped_files() -> dict[str, Path]:
    """Name -> file, of every YAML in `configs/` and `experiments/`; in a wheel they lie inside the package."""
    package = Path(__file__).parents[1]
    root = package if (package / FOLDERS[0]).is_dir() else package.parent
    return {path.stem: path for folder in FOLDERS for path in sorted((root / folder).rglob("*.yaml"))}


def find_config(name: str) -> str:
    """The file that `--config NAME` means: one that exists, else a shipped one.

    Raises:
        UserError: there is neither.
    """
    if os.path.isfile(name):  # which a name that no file can have is not, where pathlib raises
        return name
    files = shipped_files()
    if name in files:
        return str(files[name])
    close = difflib.get_close_matches(name, files, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(
        f"--config {name}: no such file, and no shipped configuration of that name{guess}; "
        "`litpeft configs` lists them."
    )


def read_yaml(name: str) -> dict[str, Any]:
    """What the configuration `name`, a file or a shipped one, says.

    Raises:
        UserError: there is none, or it is not YAML of options; with the line, which jsonargparse does not tell.
    """
    return read_options(Path(find_config(name)), "--config")

"""The configurations that come with the package, by their bare names: `--config sst2` is `configs/data/sst2.yaml`."""

from __future__ import annotations

import difflib
from pathlib import Path

from litpeft.errors import UserError

FOLDERS = ("configs", "experiments")


def shipped_files() -> dict[str, Path]:
    """Name -> file, of every YAML in `configs/` and `experiments/`; in a wheel they lie inside the package."""
    package = Path(__file__).parent
    root = package if (package / FOLDERS[0]).is_dir() else package.parent
    return {path.stem: path for folder in FOLDERS for path in sorted((root / folder).rglob("*.yaml"))}


def find_config(name: str) -> str:
    """The file that `--config NAME` means: one that exists, else a shipped one.

    Raises:
        UserError: there is neither.
    """
    if Path(name).is_file():
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

"""Configuration files by name: `--config sst2` means the packaged `configs/data/sst2.yaml`, unless `sst2` is a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from litpeft.errors import UserError, did_you_mean
from litpeft.runs.safe_read import read_options
from litpeft.runs.strategy_names import stored_name

FOLDERS = ("configs", "experiments")


def packaged_configs() -> dict[str, Path]:
    """Return name -> file for every YAML file in `configs/` and `experiments/` (inside the package in a wheel)."""
    package = Path(__file__).parents[1]
    root = package if (package / FOLDERS[0]).is_dir() else package.parent
    return {path.stem: path for folder in FOLDERS for path in sorted((root / folder).rglob("*.yaml"))}


def find_config(name: str) -> str:
    """Return the path of a configuration: an existing file, else the packaged configuration of that name.

    `full` is another spelling of the configuration `none` (full fine-tuning).

    Raises:
        UserError: neither exists.
    """
    if os.path.isfile(name):  # os.path returns False for impossible file names, where pathlib raises
        return name
    files = packaged_configs()
    name = stored_name(name)
    if name in files:
        return str(files[name])
    raise UserError(
        f"--config {name}: no such file and no packaged configuration of that name{did_you_mean(name, files)}; "
        "`litpeft configs` lists them."
    )


def read_yaml(name: str) -> dict[str, Any]:
    """Return the options in a configuration, given as a file or the name of a packaged configuration.

    Raises:
        UserError: the configuration does not exist or is not a YAML mapping; with the line number of a YAML error.
    """
    return read_options(Path(find_config(name)), "--config")

"""How loggers call a run: `loggers.json`, so that a resumed run is continued there too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from litpeft.runs.atomic_write import write_atomically

FILE_NAME = "loggers.json"


def save_versions(run_dir: Path, versions: Mapping[str, str]) -> None:
    """Write the run's id for each class of logger."""
    write_atomically(run_dir / FILE_NAME, json.dumps(dict(versions), indent=2) + "\n")


def saved_versions(run_dir: Path) -> dict[str, str]:
    """Return the run's id for each class of logger; empty if no file can be read."""
    try:
        found = json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}

"""One folder a run: its default name says what varies, and one that is in use is not written over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from litpeft.errors import UserError
from litpeft.records import FILE_NAME, read_record

CONFIG = "config.yaml"
OURS = (FILE_NAME, CONFIG, "checkpoints", "predictions.jsonl", "events.out.tfevents.*", "hparams.yaml")
NOT_VARIED = ("config", "run_dir", "experiment", "resume", "overwrite", "seed_everything", "trainer.accelerator")
LONGEST = 120  # of a folder's name; some file systems allow 255 bytes


def run_names(arguments: Sequence[str], adapter: str, data: str) -> tuple[str, str]:
    """(experiment, run name) from what was typed after the verb.

    The experiment is the name of the first configuration, or of the data set where there is none. The run's name is the
    adapter's and what was set beside it: the other configurations, and every option by its last part.
    """
    configs, options = [], []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            continue
        key, equals, value = word.lstrip("-").partition("=")
        if key in ("resume", "overwrite"):
            continue
        value = value if equals else next(words, "")
        if key in ("config", "c"):
            configs.append(Path(value).stem)
        elif key not in NOT_VARIED and key not in ("model", "data", "model.adapter") and not key.endswith("_file"):
            options.append(f"{key.rpartition('.')[2]}={_short(value)}")
    experiment = configs[0] if configs else data.lower()
    parts = [adapter, *(name for name in configs[1:] if name != adapter), *options]
    return experiment, re.sub(r"[^\w.,=+-]+", "_", ",".join(dict.fromkeys(parts)))[:LONGEST]


def _short(value: str) -> str:
    """A path by its last part, a class by its name; a number stays as it is."""
    value = Path(value).name if "/" in value else value
    return value.rpartition(".")[2] if re.fullmatch(r"[a-z_]\w*(\.\w+)+", value) else value


def claim(run_dir: Path, resume: bool, overwrite: bool) -> list[Path]:
    """Whether a run may go into this folder; the files of an earlier one that it may remove when it begins.

    A run that failed before its first step holds nothing worth keeping, and is replaced without asking.

    Raises:
        UserError: the folder is no folder, holds a run, or has nothing to resume.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"--run_dir {run_dir} is a file; give a folder.")
    stale = [path for pattern in OURS for path in run_dir.glob(pattern)]
    if resume:
        if not any((run_dir / "checkpoints").glob("step-*")):
            raise UserError(
                f"--resume: {run_dir} has no checkpoint to resume from; leave --resume out to start afresh."
            )
        return []
    if not overwrite and (run_dir / "checkpoints").is_dir():
        raise UserError(f"{run_dir} already holds a run; give --resume, --overwrite, or another --run_dir.")
    if not overwrite and (run_dir / FILE_NAME).is_file() and read_record(run_dir)["steps"]:
        raise UserError(f"{run_dir} already holds a run; give --overwrite, or another --run_dir.")
    return stale


def saved_config(run_dir: Path) -> dict[str, Any]:
    """The configuration that a run was made with.

    Raises:
        UserError: the folder holds none.
    """
    path = run_dir / CONFIG
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--run_dir {run_dir} holds no run: {CONFIG} cannot be read ({error.strerror}).") from error


def changed_options(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options of two configurations that differ, by dotted name: (before, now)."""
    old, new = _flat(before), _flat(now)
    return {k: (old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)}


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        name: value for key, item in config.items() for name, value in _flat(item, f"{prefix}.{key}".strip(".")).items()
    }

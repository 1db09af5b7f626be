"""One folder a run: its default name says what varies, and one that is in use is not written over."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.runs.record import FILE_NAME, read_record
from litpeft.runs.safe_read import check_names, read_options

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
STEP = re.compile(r"step-\d+")  # the name of a checkpoint
TRACEBACK = "traceback.txt"
OURS = (
    *(FILE_NAME, CONFIG, CHECKPOINTS, TRACEBACK, "predictions.jsonl", "val_examples.json", "benchmark_items"),
    *("events.out.tfevents.*", "hparams.yaml"),
)
MAY_CHANGE = re.compile(  # when a run is resumed: how long, where and how watched, not what is computed
    r"trainer\.(max_|accelerator|enable_|logger|log_every|callbacks|val_check|check_val|profiler)"
    r"|checkpoint\.every|throughput|memory|predictions|benchmarks|data\.init_args\.(num_workers|cache_dir|\w+_file)"
)
SHARED_OUT = re.compile(  # likewise, as long as a batch of all processes together has as many rows
    r"trainer\.(devices|num_nodes|strategy)|data\.init_args\.batch_size"
)
LONGEST = 120  # bytes of a folder's name; some file systems allow 255


def folder_name(label: str) -> str:
    """One that every file system takes; of a label that is too long for that, with a hash of the rest."""
    name = re.sub(r"[^\w.,=+-]+", "_", label)
    if len(name.encode()) <= LONGEST:
        return name
    kept = name.encode()[: LONGEST - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def claim(run_dir: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> list[Path]:
    """Whether a run may go into this folder; the files of an earlier one that it may remove when it trains.

    A run that failed before its first step holds nothing worth keeping, and is replaced without asking.

    Args:
        run_dir: the folder.
        config: the resolved configuration of the new run, to say in what an earlier one differs.
        resume: go on with the run in the folder.
        overwrite: replace it.

    Raises:
        UserError: the folder holds a run or files of other origin, or has nothing to resume.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite: give one of them.")
    if resume:
        if newest_checkpoint(run_dir) is None:
            raise UserError(
                f"--resume: {run_dir} has no checkpoint to resume from; to start afresh, give --overwrite instead."
            )
        return []
    ours = sorted(path for pattern in OURS for path in run_dir.glob(pattern))
    if ours and not (run_dir / FILE_NAME).is_file():
        raise UserError(
            f"--run_dir {run_dir} holds {ours[0].name} but no {FILE_NAME}: no run of ours; give another folder."
        )
    if ours and not overwrite:
        record = read_record(run_dir)
        if record["status"] != "failed" or record["steps"] or (run_dir / CHECKPOINTS).is_dir():
            other = list(changed_options(record["config"] or {}, config)) if record["config"] else []
            listed = f" (with another {', '.join(other[:3])})" if other else ""
            raise UserError(f"{run_dir} already holds a run{listed}; give --resume, --overwrite, or another --run_dir.")
    return ours


def tidy(run_dir: Path) -> None:
    """Remove what a process that was killed while it wrote or removed has left. Only for who has the folder's lock."""
    checkpoints(run_dir)  # what was moved aside and has no successor is back in its place now
    for left in (run_dir / CHECKPOINTS).glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
    for name in (FILE_NAME, CONFIG):
        for left in run_dir.glob(f".{name}.*"):
            left.unlink(missing_ok=True)


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints in a run folder by their steps; one that a killed process has moved aside is put back."""
    for aside in (run_dir / CHECKPOINTS).glob(".step-*.old"):
        whole = aside.with_name(aside.name.removeprefix(".").removesuffix(".old"))
        if not whole.exists():
            aside.rename(whole)
    found = [path for path in (run_dir / CHECKPOINTS).glob("step-*") if STEP.fullmatch(path.name)]
    return sorted(found, key=step_of)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the most steps in a run folder."""
    return next(reversed(checkpoints(run_dir)), None)


def step_of(checkpoint: str | Path) -> int:
    """Optimizer steps after which a checkpoint was written, by its name."""
    return int(Path(checkpoint).name.removeprefix("step-"))


def saved_config(run_dir: Path) -> dict[str, Any]:
    """The configuration that a run was made with.

    Raises:
        UserError: the folder holds none, or one with a name that is none of an option.
    """
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"--run_dir {run_dir} holds no run: there is no {CONFIG}.")
    content = read_options(run_dir / CONFIG, "--config")
    check_names(str(run_dir / CONFIG), content)
    return content


def changed_options(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options in which two configurations differ, by dotted name: (before, now)."""
    old, new = _flat(before), _flat(now)
    return {k: (old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)}


def check_resumable(before: dict[str, Any], now: dict[str, Any], run_dir: Path, finished: bool) -> None:
    """Whether a run may go on with other options than it was begun with: those that change no result.

    Raises:
        UserError: another option differs (the saved state would not fit it, or hide it), or the run is finished and not
            asked to go on longer.
    """
    changed = changed_options(before, now)
    same_rows = _rows(before) == _rows(now) is not None
    for name, (old, new) in changed.items():
        if not MAY_CHANGE.match(name) and not (same_rows and SHARED_OUT.fullmatch(name)):
            raise UserError(
                f"--resume: {name} is {new}, but {run_dir} was begun with {old}; "
                "resume with the same, or give another --run_dir."
            )
    limits = [changed.get(f"trainer.{name}", (0, 0)) for name in ("max_epochs", "max_steps")]
    if finished and not any((new or 0) > (old or 0) or new == -1 != old for old, new in limits):
        raise UserError(f"--resume: the run in {run_dir} is finished; to go on longer, raise trainer.max_epochs.")
    for name, (old, new) in changed.items():
        print(f"litpeft: resuming with another {name}: {old} -> {new}")


def _rows(config: dict[str, Any]) -> int | None:
    """Of a batch of all processes together; None where that depends on the machine."""
    trainer, devices = config["trainer"], config["trainer"]["devices"]
    if not str(devices).isdecimal():
        return None
    return int(devices) * trainer["num_nodes"] * config["data"]["init_args"]["batch_size"]


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        name: value for key, item in config.items() for name, value in _flat(item, f"{prefix}.{key}".strip(".")).items()
    }

"""Run folders: name them, protect existing runs, find checkpoints, and check that a run can be resumed."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.runs import curve_file, logger_runs
from litpeft.runs.record import FILE_NAME, read_record
from litpeft.runs.safe_read import check_names, read_options
from litpeft.runs.strategy_names import stored_name

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
STEP = re.compile(r"step-\d+")  # name of a checkpoint folder
TRACEBACK = "traceback.txt"
OURS = (
    *(FILE_NAME, CONFIG, CHECKPOINTS, TRACEBACK, "predictions.jsonl", "val_examples.json", "benchmark_items"),
    *("confusion_matrix.json", "val_images.jpg"),
    *(curve_file.FILE_NAME, logger_runs.FILE_NAME, "events.out.tfevents.*", "hparams.yaml"),
)
NEW_OPTIONS = {  # options that version 0.1.0 did not have -> the value that does what that version did
    "data.init_args.val_cut": "random",
    "data.init_args.join_columns": True,
    "data.init_args.on_bad_row": "error",
    "data.init_args.batch_tokens": None,
    "data.init_args.shuffle_buffer": 10_000,  # of no effect without data.streaming
    "model.init_args.label_smoothing": 0.0,
    "model.init_args.metrics": None,
    "model.init_args.kernels": "none",
    "model.init_args.tf32": False,
}
# options that may change on resume: duration, device and logging, which do not affect what is computed
MAY_CHANGE = re.compile(
    r"logger|trainer\.(max_|accelerator|enable_|logger|log_every|callbacks|val_check|check_val|profiler)"
    r"|checkpoint\.every|throughput|memory|predictions|benchmarks|data\.init_args\.(num_workers|cache_dir|\w+_file)"
)
# options that may change on resume if the batch size over all processes stays the same
MAY_CHANGE_AT_SAME_BATCH = re.compile(r"trainer\.(devices|num_nodes|strategy)|data\.init_args\.batch_size")
LONGEST = 120  # bytes of a folder's name; some file systems allow 255


def folder_name(label: str) -> str:
    """Return a folder name that every file system accepts; a long label is cut and gets a hash."""
    name = re.sub(r"[^\w.,=+-]+", "_", label)
    if len(name.encode()) <= LONGEST:
        return name
    start = name.encode()[: LONGEST - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def check_run_folder(run_dir: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> list[Path]:
    """Check that a run may use this folder; return the files of an earlier run to remove when training starts.

    An earlier run that failed before its first step is replaced without `overwrite`.

    Args:
        run_dir: the run folder.
        config: resolved configuration of the new run, to report its differences from an existing run.
        resume: continue the run in the folder.
        overwrite: replace the run in the folder.

    Raises:
        UserError: the folder holds another run or other files, or no checkpoint to resume from.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite: they exclude each other; give only one.")
    if resume:
        if newest_checkpoint(run_dir) is None:
            raise UserError(
                f"--resume: {run_dir} has no checkpoint to resume from; to start again, give --overwrite instead."
            )
        return []
    ours = sorted(path for pattern in OURS for path in run_dir.glob(pattern))
    if ours and not (run_dir / FILE_NAME).is_file():
        raise UserError(
            f"--run_dir {run_dir} holds {ours[0].name} but no {FILE_NAME}: it is not a run folder; give another folder."
        )
    if ours and not overwrite:
        record = read_record(run_dir)
        if record["status"] != "failed" or record["steps"] or (run_dir / CHECKPOINTS).is_dir():
            other = list(changed_options(record["config"] or {}, config)) if record["config"] else []
            listed = f" (with a different {', '.join(other[:3])})" if other else ""
            raise UserError(f"{run_dir} already holds a run{listed}; give --resume, --overwrite, or another --run_dir.")
    return ours


def remove_leftovers(run_dir: Path) -> None:
    """Remove temporary files left by a killed process. The caller must hold the lock of the folder."""
    checkpoints(run_dir)  # restores a checkpoint that was moved aside and not replaced
    for left in (run_dir / CHECKPOINTS).glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
    for name in (FILE_NAME, CONFIG):
        for left in run_dir.glob(f".{name}.*"):
            left.unlink(missing_ok=True)


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints in a run folder by their steps; restore one left as `.old` by a killed process."""
    for aside in (run_dir / CHECKPOINTS).glob(".step-*.old"):
        whole = aside.with_name(aside.name.removeprefix(".").removesuffix(".old"))
        if not whole.exists():
            aside.rename(whole)
    found = [path for path in (run_dir / CHECKPOINTS).glob("step-*") if STEP.fullmatch(path.name)]
    return sorted(found, key=step_of)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint with the most steps in a run folder, or None."""
    return next(reversed(checkpoints(run_dir)), None)


def step_of(checkpoint: str | Path) -> int:
    """Return the number of optimizer steps in the name of a checkpoint folder."""
    return int(Path(checkpoint).name.removeprefix("step-"))


def saved_config(run_dir: Path) -> dict[str, Any]:
    """Return the configuration that a run was started with.

    Raises:
        UserError: the folder has no configuration, or a key in the configuration is not a valid option name.
    """
    if not (run_dir / CONFIG).is_file():
        stored = Path(*map(stored_name, run_dir.parts))  # runs/none/seed0 for runs/full/seed0
        hint = f" (did you mean {stored}?)" if (stored / CONFIG).is_file() else ""
        raise UserError(f"--run_dir {run_dir} holds no run: it has no {CONFIG}{hint}.")
    content = read_options(run_dir / CONFIG, "--config")
    check_names(str(run_dir / CONFIG), content)
    return content


def changed_options(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {dotted option name: (value before, value now)} of the options in which two configurations differ.

    An option that is off (null or false) equals a missing one: an earlier version did not have it.
    """
    old, new = _flat(before), _flat(now)
    old = {name: value for name, value in NEW_OPTIONS.items() if name in new} | old
    new_and_off = {name for name, value in new.items() if value is False and name not in old}
    names = sorted((old.keys() | new.keys()) - new_and_off)
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def check_resumable(before: dict[str, Any], now: dict[str, Any], run_dir: Path, record: dict[str, Any]) -> None:
    """Check that a run can be resumed with these options, and print the options that changed.

    Args:
        before: the configuration that the run was started with.
        now: the configuration that it is to be resumed with.
        run_dir: the run folder.
        record: the record of the run.

    Raises:
        UserError: an option that affects results changed, or the run is finished and no limit was raised.
    """
    changed = changed_options(before, now)
    same_batch = _global_batch_size(before) == _global_batch_size(now) is not None
    for name, (old, new) in changed.items():
        if not MAY_CHANGE.match(name) and not (same_batch and MAY_CHANGE_AT_SAME_BATCH.fullmatch(name)):
            raise UserError(
                f"--resume: {name} is {new}, but {run_dir} was started with {old}; "
                "resume with the old value, or give another --run_dir."
            )
    limits = [changed.get(f"trainer.{name}", (0, 0)) for name in ("max_epochs", "max_steps")]
    raised = any((new or 0) > (old or 0) or new == -1 != old for old, new in limits)
    times = [_seconds(each["trainer"].get("max_time")) for each in (before, now)]
    if record["status"] == "ok" and not raised and times[0] >= times[1]:
        limit = "trainer.max_epochs or trainer.max_steps"
        if reached := reached_limit(before, record["steps"], record["epochs"]):
            limit = f"{reached[0]} (now {reached[1]})"
        elif times[0] < math.inf:
            limit = f"trainer.max_time (now {before['trainer']['max_time']}), {limit}"
        raise UserError(f"--resume: the run in {run_dir} is finished; to continue it, raise {limit}.")
    for name, (old, new) in changed.items():
        print(f"litpeft: resuming with a changed {name}: {old} -> {new}")


def reached_limit(config: dict[str, Any], steps: int | None, epochs: float | None) -> tuple[str, int] | None:
    """Return the option that ends a run after these steps and epochs, and its value; None if neither does."""
    for name, done in (("max_steps", steps), ("max_epochs", epochs)):
        limit = config.get("trainer", {}).get(name) or -1
        if 0 < limit <= (done or 0):
            return f"trainer.{name}", limit
    return None


def _seconds(max_time: str | dict[str, int] | None) -> float:
    """Return the seconds of `trainer.max_time`: DAYS:HOURS:MINUTES:SECONDS, or numbers by unit; infinite for null."""
    if isinstance(max_time, str):
        max_time = dict(zip(("days", "hours", "minutes", "seconds"), map(int, max_time.split(":")), strict=True))
    return math.inf if max_time is None else timedelta(**max_time).total_seconds()


def _global_batch_size(config: dict[str, Any]) -> int | None:
    """Return the batch size over all processes; None if it is not the same in all steps, or on all machines."""
    trainer, data, devices = config["trainer"], config["data"]["init_args"], config["trainer"]["devices"]
    if not str(devices).isdecimal() or data.get("batch_tokens") is not None:
        return None
    return int(devices) * trainer["num_nodes"] * data["batch_size"]


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        name: value for key, item in config.items() for name, value in _flat(item, f"{prefix}.{key}".strip(".")).items()
    }

"""Run command lines in quickly forked processes, kill them at a given system call, and compare two finished runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litpeft.__main__ import main
from litpeft.callbacks.checkpoint_io import LOOP, TENSORS
from litpeft.runs.curve_file import FILE_NAME, read_lines
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests.forking import SERVER, like_a_new_process, write_output

WRITES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
# curves of times, which differ between runs
TIMED = (
    "train_tokens_per_second",
    "train_samples_per_second",
    "step_seconds/",
    "model_flops_per_second",
    "speed/",
    "memory/",
)
SAME_CURVES = ("train/", "val/")
RECORDED = ("status", "steps", "epochs", "checkpoint", "selection", "train_loss", "val_step", "val_loss")
RECORDED += ("val_accuracy", "val_f1", "other_metrics")


def start(
    arguments: list[str], log: Path, die_at: int | None = None, cache: Path | None = None, full_at: int | None = None
) -> BaseProcess:
    """Start a command line in a new process.

    Args:
        arguments: the arguments of `litpeft`, with `--run_dir`.
        log: file for the output; `log.calls` then holds the number of calls that changed the run folder.
        die_at: send SIGKILL before this call to change the run folder, counted from 1.
        cache: the cache folder for tables.
        full_at: from this call on, the disk is full.
    """
    process = SERVER.Process(target=run_in_this_process, args=(arguments, log, die_at, cache, full_at))
    process.start()
    return process


def run(
    arguments: list[str], log: Path, die_at: int | None = None, cache: Path | None = None, full_at: int | None = None
) -> int:
    """Like `start`, but wait for the end; return the exit code, -9 if the process was killed."""
    process = start(arguments, log, die_at, cache, full_at)
    process.join()
    return process.exitcode


def run_in_this_process(
    arguments: list[str], log: Path, die_at: int | None, cache: Path | None, full_at: int | None
) -> None:
    write_output(log, log)
    like_a_new_process()
    if cache is not None:
        os.environ["LITPEFT_CACHE"] = str(cache)
    calls = count_calls(Path(os.path.abspath(arguments[arguments.index("--run_dir") + 1])), die_at, full_at)
    code = main(arguments)
    log.with_suffix(".calls").write_text(str(len(calls)))
    sys.exit(code)


def count_calls(folder: Path, die_at: int | None = None, full_at: int | None = None) -> list[str]:
    """Return a list that receives each later call of this process that changes a folder.

    Args:
        folder: the folder.
        die_at: send SIGKILL before this call, counted from 1.
        full_at: from this call on, calls that need disk space fail because the disk is full.
    """
    calls: list[str] = []
    process, root = os.getpid(), str(folder)

    def note(call: str, frees_space: bool = False) -> None:
        if os.getpid() != process or root not in call:
            return
        calls.append(call)
        if len(calls) == die_at:
            os.kill(process, signal.SIGKILL)
        if full_at is not None and len(calls) >= full_at and not frees_space:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), call.split()[1])

    def audit(event: str, values: tuple[Any, ...]) -> None:
        if event == "os.rename":
            note(f"{event} {values[0]} {values[1]}", frees_space=True)
        elif event in WRITES:
            note(f"{event} {values[0]}", frees_space=event != "os.mkdir")
        elif event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR):
            note(f"{event} {values[0]}")

    flush = os.fsync

    def fsync(file: int) -> None:
        note(f"fsync {os.readlink(f'/proc/self/fd/{file}')}")
        flush(file)

    sys.addaudithook(audit)
    os.fsync = fsync
    return calls


def differences(one: Path, other: Path) -> list[str]:
    """Return where the final states of two runs differ: weights, optimizer, schedule, random state, record, curves."""
    a, b = (load_file(newest_checkpoint(run_dir) / TENSORS) for run_dir in (one, other))
    found = [f"weights {name}" for name in a.keys() | b.keys() if not _equal(a.get(name), b.get(name))]
    a, b = (torch.load(newest_checkpoint(run_dir) / LOOP, "cpu", weights_only=True) for run_dir in (one, other))
    states = a.keys() - {"callbacks", "record", "metrics", "curves"}
    found += [f"{key} {at}" for key in states for at in _nested_differences(a[key], b[key])]
    callback = next(key for key in a["callbacks"] if key.startswith("Checkpoint"))
    found += [f"checkpoint {at}" for at in _nested_differences(a["callbacks"][callback], b["callbacks"][callback])]
    a, b = ({name: value for name, value in read["metrics"].items() if not name.startswith(TIMED)} for read in (a, b))
    found += [f"metrics {at}" for at in _nested_differences(a, b)]
    a, b = read_record(one), read_record(other)
    found += [f"record {name}: {a[name]}, {b[name]}" for name in RECORDED if a[name] != b[name]]
    a, b = ([each | {"train_seconds": 0} for each in record["validations"]] for record in (a, b))
    found += [f"validations: {a}, {b}"] if a != b else []
    a, b = _curves(one), _curves(other)
    for tag in sorted(a.keys() | b.keys()):
        steps = [step for step, _ in b.get(tag, [])]
        if tag != "train/epoch" and len(set(steps)) < len(steps):  # Lightning logs epoch again with each other curve
            found.append(f"curve {tag}: steps repeat: {steps}")
        if tag.startswith(SAME_CURVES) and a.get(tag) != b.get(tag):
            found.append(f"curve {tag}: {a.get(tag)}, {b.get(tag)}")
    a, b = _own_curves(one), _own_curves(other)
    return found + ([f"{FILE_NAME}: {a}, {b}"] if a != b else [])


def _own_curves(run_dir: Path) -> list[tuple[int, int, dict[str, float]]]:
    """Return step, tokens and values of each line of the file of curves, without what measures time."""
    timeless = [
        line | {"values": {name: value for name, value in line["values"].items() if not name.startswith(TIMED)}}
        for line in read_lines(run_dir)
    ]
    return [(line["step"], line["tokens"], line["values"]) for line in timeless if line["values"].keys() - {"epoch"}]


def _curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each curve's points by step; event files of one second are read in the order of process numbers."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {tag: sorted((event.step, event.value) for event in events.Scalars(tag)) for tag in events.Tags()["scalars"]}


def _nested_differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Return where two nested containers of numbers and tensors differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in a.keys() | b.keys() if "val_loop" not in str(key)]  # counters that nothing reads
        return [found for key in keys for found in _nested_differences(a.get(key), b.get(key), f"{at}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [
            found for i, pair in enumerate(zip(a, b, strict=True)) for found in _nested_differences(*pair, f"{at}.{i}")
        ]
    return [] if _equal(a, b) else [f"{at}: {a}, {b}"[:200]]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return type(a) is type(b) and a == b

"""Run a sweep of many trials while the processes that start them are killed: python -m tests.growth.killed_workers.

The sweep is continued with `--retry` until all trials have ended. Then no trial may be lost, and none may have been
started again after it had ended: prints both numbers, and exits with 1 unless they are zero.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

from litpeft.runs.curve_file import read_lines
from litpeft.runs.record import FILE_NAME, read_record
from tests.conftest import write_sentences, write_tiny_bert

DECAYS = 10
ENDED = FILE_NAME  # the last lines of a run's output name its record
STARTERS = {"ray": "ray::_run", "local": "litpeft.sweeps.trial_server"}  # launcher -> process that starts trials


def write_experiment(folder: Path, trials: int) -> None:
    """Write an experiment with this many trials of a tiny model: four steps each, a grid of ten decays."""
    axes = {
        "model.optimizer.lr": [1e-5 * (1 + number) for number in range(trials // DECAYS)],
        "model.optimizer.weight_decay": [round(0.01 * number, 2) for number in range(DECAYS)],
    }
    options = {
        "model.model_name": write_tiny_bert(folder / "model"),
        "model.dtype": "fp32",
        "data.train_file": write_sentences(folder / "train.tsv", 32),
        "data.val_file": write_sentences(folder / "val.tsv", 16, seed=1),
        "data.batch_size": 8,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.enable_progress_bar": False,
        "trainer.log_every_n_steps": 1,
    }
    content = {"configs": ["base", "sst2", "lora", "adamw"], "options": options, "axes": axes}
    (folder / "many.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def processes(text: str) -> list[int]:
    """Return the processes whose command line has this text, but this one."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text in each.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(each.parent.name))
    return [number for number in found if number != os.getpid()]


def kill_now_and_then(end: threading.Event, seconds: float, kind: str, killed: list[int]) -> None:
    """Kill one of the processes whose command line has this text, now and then, until the end.

    Times between two kills are random: a slow machine's last trial would else never end.
    """
    draw = random.Random()
    while not end.wait(draw.uniform(0, 2 * seconds)):
        if candidates := processes(kind):
            with contextlib.suppress(OSError):
                os.kill(chosen := draw.choice(candidates), signal.SIGKILL)
                killed.append(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="a multiple of ten (default: 1000)")
    parser.add_argument("--every", type=float, default=20.0, help="mean seconds between two kills (default: 20)")
    parser.add_argument("--launcher", choices=list(STARTERS), default="ray")
    parser.add_argument(
        "--select", choices=["optuna"], help="search all trials with Optuna; the sweep itself is killed"
    )
    options = parser.parse_args()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    with tempfile.TemporaryDirectory() as scratch:
        folder, killed = Path(scratch), list[int]()
        write_experiment(folder, options.trials)
        command = [sys.executable, "-m", "litpeft", "sweep", "many.yaml", "--jobs", "2", "--retry"]
        command += ["--launcher", options.launcher]
        starter = STARTERS[options.launcher]
        if options.select:  # its storage is written by the sweep's own process
            command += ["--select", options.select, "--trials", str(options.trials)]
            starter = "litpeft sweep many.yaml"
        started, calls, code = time.monotonic(), 0, 1
        while code and calls < (1 + options.trials if options.select else 20):
            end = threading.Event()
            killer = threading.Thread(target=kill_now_and_then, args=(end, options.every, starter, killed))
            killer.start()
            code = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL).returncode
            end.set()
            killer.join()
            calls += 1
        root = folder / "runs" / "many"
        runs = sorted(path.parent for path in root.glob("*/seed0/" + FILE_NAME))
        ok = [run for run in runs if (record := read_record(run))["status"] == "ok" and record["steps"] == 4]
        steps = [[line["step"] for line in read_lines(run) if "train_loss" in line["values"]] for run in ok]
        whole = [each for each in steps if each == sorted(set(each))]
        again = [log for log in (root / "logs").glob("*.log") if ended_twice(log)]
        print(
            f"{options.trials} trials on {options.select or options.launcher}, {len(killed)} kills, {calls} calls "
            f"of sweep, {time.monotonic() - started:.0f} s: {options.trials - len(ok)} lost, {len(again)} run twice, "
            f"{len(ok) - len(whole)} with a step twice in their curves"
        )
        return 0 if len(ok) == options.trials and not again and len(whole) == len(ok) else 1


def ended_twice(log: Path) -> bool:
    """Return whether a trial was started again after it had printed its record."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return ("$ litpeft fit" in text.rpartition(ENDED)[2] and ENDED in text) or text.count(ENDED) > 1


if __name__ == "__main__":
    sys.exit(main())

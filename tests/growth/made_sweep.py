"""Write the folder of a finished sweep with as many trials and seeds as wanted.

The records are copies of one that litpeft 0.1.0 wrote (11 kB, `tests/old_runs`), with fields added since; figures, seeds
and tuned options differ from run to run as those of real runs do.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from litpeft.runs import curve_file
from litpeft.runs.record import FILE_NAME, as_json, new_record
from tests.old_runs.test_runs_of_0_1_0 import ZIP

RANKS = 1, 2, 4, 8, 16, 32, 64, 128, 256, 512
LIKE = "runs/lora/seed0/record.json"
TIMES = (
    *("load_seconds", "train_seconds", "wall_seconds", "step_seconds_p50", "step_seconds_p95"),
    *("train_samples_per_second", "train_tokens_per_second", "padded_tokens_per_second", "trained_tokens_per_second"),
)
MARK = re.compile(r'"@(\w+)@"')  # a figure that differs from run to run, in the text of a record


def write_sweep(folder: Path, trials: int, seeds: int, curves: int = 0) -> Path:
    """Write a sweep over ranks and learning rates, all runs finished; trial 0 is the baseline.

    Args:
        folder: folder of the sweep.
        trials: number of trials.
        seeds: seeds per trial.
        curves: steps in the file of curves of each run; 0: no such file.
    """
    points = list(_points(trials))
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **{"experiment": "growth", "axes": ["model.adapter.rank", "model.optimizer.lr"], "question": None},
        **{"baseline": _label(*points[0]), "metric": "val_accuracy", "target": None, "published": None},
        "varies": ["model.init_args.adapter.init_args.rank", "model.init_args.optimizer.init_args.lr"],
        "trials": [
            {"name": _label(*point), "label": _label(*point), "axes": {"rank": str(point[0]), "lr": f"{point[1]:.6g}"}}
            for point in points
        ],
        "seeds": list(range(seeds)),
    }
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    (folder / "sweep.yaml").write_text(yaml.dump(content, Dumper=dumper, sort_keys=False), encoding="utf-8")
    with zipfile.ZipFile(ZIP) as packed:
        like = new_record() | json.loads(packed.read(LIKE))
    for number, (rank, lr) in enumerate(points):
        parts = MARK.split(as_json(_template(like, rank, lr) | ({"steps": curves} if curves else {})))
        for seed in range(seeds):
            figures = _figures(like, number, seed)
            text = "".join(json.dumps(figures[part]) if i % 2 else part for i, part in enumerate(parts))
            run = folder / _label(rank, lr) / f"seed{seed}"
            run.mkdir(parents=True, exist_ok=True)
            (run / FILE_NAME).write_text(text, encoding="utf-8")
            if curves:
                (run / curve_file.FILE_NAME).write_text(_curves(figures, curves), encoding="utf-8")
    return folder


def _points(trials: int) -> Iterator[tuple[int, float]]:
    """Yield (rank, learning rate) of the trials."""
    rates = -(-trials // len(RANKS))
    for number in range(trials):
        yield RANKS[number // rates], 1e-4 * 100 ** (number % rates / rates)


def _label(rank: int, lr: float) -> str:
    return f"rank={rank},lr={lr:.6g}"


def _template(like: dict[str, Any], rank: int, lr: float) -> dict[str, Any]:
    """Return the record of a trial, with marks for the figures that differ from run to run."""
    record = json.loads(json.dumps(like))
    model = record["config"]["model"]["init_args"]
    model["adapter"]["init_args"]["rank"] = record["adapter_options"]["rank"] = rank
    model["optimizer"]["init_args"]["lr"] = float(f"{lr:.6g}")
    for group in record["optimizer_settings"]:
        group["initial_lr"] = float(f"{lr:.6g}")
    record["trainable_params"] = 2 + 968 * rank
    record["adapter_bytes"] = 4 * record["trainable_params"]
    record["run_name"], record["val_examples"] = _label(rank, lr), None
    record["data_summary"]["rows"]["val"] = 872
    record["git"] = {"commit": "1f" * 20, "dirty": False}
    record["config"]["seed_everything"] = "@seed@"
    names = ("seed", "started_at", "val_accuracy", "val_loss", "train_loss", "peak_rss_bytes", *TIMES)
    record |= {name: f"@{name}@" for name in names}
    for row in record["validations"]:
        row |= {"val_accuracy": "@val_accuracy@", "val_loss": "@val_loss@"}
    return record


def _figures(like: dict[str, Any], trial: int, seed: int) -> dict[str, Any]:
    """Return the values of the marks in one record."""
    draw = random.Random(trial * 1_000_003 + seed)
    right = 700 + round(draw.gauss(30 + trial % 7, 4))
    figures = {"seed": seed, "started_at": f"2026-11-28T13:{seed % 60:02}:{trial % 60:02}+00:00"}
    figures |= {"val_accuracy": right / 872, "val_loss": 1 - right / 872 + draw.gauss(0, 0.01)}
    figures |= {"train_loss": draw.uniform(0.2, 0.3), "peak_rss_bytes": 577_306_624 + 4096 * draw.randrange(9999)}
    return figures | {name: like[name] * draw.uniform(0.95, 1.05) for name in TIMES}


def _curves(figures: dict[str, Any], steps: int) -> str:
    """Return the lines of a file of curves."""
    draw, lines = random.Random(figures["seed"]), [{"step": 0, "tokens": 0, "seconds": 0.0, "values": {}}]
    for step in range(1, steps + 1):
        values = {"train_loss": figures["train_loss"] + draw.uniform(0, 1) / step, "lr": 1e-3 * (1 - step / steps)}
        values["train_tokens_per_second"] = figures["train_tokens_per_second"] * draw.uniform(0.9, 1.1)
        lines.append({"step": step, "tokens": 900 * step, "seconds": step / 7, "values": values})
    return "".join(f"{json.dumps(line)}\n" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--curves", type=int, default=0, metavar="STEPS")
    options = parser.parse_args()
    print(write_sweep(options.folder, options.trials, options.seeds, options.curves))

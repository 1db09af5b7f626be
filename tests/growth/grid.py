"""A sweep of a grid of numbers: list it, and continue it when all of its runs are finished."""

from __future__ import annotations

from pathlib import Path

import yaml

from litpeft.runs.record import new_record, write_record
from litpeft.sweeps.experiment import read_experiment
from litpeft.sweeps.folder import jobs_of, write_sweep
from litpeft.sweeps.resolve import resolve, varying


def write_grid(file: Path, steps: int) -> Path:
    """Write an experiment with `steps` values on each of four axes."""
    axes = {
        "model.optimizer.lr": [1e-4 * (1 + step) for step in range(steps)],
        "model.optimizer.weight_decay": [0.01 * step for step in range(steps)],
        "model.optimizer.eps": [1e-8 * (1 + step) for step in range(steps)],
        "model.scheduler.warmup": [1 + step for step in range(steps)],
    }
    content = {
        "configs": ["base", "snippets", "lora", "adamw"],
        "options": {"model.model_name": "demo:minilm", "data.train_samples": 64, "data.val_samples": 32},
        "axes": axes,
        "seeds": 1,
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def finish_grid(file: Path, root: Path) -> None:
    """Write the folder of the sweep as if all of its runs had finished."""
    experiment = read_experiment(str(file))
    configs = resolve(experiment.to_resolve())
    root.mkdir(parents=True)
    write_sweep(root, experiment, configs, varying(configs.values()))
    for job in jobs_of(root, experiment):
        record = new_record() | {"status": "ok", "seed": job.seed, "val_accuracy": 0.5, "val_loss": 0.7}
        job.run_dir.mkdir(parents=True)
        write_record(job.run_dir, record | {"config": configs[job.trial.name]})

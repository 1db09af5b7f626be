"""What a run sends to its loggers at its start and at its end: settings, final figures, and the files of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Trainer

from litpeft.runs import curve_file
from litpeft.runs.benchmark_results import final_evaluation, scores
from litpeft.runs.folder import CONFIG, TRACEBACK
from litpeft.runs.logger_runs import save_versions
from litpeft.runs.record import FILE_NAME
from litpeft.training.outlets import outlet_of, send

SETTINGS = ("adapter", "data", "model_name", "optimizer", "scheduler", "seed", "precision", "effective_batch_size")
FIGURES = (
    *("val_loss", "val_accuracy", "val_f1", "trainable_params", "adapter_bytes", "model_bytes"),
    *("peak_allocated_bytes", "peak_rss_bytes", "train_seconds", "train_samples_per_second"),
    *("train_tokens_per_second", "step_seconds_p50"),
)
FILES = (FILE_NAME, CONFIG, curve_file.FILE_NAME, "confusion_matrix.json", "val_images.jpg", TRACEBACK)


def settings_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters of a run, with those of its adapter and its learning rate."""
    options = {f"adapter.{name}": value for name, value in (record["adapter_options"] or {}).items()}
    settings = {name: record[name] for name in SETTINGS} | options
    first = (record["optimizer_settings"] or [{}])[0]
    settings["lr"] = first.get("initial_lr", first.get("lr"))
    return {name: _plain(value) for name, value in settings.items() if value is not None}


def figures_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the final figures of a run: metrics, sizes, costs and the scores of benchmarks."""
    figures = {name: record[name] for name in FIGURES if record[name] is not None}
    return figures | (record["other_metrics"] or {}) | scores(final_evaluation(record) or {"results": {}})


def send_settings(trainer: Trainer, record: dict[str, Any]) -> None:
    """Send the settings when training starts, and note how the loggers call the run."""
    folder = Path(trainer.default_root_dir)
    send(trainer.loggers, "settings", settings_of(record) | {"run_dir": str(folder.absolute())})
    remote = [logger for logger in trainer.loggers if outlet_of(logger).takes_files]
    if remote and trainer.is_global_zero:
        save_versions(folder, {type(logger).__name__: str(logger.version) for logger in remote})


def send_figures(trainer: Trainer, record: dict[str, Any]) -> None:
    """Send the settings and the final figures."""
    send(trainer.loggers, "final", settings_of(record), figures_of(record), trainer.global_step)


def send_files(trainer: Trainer) -> None:
    """Send the record and the other small files of the run folder."""
    for path in (Path(trainer.default_root_dir) / name for name in FILES):
        if path.is_file():
            send(trainer.loggers, "file", path)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)

"""The loggers of a run: TensorBoard, the file of curves, and those that `--logger` adds by name."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, WandbLogger

from litpeft.callbacks.curve_logger import CurveLogger
from litpeft.errors import UserError, did_you_mean, first_sentence
from litpeft.runs.logger_runs import saved_versions
from litpeft.training.grouped_tensorboard import GroupedTensorBoard
from litpeft.training.processes import is_first_process
from litpeft.training.trackio_logger import TrackioLogger

LOGGER_HELP = "loggers of fit beside TensorBoard, with commas: csv, wandb, mlflow, comet, trackio"
ADVICE = {  # loggers that reach a service or a store when they start -> what to do if that fails
    "wandb": "log in with wandb login, or set WANDB_MODE=offline to keep the run in the folder wandb of its run folder",
    "mlflow": "MLFLOW_TRACKING_URI names the store or server",
    "trackio": "see the documentation of trackio.init",
}


@dataclass
class RunNames:
    """What loggers show of a run.

    Attributes:
        run_dir: the run folder.
        experiment: name under which runs are grouped.
        run_name: name that says what the run varies.
        seed: its random seed.
        tags: short texts by which runs are found.
        resumed: whether the run in the folder is continued.
    """

    run_dir: Path
    experiment: str
    run_name: str
    seed: Any
    tags: list[str]
    resumed: bool

    @property
    def title(self) -> str:
        return f"{self.run_name}/seed{self.seed}"

    def earlier(self, kind: str) -> str | None:
        """Return how a class of logger called the run in the folder, if it is continued."""
        return saved_versions(self.run_dir).get(kind) if self.resumed else None


# class of a logger -> argument -> its default, which means that it is not given, and the value in its place
FILLED: dict[str, dict[str, tuple[Any, Callable[[RunNames], Any]]]] = {
    "WandbLogger": {
        "save_dir": (".", lambda run: str(run.run_dir)),
        "name": (None, lambda run: run.title),
        "project": (None, lambda run: os.environ.get("WANDB_PROJECT") or run.experiment),
        "id": (None, lambda run: run.earlier("WandbLogger") or uuid.uuid4().hex[:8]),
    },
    "MLFlowLogger": {
        "experiment_name": ("lightning_logs", lambda run: run.experiment),
        "run_name": (None, lambda run: run.title),
        "tags": (None, lambda run: {"run_dir": str(run.run_dir.absolute()), "tags": ", ".join(run.tags)}),
        "run_id": (None, lambda run: run.earlier("MLFlowLogger")),
    },
    "CometLogger": {
        "project": (None, lambda run: run.experiment),
        "experiment_key": (None, lambda run: run.earlier("CometLogger")),
    },
}


def loggers_of_run(cli: Any, chosen: Any) -> list[Logger]:
    """Return the loggers of a `fit`; the file of curves is always the last one.

    Args:
        cli: the `LitPeftCLI`, whose task and data exist.
        chosen: the loggers of `--trainer.logger`; None or True for TensorBoard, False for none.

    Raises:
        UserError: the package of a logger is not installed.
    """
    given, record, run_dir = cli.config_init[cli.verb], cli.recorder.record, cli.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    tags = [cli.model.adapter.name, type(cli.datamodule).__name__, Path(cli.model.model_name).name]
    names = (record["experiment"], record["run_name"])
    run = RunNames(run_dir, *map(str, names), given.seed_everything, tags, resumed=cli.checkpoint is not None)
    if chosen in (None, True):
        chosen = GroupedTensorBoard(str(run_dir), name="", version="", default_hp_metric=False)
    own = chosen if isinstance(chosen, list) else [chosen] if chosen else []
    return [*own, *added_loggers(logger_names(given.logger), run), CurveLogger(run_dir, given.throughput.progress)]


def fill_in_loggers(options: Namespace, cli: Any, adapter: str) -> None:
    """Fill in run folder, names and tags of the loggers that `--trainer.logger` names, where they are not given.

    Args:
        options: the options of the run; `trainer.logger` is changed.
        cli: the `LitPeftCLI`, which knows the run folder and its record.
        adapter: name of the fine-tuning strategy.
    """
    given, record = options.trainer.logger, cli.recorder.record
    tags = [adapter, options.data.class_path.rpartition(".")[2], Path(options.model.init_args.model_name).name]
    names = (record["experiment"], record["run_name"], options.seed_everything)
    run = RunNames(cli.run_dir, *map(str, names), tags, resumed=cli.checkpoint is not None)
    for logger in given if isinstance(given, list) else [given]:
        kind = getattr(logger, "class_path", "").rpartition(".")[2]
        for name, (unset, value) in FILLED.get(kind, {}).items():
            if logger.init_args.get(name) == unset:
                logger.init_args[name] = value(run)
        if kind == "WandbLogger":
            logger["dict_kwargs"] = {"tags": tags, "group": run.run_name} | dict(logger.get("dict_kwargs") or {})


def added_loggers(names: Sequence[str], run: RunNames) -> list[Logger]:
    """Return the loggers with these names.

    Raises:
        UserError: a name is unknown, the package of a logger is not installed, or the logger cannot start.
    """
    loggers = []
    for name in names:
        try:
            loggers.append(MAKERS[name](run))
            if name in ADVICE and is_first_process():
                _ = loggers[-1].experiment  # now, and not after the data have been read
        except ModuleNotFoundError as error:
            raise UserError(f"--logger {name}: its package is missing; pip install 'litpeft[{name}]'.") from error
        except Exception as error:
            advice = f"; {ADVICE[name]}" if name in ADVICE else ""
            raise UserError(f"--logger {name}: {first_sentence(error)}{advice}.") from error
    return loggers


def logger_names(given: str | None) -> list[str]:
    """Return the names that `--logger` lists, each once.

    Raises:
        UserError: a name is unknown.
    """
    names = list(dict.fromkeys(name for name in re.split(r"[,\s\[\]]+", given or "") if name))
    for name in names:
        if name not in MAKERS:
            raise UserError(
                f"--logger {name}: there is no such logger{did_you_mean(name, MAKERS)}; give {', '.join(MAKERS)}, "
                "or any logger of Lightning as --trainer.logger CLASS."
            )
    return names


def _filled(kind: str, run: RunNames) -> dict[str, Any]:
    """Return the arguments of a class of logger that a run fills in."""
    return {name: value(run) for name, (_, value) in FILLED[kind].items()}


def _csv(run: RunNames) -> Logger:
    return CSVLogger(str(run.run_dir), name="csv")  # a new version_N after a resume: CSVLogger overwrites its file


def _wandb(run: RunNames) -> Logger:
    return WandbLogger(
        **_filled("WandbLogger", run),
        group=run.run_name,
        tags=[tag[:64] for tag in run.tags],  # longer ones are refused
        config={"run_dir": str(run.run_dir.absolute())},
    )


def _mlflow(run: RunNames) -> Logger:
    # MLFLOW_TRACKING_URI is read here, because Lightning reads it when it is imported
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"
    filled = _filled("MLFlowLogger", run)
    return MLFlowLogger(**filled | {"tags": filled["tags"] | {"group": run.run_name}}, tracking_uri=store)


def _comet(run: RunNames) -> Logger:
    return CometLogger(
        project=os.environ.get("COMET_PROJECT_NAME") or run.experiment,
        experiment_key=run.earlier("CometLogger"),
        # 0, because Lightning switches Comet off for False
        online=1 if os.environ.get("COMET_API_KEY") else 0,
        offline_directory=str(run.run_dir / "comet"),
        name=run.title,
        tags=run.tags,
        display_summary_level=0,  # litpeft prints its own
    )


def _trackio(run: RunNames) -> Logger:
    return TrackioLogger(run.experiment, run.title, group=run.run_name)


MAKERS: dict[str, Callable[[RunNames], Logger]] = {
    "csv": _csv,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "comet": _comet,
    "trackio": _trackio,
}

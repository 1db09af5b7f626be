"""A logger of Lightning for Trackio, which keeps runs in a local database and shows them in a dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Log to Trackio (https://github.com/gradio-app/trackio).

    Args:
        project: name of the project.
        name: name of the run; a run of this name that exists is continued.
        options: further arguments of `trackio.init`, such as `space_id` or `group`.

    Raises:
        ModuleNotFoundError: trackio is not installed.
    """

    def __init__(self, project: str, name: str, **options: Any) -> None:
        super().__init__()
        import trackio

        self._trackio = trackio
        self._project, self._name, self._options = project, name, options
        self._experiment: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of trackio."""
        if self._experiment is None:
            options = {"resume": "allow", "embed": False} | self._options
            self._experiment = self._trackio.init(project=self._project, name=self._name, **options)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Show the settings as a table: the configuration of a run cannot change once it has begun."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in dict(params).items())
        self.log_object("settings", "Markdown", 0, f"| option | value |\n| --- | --- |\n{rows}")

    @rank_zero_only
    def log_object(self, name: str, kind: str, step: int, value: Any) -> None:
        """Log an object of a class of trackio, such as `Image` or `Markdown`, that `value` makes."""
        self.experiment.log({name: getattr(self._trackio, kind)(value)}, step=step)

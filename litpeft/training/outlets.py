"""What a run sends to its loggers beside curves: texts, images, tables, files, settings and final figures.

A callback or task calls `send`, and the outlet of each logger does what the logger can. To add a logger: derive from
`Outlet` in a module that is imported, and name the classes of the logger:

    class PrintingOutlet(Outlet):
        loggers = ("PrintingLogger",)

        def text(self, name, text, step):
            print(name, step, text)
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from litpeft.training import processes


class Outlet:
    """Sends to one logger what it can take; methods that a subclass does not override send nothing.

    Args:
        logger: a logger of Lightning.

    Attributes:
        loggers: names of the classes of the logger.
        takes_files: whether `file` does anything.
        is_remote: whether the logger may fail for reasons that must not stop a run, such as a network.
    """

    loggers: ClassVar[tuple[str, ...]] = ()
    takes_files = False
    is_remote = True
    _by_name: ClassVar[dict[str, type[Outlet]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Outlet._by_name.update(dict.fromkeys(cls.loggers, cls))

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def text(self, name: str, text: str, step: int) -> None:
        """Send a text in Markdown."""

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Send an image, (height, width, 3) uint8."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """Send a table of texts; as a text by default."""
        shown = []
        for first, *others in rows:
            named = (f"{column}: {text}" for column, text in zip(columns[1:], others, strict=True))
            shown.append("\n\n".join([f"**{first}**", *named]))
        self.text(name, "\n\n---\n\n".join(shown), step)

    def file(self, path: Path) -> None:
        """Send a file."""

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Send the hyper-parameters of a run when it starts."""
        self.logger.log_hyperparams(dict(settings))

    def final(self, settings: Mapping[str, Any], figures: Mapping[str, float], step: int) -> None:
        """Send the final figures of a run, with its hyper-parameters for loggers that show them together."""
        self.logger.log_metrics({f"final/{name}": value for name, value in figures.items()}, step=step)
        self.logger.save()

    def flush(self) -> None:
        """Write what the logger holds back."""

    def close(self, status: str) -> None:
        """End the run of the logger; `status` is as in the record."""


def outlet_of(logger: Any) -> Outlet:
    """Return the outlet of a logger, by the names of its classes; for an unknown logger, one for final figures only."""
    names = (kind.__name__ for kind in type(logger).__mro__)
    return next((Outlet._by_name[name] for name in names if name in Outlet._by_name), Outlet)(logger)


def send(loggers: Iterable[Any], method: str, *arguments: Any) -> None:
    """Call a method of the outlet of each logger, in the first process.

    A remote logger that fails costs a warning, and not the run.

    Args:
        loggers: the loggers of the trainer.
        method: name of a method of `Outlet`.
        arguments: its arguments.
    """
    if processes.rank():
        return
    for outlet in map(outlet_of, loggers):
        try:
            getattr(outlet, method)(*arguments)
        except Exception as error:
            if not outlet.is_remote:
                raise
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            print(f"litpeft: warning: {type(outlet.logger).__name__} took no {method}: {reason}", file=sys.stderr)


class TensorBoardOutlet(Outlet):
    """TensorBoard: texts, images, and the HParams tab."""

    loggers = ("TensorBoardLogger",)
    is_remote = False

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.add_text(name, text, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.logger.experiment.add_image(name, pixels, step, dataformats="HWC")

    def settings(self, settings: Mapping[str, Any]) -> None: ...

    def final(self, settings: Mapping[str, Any], figures: Mapping[str, float], step: int) -> None:
        self.logger.log_hyperparams(dict(settings), dict(figures), step=step)
        self.flush()

    def flush(self) -> None:
        self.logger.experiment.flush()


class CurveOutlet(Outlet):
    """The file of curves in the run folder, beside the record, which has everything else."""

    loggers = ("CurveLogger",)

    def settings(self, settings: Mapping[str, Any]) -> None: ...

    def final(self, settings: Mapping[str, Any], figures: Mapping[str, float], step: int) -> None: ...


class WandbOutlet(Outlet):
    """Weights & Biases: texts as tables, images, tables, files, config and summary."""

    loggers = ("WandbLogger",)
    takes_files = True

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.log_text(name, ["text"], [[text]], step=step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.logger.log_image(name, [pixels], step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        self.logger.log_table(name, list(columns), [list(row) for row in rows], step=step)

    def file(self, path: Path) -> None:
        run = self.logger.experiment
        copy = shutil.copy(path, run.dir)  # wandb would link to the file, and the run folder may move
        run.save(copy, base_path=run.dir, policy="now")

    def final(self, settings: Mapping[str, Any], figures: Mapping[str, float], step: int) -> None:
        self.logger.experiment.summary.update(dict(figures))

    def close(self, status: str) -> None:
        if self.logger._experiment is not None:
            self.logger.experiment.finish(exit_code=int(status != "ok"))


class MLFlowOutlet(Outlet):
    """MLflow: texts, images, tables and files as artefacts; parameters and metrics."""

    loggers = ("MLFlowLogger",)
    takes_files = True

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.log_text(self.logger.run_id, text, f"{name}/step-{step:06d}.md")

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.logger.experiment.log_image(self.logger.run_id, pixels, f"{name}/step-{step:06d}.png")

    def file(self, path: Path) -> None:
        self.logger.experiment.log_artifact(self.logger.run_id, str(path))

    def close(self, status: str) -> None:
        if not self.logger._initialized:
            return
        ended = {"ok": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED")
        self.logger.experiment.set_terminated(self.logger.run_id, ended)


class CometOutlet(Outlet):
    """Comet: texts, images, tables and files."""

    loggers = ("CometLogger",)
    takes_files = True

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.log_text(text, step=step, metadata={"name": name})

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        # an image of Pillow: Comet needs matplotlib for an array
        self.logger.experiment.log_image(Image.fromarray(pixels), name=name, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        self.logger.experiment.log_table(f"{name}-{step:06d}.csv", [list(row) for row in rows], headers=list(columns))

    def file(self, path: Path) -> None:
        self.logger.experiment.log_asset(str(path), file_name=path.name)

    def close(self, status: str) -> None:
        if self.logger._experiment is not None:
            self.logger.experiment.end()


class TrackioOutlet(Outlet):
    """Trackio: texts, images, tables, and final figures as the last step."""

    loggers = ("TrackioLogger",)

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.log_object(name, "Markdown", step, text)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.logger.log_object(name, "Image", step, pixels)

    def close(self, status: str) -> None:
        if self.logger._experiment is not None:
            self.logger.experiment.finish()

"""Train in this process as `litpeft fit` does, and use the run: record, curves, model, predictions, export."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from litpeft.api.arguments import config_words, naming_arguments, option_words
from litpeft.errors import UserError
from litpeft.runs.benchmark_results import final_evaluation, scores
from litpeft.runs.record import FILE_NAME, read_record

if TYPE_CHECKING:
    from litpeft.cli.finished_run import FinishedRun
    from litpeft.tasks import FineTuner

METRICS = ("train_loss", "val_loss", "val_accuracy", "val_f1", "test_loss", "test_accuracy", "test_f1")


def fit(*configs: str | os.PathLike[str] | Mapping[str, Any], **options: Any) -> Run:
    """Train a model as `litpeft fit` does, in this process, and return the run.

    Args:
        configs: names of packaged configurations, YAML files, or dicts with the content of such a file.
        options: options of `litpeft fit`, with `__` for the dot: `model__adapter__rank=16`, `run_dir="runs/first"`.

    Raises:
        UserError: an argument or a file is wrong, or the memory is exhausted.
    """
    from litpeft.callbacks.run_record import is_out_of_memory
    from litpeft.cli.console import quieten
    from litpeft.commands.training import FitCLI

    quieten()
    with TemporaryDirectory() as scratch, naming_arguments(Path(scratch)):
        words = [*config_words(configs, Path(scratch)), *option_words(options)]
        try:
            return Run(FitCLI("fit", words).run_dir)
        except SystemExit as stop:
            if stop.code == 1:  # Lightning ends the process after Ctrl-C
                raise KeyboardInterrupt from stop
            raise
        except Exception as error:
            if isinstance(error, UserError) or not is_out_of_memory(error):
                raise
            raise UserError(
                "out of memory; give a smaller data__batch_size with trainer__accumulate_grad_batches, or a smaller "
                "data__max_length."
            ) from error


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Return the run in a folder.

    Raises:
        UserError: the folder holds no run.
    """
    run = Run(folder)
    with naming_arguments():
        if not (run.folder / FILE_NAME).is_file():
            raise UserError(f"{run.folder} holds no run: it has no {FILE_NAME}.")
        read_record(run.folder)
    return run


class Run:
    """A run of `litpeft fit`; as a path, it is the run folder.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._finished: tuple[object, FinishedRun] | None = None  # what `_built` returned, and for which record

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"<Run {self.folder}: {self.record['status']}{f', {shown}' if shown else ''}>"

    @property
    def record(self) -> dict[str, Any]:
        """The record of the run, as in `record.json`; `litpeft/runs/record.py` defines its fields."""
        return read_record(self.folder)

    @property
    def metrics(self) -> dict[str, float]:
        """Losses, metrics and benchmark scores of the selected checkpoint, by name."""
        record = self.record
        found = {name: record[name] for name in METRICS} | (record["other_metrics"] or {})
        evaluation = final_evaluation(record)
        found |= scores(evaluation) if evaluation else {}
        return {name: value for name, value in found.items() if value is not None}

    def curves(self) -> dict[str, dict[int, float]]:
        """Return the curves of the run: name -> {optimizer step: value}."""
        from litpeft.analysis.comparison import Run as ComparedRun
        from litpeft.analysis.report.curves import read_curves

        return read_curves(ComparedRun(self.folder, self.record, {}))

    def model(self, accelerator: str = "auto") -> FineTuner:
        """Return the task with the trained weights, in evaluation mode; its `backbone` is the model of transformers.

        Args:
            accelerator: as `trainer__accelerator`: `cpu`, `gpu` or `auto`.

        Raises:
            UserError: the run has no checkpoint, or the base weights are not those of the run.
        """
        return self._built(accelerator).model.eval()

    def predict(self, texts: str | Sequence[Any], accelerator: str = "auto") -> list[dict[str, Any]]:
        """Return a prediction for each text, as `litpeft predict` writes them: label and probabilities, or a response.

        Args:
            texts: texts; pairs of texts, for a data set of pairs; for a language model, questions or conversations
                (lists of turns with `role` and `content`).
            accelerator: as in `model`.

        Raises:
            UserError: the run is not one on texts, or a text cannot be used.
        """
        from litpeft.api.predictions import predictions

        run = self._built(accelerator)
        return predictions(run.model, run.datamodule, [texts] if isinstance(texts, str) else list(texts), accelerator)

    def export(
        self, folder: str | os.PathLike[str], format: Literal["adapter", "merged", "gguf"] = "adapter", **options: Any
    ) -> Path:
        """Write the trained model as `litpeft export` does; return the folder.

        Args:
            folder: folder to write; must not exist.
            format: `adapter`, the trained tensors in PEFT's format, `merged`, a full model, or `gguf`, for llama.cpp.
            options: `base`, `dtype`, `checkpoint`, `overwrite`, `push`, `public` and `license`, as of `litpeft export`.
        """
        from litpeft.commands.export import main

        with naming_arguments():
            main([str(self.folder), os.fspath(folder), f"--format={format}", *option_words(options)])
        return Path(folder)

    def _built(self, accelerator: str) -> FinishedRun:
        """Return the run's task and data, with the trained weights on the device; anew if the run was trained on."""
        record = self.folder / FILE_NAME
        key = accelerator, record.stat().st_mtime_ns if record.is_file() else None
        if self._finished is None or self._finished[0] != key:
            from litpeft.cli.console import quieten
            from litpeft.cli.finished_run import FinishedRun

            quieten()
            with naming_arguments():
                run = FinishedRun(self.folder, None, accelerator, "loaded")
                run.build(run.trainer.strategy.root_device)
            self._finished = key, run
        return self._finished[1]

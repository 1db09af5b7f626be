"""`litpeft fit|validate|test|predict`: LightningCLI over tasks, adapters, data sets and recorders."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock
from jsonargparse import ActionYesNo, Namespace
from lightning import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import litpeft.adapters
import litpeft.optim
import litpeft.tasks
from litpeft.adapters.base_options import base_name
from litpeft.callbacks import (
    BenchmarkEvaluation,
    Checkpoint,
    ConfusionRecorder,
    EnergyRecorder,
    ExampleRecorder,
    FolderCheckpointIO,
    ImageGrid,
    MemoryRecorder,
    PredictionWriter,
    ProgressBar,
    ProgressLines,
    RunRecorder,
    ScheduleFreeWeights,
    ThroughputRecorder,
    on_trainable_tensors,
)
from litpeft.cli.arguments import typed_options, with_configs
from litpeft.cli.console import show
from litpeft.cli.error_context import naming_source, naming_trainer_option
from litpeft.cli.loggers import LOGGER_HELP, fill_in_loggers, logger_names, loggers_of_run
from litpeft.cli.option_checks import check_distributed, check_trainer, check_values, is_distributed, name_devices
from litpeft.cli.parser import OneLineParser, check_classes, class_at, plain_message
from litpeft.cli.run_folder import keep_old_options, lock_run_folder, selected_checkpoint, set_devices_and_batches
from litpeft.cli.run_names import run_names
from litpeft.data import FineTuneData
from litpeft.errors import UserError
from litpeft.runs.folder import (
    CHECKPOINTS,
    changed_options,
    check_resumable,
    check_run_folder,
    newest_checkpoint,
    remove_leftovers,
    saved_config,
)
from litpeft.runs.record import FILE_NAME, read_record
from litpeft.runs.summary import metric_text, summary
from litpeft.tasks import FineTuner
from litpeft.training.loop import save_between_steps
from litpeft.training.outlets import send
from litpeft.training.processes import is_first_process
from litpeft.training.strategies import STRATEGIES

# options of this command that are not saved in the run's config.yaml
NOT_SAVED = ("run_dir", "experiment", "resume", "overwrite", "ckpt_path", "weights_only")

DEFAULTS = {"devices": 1, "use_distributed_sampler": False, "log_every_n_steps": 10, "enable_model_summary": False}


class LitPeftCLI(LightningCLI):
    """LightningCLI with one folder per run, recorders that are always on, and the model's tokenizer as the default.

    Args:
        verb: fit, validate, test or predict.
        arguments: the command line after the verb.
    """

    runs: type[Trainer] = Trainer  # the parser finds each verb as a method of this class

    def __init__(self, verb: str, arguments: list[str]) -> None:
        self.verb, self.arguments = verb, arguments
        self.lock: FileLock | None = None
        try:
            self._run()
        finally:
            if isinstance(trainer := getattr(self, "trainer", None), Trainer):  # a class where trials are resolved
                send(trainer.loggers, "close", self.recorder.record["status"])
            if self.lock is not None:
                self.lock.release()

    def _run(self) -> None:
        """Parse and run; LightningCLI does both in its constructor."""
        arguments = with_configs(self.verb, self.arguments)
        with naming_source(arguments):
            super().__init__(
                FineTuner,
                FineTuneData,
                trainer_class=self.runs,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=None,  # RunRecorder writes it, into the run folder
                seed_everything_default=0,
                parser_class=OneLineParser,
                parser_kwargs={"prog": "litpeft", "env_prefix": "LITPEFT"},
                trainer_defaults=DEFAULTS,
                args=[self.verb, *arguments],
            )

    def subcommands(self) -> dict[str, set[str]]:
        """Return only the verb that runs, because building each parser takes most of a second."""
        return {self.verb: LightningCLI.subcommands()[self.verb]}

    def add_arguments_to_parser(self, parser: OneLineParser) -> None:
        parser.add_argument(
            "--run_dir", type=str | None, help="folder of the run (default: runs/EXPERIMENT/WHAT_VARIES/seedN)"
        )
        if self.verb == "fit":
            parser.add_argument(
                "--experiment",
                type=str | None,
                help="name under which runs are grouped (default: the name of the config that sets the data)",
            )
            parser.add_argument(
                "--resume", action=ActionYesNo, default=False, help="resume from the newest checkpoint in run_dir"
            )
            parser.add_argument("--overwrite", action=ActionYesNo, default=False, help="replace the run in run_dir")
        parser.add_argument("--logger", type=str | None, help=LOGGER_HELP)  # in the config of a run
        parser.add_lightning_class_args(ThroughputRecorder, "throughput")
        parser.add_lightning_class_args(MemoryRecorder, "memory")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(ExampleRecorder, "record")
        parser.add_lightning_class_args(BenchmarkEvaluation, "benchmarks")

    def _set_seed(self) -> None:
        seed = self.config[self.verb].seed_everything
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise UserError(f"seed_everything must be from 0 to {2**32 - 1}, got {seed}.")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Fill in options that depend on other options, and choose the run folder before anything is loaded."""
        options = self.config[self.verb]
        if options.model is None or options.data is None or class_at(options.model.class_path) is FineTuner:
            raise UserError("required: --model, a task such as SequenceClassification, and --data, a data set.")
        check_values(options)
        logger_names(options.logger)
        check_classes(options)
        trainer, model, data = options.trainer, options.model.init_args, options.data.init_args
        if self.verb in ("validate", "test", "predict"):
            set_devices_and_batches(options, dict(typed_options(self.arguments)))
        check_trainer(trainer)
        name_devices(trainer.callbacks)
        check_distributed(options, self.verb)
        if trainer.max_epochs is None and trainer.max_steps == -1 and trainer.max_time is None:
            trainer.max_epochs = 1  # Lightning's own default is 1000
        if os.path.isdir(model.model_name):  # the run must find the model from any folder
            model.model_name = os.path.abspath(model.model_name)
        if data.tokenizer is None:
            data.tokenizer = model.model_name
        if self.verb == "fit":
            self._fit_folder(options)
        else:
            self._finished_folder(options)

    def _fit_folder(self, options: Namespace) -> None:
        adapter = options.model.init_args.adapter
        kind = class_at(adapter.class_path) if adapter else litpeft.adapters.Full
        name = kind.strategy_name(dict(adapter.init_args) if adapter and adapter.get("init_args") else {})
        base = base_name(options.model.init_args.get("base"))
        name = name if base is None else f"{name}-{base}"
        experiment, run_name = run_names(
            typed_options(self.arguments), name, options.data.class_path.rpartition(".")[2]
        )
        experiment, seed = options.experiment or experiment, options.seed_everything
        self.run_dir = Path(options.run_dir or f"runs/{experiment}/{run_name}/seed{seed}")
        if options.ckpt_path is not None:
            raise UserError(
                "--ckpt_path: to resume a fit from its newest checkpoint, give --run_dir RUN --resume instead."
            )
        if options.resume:
            keep_old_options(options, self.run_dir)
        config = self._resolved()
        self.checkpoint = record = None
        if is_distributed(options.trainer) and not is_first_process():  # only the first process owns the folder
            if options.resume:
                record, self.checkpoint = read_record(self.run_dir, True), self.run_dir / CHECKPOINTS
            self.recorder = RunRecorder(config, experiment, run_name, resumed=record)
            return
        self.lock = lock_run_folder(self.run_dir)  # before anything in the folder is read or changed
        remove_leftovers(self.run_dir)
        stale = check_run_folder(self.run_dir, config, options.resume, options.overwrite)
        if options.resume:
            record = read_record(self.run_dir, to_write=True)
            check_resumable(saved_config(self.run_dir), config, self.run_dir, record)
            self.checkpoint = newest_checkpoint(self.run_dir)
        self.recorder = RunRecorder(config, experiment, run_name, stale, record)
        fill_in_loggers(options, self, name)

    def _resolved(self) -> dict[str, Any]:
        """Return all options of the run as plain values."""
        self._dump_config()  # of Lightning, which needs this dump too; each takes a tenth of a second
        return {key: value for key, value in self.config_dump.items() if key not in NOT_SAVED}

    def _finished_folder(self, options: Namespace) -> None:
        """Find the run folder, the checkpoint to evaluate and the label names of a finished run."""
        self.recorder = RunRecorder()
        self.checkpoint = options.ckpt_path
        if options.run_dir is None and self.checkpoint is None:
            raise UserError(f"litpeft {self.verb} needs --run_dir, the folder of a run.")
        self.run_dir = Path(options.run_dir or Path(self.checkpoint).resolve().parent.parent)
        record = read_record(self.run_dir, to_write=self.verb == "test")
        keep_old_options(options, self.run_dir)
        found = record["data_summary"] or {}
        for name in class_at(options.data.class_path).from_training_rows:
            if found.get(name) and name in options.data.init_args and not options.data.init_args[name]:
                options.data.init_args[name] = found[name]
        if self.checkpoint is not None:  # chosen with --ckpt_path: not the weights that the record describes
            return
        self.checkpoint = selected_checkpoint(self.run_dir, record)
        if self.verb == "test":
            changed = changed_options(saved_config(self.run_dir)["model"], self._resolved()["model"])
            for name, (old, new) in changed.items():
                raise UserError(
                    f"model.{name} is {new}, but the run was made with {old}; leave it out to test the run."
                )
            record["checkpoint"] = str(self.checkpoint.relative_to(self.run_dir))
            self.recorder = RunRecorder(resumed=record)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            raise UserError(plain_message(str(error))) from error

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Create the trainer. Recorders come before other callbacks, so that timing excludes the other callbacks."""
        given = self.config_init[self.verb]
        settings = {**given.trainer, **options}
        # other verbs: the curves in the run folder are from training
        settings["logger"] = loggers_of_run(self, settings["logger"]) if self.verb == "fit" else False
        given.benchmarks.resume_with(self.recorder.record["benchmarks"])
        extra = settings["callbacks"] or []
        extra = on_trainable_tensors(extra if isinstance(extra, list) else [extra])
        single = self.verb != "fit" or not is_distributed(given.trainer)
        if not single:
            settings["strategy"] = STRATEGIES["ddp" if settings["strategy"] == "auto" else settings["strategy"]]()
        shown = settings["enable_progress_bar"] is not False and (single or is_first_process())
        if shown and not any(isinstance(c, lightning_callbacks.ProgressBar) for c in extra):
            extra = [*extra, ProgressBar() if sys.stdout.isatty() else ProgressLines()]
        settings["callbacks"] = [
            given.throughput,
            given.memory,
            EnergyRecorder(),
            *extra,
            ScheduleFreeWeights(),
            given.predictions,
            given.record,
            ConfusionRecorder(),
            ImageGrid(),
            given.checkpoint,
            given.benchmarks,
            self.recorder,
        ]
        plugins = settings["plugins"] or []
        settings["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), FolderCheckpointIO()]
        with naming_trainer_option():
            trainer = Trainer(**settings | {"default_root_dir": str(self.run_dir)})
        save_between_steps(trainer, given.checkpoint)
        return trainer

    def before_fit(self) -> None:
        self.recorder.announce(self.trainer)

    def after_fit(self) -> None:
        """Print the summary of the run."""
        if self.trainer.is_global_zero:
            show(f"{self.run_dir}/{FILE_NAME}", summary(self.recorder.record))

    def after_validate(self) -> None:
        """Print the metrics and the checkpoint that they belong to."""
        metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        shown = {name: metric_text(name, value) for name, value in sorted(metrics.items())}
        show(str(self.checkpoint), [(name.replace("_", " "), value) for name, value in shown.items()])

    after_test = after_validate

    def after_instantiate_classes(self) -> None:
        """Pass the checkpoint to the verb. It is a folder, so LightningCLI does not read options from it."""
        self.config_init[self.verb]["ckpt_path"] = str(self.checkpoint) if self.checkpoint else None
        self.model.adapter._checkpoint_follows = self.checkpoint is not None
        if self.verb in ("validate", "test"):
            self.config_init[self.verb]["verbose"] = False  # litpeft prints the table

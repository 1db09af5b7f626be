"""A finished run: its task, data and trained weights, for commands such as export and evaluate."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from litpeft.callbacks import FolderCheckpointIO
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.cli.shared_model import shares_model
from litpeft.runs.folder import step_of
from litpeft.runs.record import read_record
from litpeft.tasks import FineTuner


class FinishedRun(LitPeftCLI):
    """The task and data of a finished run, created as for `litpeft predict`, and its trained weights.

    Args:
        run_dir: folder of the run.
        checkpoint: checkpoint folder to use instead of the run's selected checkpoint.
        accelerator: as `--trainer.accelerator`.
        purpose: past participle for the warning about a run that did not end with status ok, such as "exported".

    Attributes:
        record: the run record.
        state: the trainable tensors of the checkpoint, by name.
    """

    def __init__(self, run_dir: Path, checkpoint: Path | None, accelerator: str, purpose: str) -> None:
        where = ["--ckpt_path", str(checkpoint)] if checkpoint else []
        super().__init__("predict", ["--run_dir", str(run_dir), "--trainer.accelerator", accelerator, *where])
        self.record = read_record(self.run_dir)
        self.checkpoint = Path(self.checkpoint)
        if self.record["status"] != "ok":
            print(
                f"litpeft: the run is {self.record['status']}; its checkpoint {self.checkpoint.name} is {purpose}.",
                file=sys.stderr,
            )
        self._loaded = FolderCheckpointIO().load_checkpoint(self.checkpoint)
        self.state = self._loaded["state_dict"]

    @property
    def step(self) -> int:
        """Number of optimizer steps at the checkpoint."""
        return step_of(self.checkpoint)

    def build(self, device: torch.device, like: FinishedRun | None = None) -> torch.nn.Module:
        """Build the model with the trained weights on `device`.

        Args:
            device: the device.
            like: a run that has been built: if both have the same model and adapter, its model is taken over with the
                weights of this run, instead of reading the base again.
        """
        if like is not None and like.model.backbone is not None and shares_model(self, like):
            self.model = like.model
            self.model.take_data(self.datamodule)
        else:
            self.model.build(self.datamodule, device)
        self.model.check_checkpoint(self._loaded)
        self.model.load_state_dict(self.state)
        self.model.to(device)
        return self.model.backbone

    def _run_subcommand(self, subcommand: str) -> None: ...


def trained_task(run_dir: Path | str, checkpoint: Path | str | None = None, accelerator: str = "cpu") -> FineTuner:
    """Return the task of a run with its trained weights, in evaluation mode, for use in Python.

    Args:
        run_dir: folder of the run.
        checkpoint: checkpoint folder to use instead of the run's selected checkpoint.
        accelerator: as `--trainer.accelerator`: `cpu`, `gpu` or `auto`.

    Raises:
        UserError: the folder has no run or no checkpoint, or the base weights are not those of the run.
    """
    run = FinishedRun(Path(run_dir), checkpoint and Path(checkpoint), accelerator, "loaded")
    run.build(run.trainer.strategy.root_device)
    return run.model.eval()

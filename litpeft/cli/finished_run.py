"""A finished run's task with the weights that it stands for, for a command that does something else with them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from litpeft.callbacks import FolderCheckpointIO
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.runs.folder import step_of
from litpeft.runs.record import read_record


class FinishedRun(LitPeftCLI):
    """Its task and data, as `predict` would have them, and nothing done with them.

    Args:
        run_dir: folder of the run.
        checkpoint: other than the one that the run stands for.
        accelerator: as `--trainer.accelerator`.
        purpose: what is done with it, said where the run did not end well.

    Attributes:
        record: of the run.
        state: the trainable tensors of the checkpoint.
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
        """Optimizer steps of the checkpoint."""
        return step_of(self.checkpoint)

    def build(self, device: torch.device) -> torch.nn.Module:
        """The model, anew, with these weights, on the device."""
        self.model.build(self.datamodule, device)
        self.model.check_checkpoint(self._loaded)
        self.model.load_state_dict(self.state)
        self.model.to(device)
        return self.model.backbone

    def _run_subcommand(self, subcommand: str) -> None: ...

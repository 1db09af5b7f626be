"""`litpeft data`: what a run would train on, without training."""

from __future__ import annotations

import os
import sys
from typing import Any

from lightning import Trainer

from litpeft.cli.console import quieten
from litpeft.cli.planned_run import PlannedRunCLI
from litpeft.data.told import shown, tell
from litpeft.errors import UserError


class DataCLI(PlannedRunCLI):
    """The options of `fit` plus those of `data`."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--examples", type=int, default=3, help="number of rows to show")
        parser.add_argument("--split", type=str, default="train", help="split of these rows: train, val or test")


def main(arguments: list[str]) -> int:
    """Print the rows of each split, what is left out, and examples; create no run folder and load no weights."""
    quieten()
    cli = DataCLI("show_data", arguments)  # `data` is a group of options already
    options, data = cli.config["show_data"], cli.datamodule
    if options.split not in ("train", "val", "test"):
        raise UserError(f"--split must be train, val or test, got {options.split}.")
    if options.examples < 0:
        raise UserError(f"--examples must not be negative, got {options.examples}.")
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.strategy.connect(cli.model)  # data sets ask the task whether its model has an encoder
    data.trainer = trainer
    data.setup("fit")
    if options.split == "test":
        data.setup("test")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    tell(data.describe() | {"example": []})
    rows = data.head if options.split == "train" and getattr(data, "streaming", False) else data
    for index in range(min(options.examples, len(rows.rows[options.split].rows))):
        print(f"--- {options.split} row {index + 1} ({'green' if colour else '« »'} has loss)")
        print(shown(rows.example(options.split, index), colour))
    return 0

"""Several finished runs on one base: the base is read once, and the trained weights are switched."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.errors import UserError
from litpeft.runs.record import read_record

# options of a task that do not change what it computes
FOR_TRAINING = ("optimizer", "scheduler", "class_weights", "label_smoothing", "positive_weights", "loss", "metrics")


def shares_model(one: LitPeftCLI, other: LitPeftCLI) -> bool:
    """Return whether two runs differ only in their trained weights, and in what is needed to train them."""
    return _key(one) == _key(other)


def _key(cli: LitPeftCLI) -> tuple[object, ...]:
    options, record = cli.config[cli.verb].model.as_dict(), read_record(cli.run_dir)
    task = {name: value for name, value in options["init_args"].items() if name not in FOR_TRAINING}
    adapter = dict(task.get("adapter") or {})
    adapter["init_args"] = {k: v for k, v in (adapter.get("init_args") or {}).items() if k != "init_from"}
    names = (record["data_summary"] or {}).get("label_names")
    data = cli.datamodule
    return options["class_path"], task | {"adapter": adapter}, names, data.max_length, record["new_tensors"]


class _Prediction(LitPeftCLI):
    """`litpeft predict` of one run with the model of another run, if both have the same model and adapter."""

    def __init__(self, arguments: list[str], like: LitPeftCLI | None) -> None:
        self.like = like
        super().__init__("predict", arguments)

    def after_instantiate_classes(self) -> None:
        super().after_instantiate_classes()
        if self.like is None:
            return
        if shares_model(self, self.like):
            self.model = self.like.model
        else:
            print(f"litpeft: {self.run_dir} has another model or adapter, so its base is read again.", file=sys.stderr)
            self.like.model.backbone = None  # frees the memory


def predict_runs(run_dirs: Sequence[str], options: list[str]) -> None:
    """Run `litpeft predict` for each run folder, with one base in memory where the runs share it.

    Args:
        run_dirs: folders of finished runs.
        options: further options of `litpeft predict`.

    Raises:
        UserError: an option names one file or folder for all runs.
    """
    for option in ("--run_dir", "--ckpt_path", "--predictions.file"):
        if any(word.partition("=")[0] == option for word in options):
            raise UserError(f"{option} is for one run; leave it out: each run's predictions are written to its folder.")
    earlier = None
    for run_dir in run_dirs:
        earlier = _Prediction(["--run_dir", run_dir, *options], earlier)

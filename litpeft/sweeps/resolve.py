"""What a trial's options come to: the whole configuration that `litpeft fit` would run with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning import Trainer

from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.errors import UserError
from litpeft.runs.folder import changed_options
from litpeft.sweeps.experiment import Trial


class _Resolving(LitPeftCLI):
    """Reads the options of a `fit`, and goes no further."""

    _parsers: dict[str, Any] = {}

    def setup_parser(self, *arguments: Any) -> None:
        """Building one takes most of a second; all trials are read by the same."""
        if not self._parsers:
            super().setup_parser(*arguments)
            self._parsers |= {"parser": self.parser, "_subcommand_parsers": self._subcommand_parsers}
        for name, parser in self._parsers.items():
            setattr(self, name, parser)

    def _set_seed(self) -> None: ...

    def _fit_folder(self, options: Any) -> None:
        self.resolved = self._resolved()

    def instantiate_classes(self) -> None:
        self.model, self.datamodule, self.trainer = None, None, Trainer

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def resolve(trials: Iterable[Trial]) -> dict[str, dict[str, Any]]:
    """The configuration of each trial by its name.

    Raises:
        UserError: one of them cannot be read; says which.
    """
    found = {}
    for trial in trials:
        try:
            found[trial.name] = _Resolving("fit", list(trial.words)).resolved
        except UserError as error:
            raise UserError(f"trial {trial.label}: {error}") from error
    return found


def varying(configs: Iterable[dict[str, Any]]) -> list[str]:
    """The options in which any two of these configurations differ, by dotted name."""
    first, *others = configs
    return sorted({name for other in others for name in changed_options(first, other)})

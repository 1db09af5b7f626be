"""Resolve the configurations of trials as `litpeft fit` would."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning import Trainer

from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.errors import UserError
from litpeft.runs.folder import changed_options
from litpeft.sweeps.composed import configs_of
from litpeft.sweeps.experiment import Trial


class _Resolving(LitPeftCLI):
    """The command line of `fit`, which stops after the configuration is resolved."""

    _parsers: dict[str, Any] = {}

    def setup_parser(self, *arguments: Any) -> None:
        """Reuse one parser for all trials, because building a parser takes most of a second."""
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
    """Return the resolved configuration of each trial by its name; they share equal parts, so none may be changed.

    Raises:
        UserError: the options of a trial are invalid.
    """
    trials = list(trials)
    labels = {trial.arguments: trial.shown(trial.label) for trial in reversed(trials)}

    def parse(arguments: tuple[str, ...]) -> dict[str, Any]:
        try:
            return _Resolving("fit", list(arguments)).resolved
        except UserError as error:
            raise UserError(f"trial {labels.get(arguments, '')}: {error}") from error

    configs = configs_of([trial.arguments for trial in trials], parse)
    return {trial.name: config for trial, config in zip(trials, configs, strict=True)}


def varying(configs: Iterable[dict[str, Any]]) -> list[str]:
    """Return the dotted names of the options in which any two configurations differ."""
    first, *others = configs
    names: set[str] = set()
    for other in others:
        names |= changed_options(_not_shared(first, other), _not_shared(other, first)).keys()
    return sorted(names)


def _not_shared(config: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a configuration that are not the same objects in the other: trials share most of theirs."""
    return {
        key: _not_shared(value, other[key]) if isinstance(value, dict) and isinstance(other.get(key), dict) else value
        for key, value in config.items()
        if key not in other or other[key] is not value
    }

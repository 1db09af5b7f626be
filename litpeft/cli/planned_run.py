"""The options of a `fit`, read for a command that has other plans with its task and data."""

from __future__ import annotations

import inspect
from typing import Any

from lightning import Trainer

from litpeft import adapters
from litpeft.adapters import Adapter
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.errors import UserError


class _Planning(Trainer):
    """Has a method for each verb, by which the parser finds it."""

    def estimate(self, model: Any, datamodule: Any) -> None: ...

    def find_lr(self, model: Any, datamodule: Any) -> None: ...


class UnstartedCLI(LitPeftCLI):
    """The task and the data of a `fit`, and nothing done with them: no folder is made, no trainer."""

    runs = _Planning

    def subcommands(self) -> dict[str, set[str]]:
        return {self.verb: {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--compare", type=str | None, help="adapters beside each other: none,lora,dora,qlora-nf4,qlora-fp4"
        )

    def _finished_folder(self, options: Any) -> None:
        """There is none: nothing is written."""

    def instantiate_trainer(self, **_: Any) -> None:
        return None

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...

    def adapters(self) -> list[Adapter]:
        """Those that `--compare` names, with the options of the task's own that they have too; else the task's own."""
        named = self.config[self.verb].compare
        own = self.model.adapter
        return [_adapter(name.strip(), own) for name in named.split(",")] if named else [own]


def _adapter(name: str, like: Adapter) -> Adapter:
    """The adapter of this name, with those options of another one that it has too."""
    kinds = {getattr(adapters, each).name: getattr(adapters, each) for each in adapters.__all__ if each != "Adapter"}
    base, _, quant_type = name.partition("-")
    kind = kinds.get(base)
    if kind is None or (quant_type and quant_type not in ("nf4", "fp4")) or bool(quant_type) != base.startswith("q"):
        known = [f"{each}-nf4" if each.startswith("q") else each for each in kinds]
        raise UserError(f"--compare: no adapter is called {name!r}; known: {', '.join(known)} (or -fp4).")
    takes = {option for parent in kind.__mro__ for option in inspect.signature(parent.__init__).parameters}
    options = {option: value for option, value in vars(like).items() if option in takes}
    return kind(**options | ({"quant_type": quant_type} if quant_type else {}))

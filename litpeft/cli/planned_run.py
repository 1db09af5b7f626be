"""A planned run: the task and data of `litpeft fit` options, for commands that do not train them."""

from __future__ import annotations

import inspect
from typing import Any

from lightning import Trainer

from litpeft import adapters
from litpeft.adapters import Adapter, Peft
from litpeft.adapters.peft_options import OWN_TARGETS, compared_method
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.errors import UserError
from litpeft.runs.strategy_names import shown_name, stored_name


class _Planning(Trainer):
    """A trainer class with a method for each planning verb, because the parser looks verbs up as methods."""

    def estimate(self, model: Any, datamodule: Any) -> None:
        """Estimate the memory of a run; its own options come first, those of `fit` follow."""

    def show_data(self, model: Any, datamodule: Any) -> None:
        """Show the data of a run; its own options come first, those of `fit` follow."""

    def find_lr(self, model: Any, datamodule: Any) -> None:
        """Find learning rates with a range test; its own options come first, those of `fit` follow."""


class PlannedRunCLI(LitPeftCLI):
    """Create the task and data of a `fit` command, but no trainer and no run folder."""

    runs = _Planning

    def subcommands(self) -> dict[str, set[str]]:
        return {self.verb: {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)
        if self.verb == "show_data":
            return
        parser.add_argument(
            "--compare", type=str | None, help="adapters to compare: full,lora,dora,qlora-nf4,qlora-fp4"
        )

    def _finished_folder(self, options: Any) -> None:
        """Do nothing: no run folder is needed."""

    def instantiate_trainer(self, **_: Any) -> None:
        return None

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...

    def adapters(self) -> list[Adapter]:
        """Return the adapters that `--compare` names, with the options of the task's adapter; else that adapter."""
        named = self.config[self.verb].compare
        own = self.model.adapter
        if not named:
            return [own]
        found = [_adapter(name.strip(), own) for name in named.split(",")]
        for adapter in found:
            if self.model.base is not None and not (adapter is own or adapter.quantises or adapter.trains_base):
                adapter.put_on(self.model.base)
        return found


def _adapter(name: str, like: Adapter) -> Adapter:
    """Create an adapter by name, with the options of `like` that the new adapter also has."""
    name = stored_name(name)
    if (method := compared_method(name)) is not None:
        return _peft(method, like)
    classes = [getattr(adapters, each) for each in adapters.__all__ if each not in ("Adapter", "Peft")]
    kinds = {kind.name: kind for kind in classes}
    base, _, quant_type = name.partition("-")
    kind = kinds.get(base)
    if kind is None or (quant_type and quant_type not in ("nf4", "fp4")) or bool(quant_type) != base.startswith("q"):
        known = [f"{each}-nf4" if each.startswith("q") else shown_name(each) for each in kinds]
        raise UserError(
            f"--compare: no adapter is named {name!r}; known: {', '.join(known)} (or -fp4), and the "
            "methods of PEFT, such as ia3."
        )
    takes = {option for parent in kind.__mro__ for option in inspect.signature(parent.__init__).parameters}
    options = {option: value for option, value in vars(like).items() if option in takes and value is not None}
    return kind(**options | ({"quant_type": quant_type} if quant_type else {}))


def _peft(method: str, like: Adapter) -> Peft:
    """Create an adapter of PEFT with the options of `like`, if that has this method, and with its targets otherwise."""
    if isinstance(like, Peft) and like.method == method:
        return like
    shared = ["modules_to_save", *(["targets", "exclude", "layers"] if method not in OWN_TARGETS else [])]
    return Peft(method, **{option: value for option in shared if (value := getattr(like, option, None))})

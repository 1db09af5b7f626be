"""The classes that options name, and the arguments of these classes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterator
from typing import Any

from lightning import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from litpeft.adapters import Adapter
from litpeft.data import FineTuneData
from litpeft.tasks import FineTuner

# option that names a class -> required base class
CLASSES: dict[str, type] = {
    "model": FineTuner,
    "model.adapter": Adapter,
    "model.optimizer": Optimizer,
    "model.scheduler": LRScheduler,
    "data": FineTuneData,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
PARTS = ("adapter", "scheduler", "optimizer")  # options of a task that name a class
OURS = ("data", "model.adapter", "model.scheduler")  # options whose classes litpeft provides


def class_at(path: str) -> Any:
    """Return the class at a path such as `litpeft.adapters.LoRA`."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def derived(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from derived(child)


def takes(kind: type, name: str) -> bool:
    """Return whether a class or one of its parents takes this argument."""
    return any(name in inspect.signature(cls.__init__).parameters for cls in kind.__mro__)


def public_names(kind: type, option: str | None = None) -> set[str]:
    """Return the names of the public subclasses of `kind`; with `option`, only of those that take this argument."""
    kinds = [child for child in derived(kind) if is_public(child)]
    return {child.__name__ for child in kinds if option is None or takes(child, option)}


def is_public(kind: type) -> bool:
    """Return whether messages may suggest a class: no `_Name`, and litpeft's only if their package imports them."""
    folder = kind.__module__.rpartition(".")[0]
    if kind.__name__.startswith("_"):
        return False
    return not folder.startswith("litpeft.") or hasattr(importlib.import_module(folder), kind.__name__)


def arguments_of(kind: type | None) -> set[str]:
    """Return the names of all arguments that `kind` and its subclasses take."""
    if kind is None:
        return set()
    classes = [kind, *derived(kind)]
    return {
        name
        for cls in classes
        for name in inspect.signature(cls.__init__).parameters
        if name not in ("self", "options")
    }


def own_kinds(kind: type) -> list[type]:
    """Return the public subclasses of `kind` that litpeft provides."""
    return [child for child in derived(kind) if child.__module__.startswith("litpeft.") and is_public(child)]


def types_of(kind: type, names: Collection[str]) -> dict[str, str | None]:
    """Return the arguments of a class and its parents, with their type if it is one of `names`, else None."""
    found: dict[str, str | None] = {}
    for cls in kind.__mro__:
        for name, argument in inspect.signature(cls.__init__).parameters.items():
            if name != "self" and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
                written = str(argument.annotation)
                found.setdefault(name, written if written in names else None)
    return found

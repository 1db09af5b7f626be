"""The command line's parser: a mistake is one sentence with a suggestion, not a page of usage."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from litpeft.adapters import Adapter
from litpeft.data import FineTuneData
from litpeft.errors import UserError
from litpeft.tasks import FineTuner

# options that name a class -> what the class must derive from
CLASSES: dict[str, type] = {
    "model": FineTuner,
    "model.adapter": Adapter,
    "model.optimizer": Optimizer,
    "model.scheduler": LRScheduler,
    "data": FineTuneData,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
PARTS = ("adapter", "scheduler", "optimizer")  # classes that a task is given
OWN = ("data", "model.adapter", "model.scheduler")  # options whose classes are ours
# what jsonargparse lists beside the reason: the alternatives that it tried, and what it was given
NOISE = re.compile(
    r"Expected a path but|Problem with given class_path|Does not validate against any|Subtypes:|Errors:|Given value"
    r"|Expected a <class 'NoneType'>"
)
CALLABLE = re.compile(
    r"Type .* expects a function or a callable class: "
)  # before what is wrong with an argument of one
SHAPE = re.compile(r"Expected a <class 'list'>")  # an alternative that is told of only where there is no other


class OneLineParser(LightningArgumentParser):
    """Raises `UserError` where the stock parser prints its usage and exits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # --trainer.max_epoch would be taken for --trainer.max_epochs, and a new option could change what a script means
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser within the parser: the outer one knows the option's whole name
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
        raise UserError(sentence(message, options)) from ex


def sentence(message: str, options: Iterable[str] = ()) -> str:
    """The reason in what jsonargparse says, as one sentence that names the option.

    Args:
        message: its text, of many lines where it tried alternatives.
        options: known options, with their dashes.
    """
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)|does not accept option '(\S+)'", message):
        known = [*options, *(f"--{path}.{name}" for path, kind in CLASSES.items() for name in _arguments(kind))]
        if match[2]:  # which stands in a file
            known = [name.removeprefix("--") for name in known]
        word = (match[1] or match[2]).replace(".init_args", "")
        return f"unknown option {word}{_guess(word.split('=')[0], known)}."
    keys, reasons = [], []
    for line in message.splitlines():
        line = CALLABLE.sub("", line.strip().removeprefix("- "))
        while match := re.match(r'Parser key "([^"]+)":\s*', line):
            keys.append(match[1])
            line = line[match.end() :].removeprefix("- ")
        if line and not NOISE.match(line):
            reasons.append(line)
    reasons = [re.sub(r"\. Got value: Namespace\(.*", "", reason) for reason in reasons]  # all of a class
    reasons.sort(key=lambda reason: bool(SHAPE.match(reason)))
    path = ".".join(dict.fromkeys(keys))
    return _said(path, reasons[0] if reasons else " ".join(message.split()))


def _said(path: str, reason: str) -> str:
    """One of jsonargparse's reasons in our words."""
    if match := re.match(r"Expected a dot import path string: (.*)", reason):
        names = sorted({kind.__name__ for kind in _derived(CLASSES[path]) if _shown(kind)}) if path in CLASSES else []
        listed = f"; known: {', '.join(names)}" if 0 < len(names) < 10 else ""
        return f"{path}: no class named {match[1]!r}{_guess(match[1], names)}{listed}."
    if match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", reason):
        names = [f"{match[1]}.{name}" for name in vars(importlib.import_module(match[1]))]
        return f"{path}: there is no {match[1]}.{match[2]}{_guess(f'{match[1]}.{match[2]}', names)}."
    if match := re.search(r"Option '([^']+)' is not accepted", reason):
        if match[1] in _arguments(CLASSES.get(path)):
            own = {kind.__name__ for kind in _derived(CLASSES[path]) if _shown(kind) and _takes(kind, match[1])}
            named = ", ".join(sorted(own))
            return f"{path}.{match[1]}: name a class that has it ({named}) before its options (--{path} ...)."
        return f"{path} has no option {match[1]!r}{_guess(match[1], _arguments(CLASSES.get(path)))}."
    if match := re.match(r"Expected an? (?:typing\.)?(.+?)\.?(?: Got value: (.*))?$", reason):
        wanted = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", match[1])
        wanted = re.sub(r"Literal\[(.*)\]", r"one of \1", wanted).replace("list", "a list, as [a,b]")
        return f"{path} must be {wanted}{f', got {match[2]}' if match[2] else ''}."
    if reason.startswith("Exceeds the limit"):  # of Python's int, which a text is tried as too
        return f"{path}: a value in it has more than 4,300 digits."
    if match := re.match(r"Unable to load config (.*)", reason, re.DOTALL):
        return f"{path} must hold options by name, such as {path}.NAME, got {match[1].rstrip('.')}."
    if match := re.match(r"the following arguments are required: (.*)", reason):
        names = [
            name.partition(".")[2]
            if name.startswith(("fit.", "test.", "validate.", "predict.", "estimate.", "find_lr."))
            else name
            for name in match[1].split(", ")
        ]
        return f"required: {', '.join(f'--{path}.{name}' if path else f'--{name}' for name in names)}."
    prefix = f"{path}: " if path and not reason.startswith(("model.", "data.", "trainer.", "checkpoint.")) else ""
    return f"{prefix}{reason.rstrip('.')}."


def check_classes(options: Namespace) -> None:
    """Refuse a class that is only what others have in common.

    Raises:
        UserError: names it, and those that derive from it.
    """
    for path, told in {
        "data": options.data,
        **{f"model.{name}": options.model.init_args.get(name) for name in PARTS},
    }.items():
        name = getattr(told, "class_path", None)
        if told is None:
            continue
        if name is None or name.startswith("typing."):  # which jsonargparse makes of `{}`
            raise UserError(f"{path} names no class; give its class_path, or leave {path} out.")
        if path not in OWN:
            continue
        kind, last = class_at(name), name.rpartition(".")[2]
        if kind is CLASSES[path] or not _shown(kind):
            known = sorted({each.__name__ for each in _derived(CLASSES[path]) if _shown(each)})
            raise UserError(
                f"{path}: {last} is but what others derive from; name one of {', '.join(known)}, before its options."
            )
        _check_nulls(path, kind, told.get("init_args"))
    _check_nulls("model", class_at(options.model.class_path), options.model.get("init_args"))


def class_at(path: str) -> Any:
    """The class of a path such as `litpeft.adapters.LoRA`."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _check_nulls(path: str, kind: type, given: Namespace | None) -> None:
    """Refuse a null where a class takes none: jsonargparse lets it pass in a class that hands arguments on."""
    for name, value in vars(given).items() if given else ():
        if value is not None:
            continue
        signatures = (inspect.signature(cls.__init__).parameters for cls in kind.__mro__)
        told = next((arguments[name] for arguments in signatures if name in arguments), None)
        if told is None or told.default is None or re.search("None|Optional|Any|_empty", str(told.annotation)):
            continue
        way = "" if told.default is told.empty else f"; leave it out for {told.default!r}"
        raise UserError(f"{path}.{name} must be {told.annotation}, not null{way}.")


def _derived(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _derived(child)


def _takes(kind: type, name: str) -> bool:
    """Whether a class has this argument, its own or one that it hands on."""
    return any(name in inspect.signature(cls.__init__).parameters for cls in kind.__mro__)


def _shown(kind: type) -> bool:
    """Whether a class is one to name: of ours, those that their folder imports; of others', all."""
    folder = kind.__module__.rpartition(".")[0]
    return not folder.startswith("litpeft.") or hasattr(importlib.import_module(folder), kind.__name__)


def _arguments(kind: type | None) -> set[str]:
    """Names of all arguments that the classes below `kind` take."""
    if kind is None:
        return set()
    classes = [kind, *_derived(kind)]
    return {
        name
        for cls in classes
        for name in inspect.signature(cls.__init__).parameters
        if name not in ("self", "options")
    }


def _guess(word: str, known: Iterable[str]) -> str:
    names = {name.lower(): name for name in sorted(known)}
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""

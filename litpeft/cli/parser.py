"""The command line parser: a mistake gives one sentence with a suggestion instead of a page of usage."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any, NoReturn, get_args

from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from litpeft.cli import known_options
from litpeft.cli.class_options import CLASSES, OURS, PARTS, arguments_of, class_at, derived, is_public, public_names
from litpeft.cli.first_look import COMMON
from litpeft.cli.verbs import PLANNING
from litpeft.errors import UserError, did_you_mean

# lines of jsonargparse messages that are not the reason: the alternatives it tried and the value it was given
NOISE = re.compile(
    r"Expected a path but|Problem with given class_path|Does not validate against any|Subtypes:|Errors:|Given value"
    r"|Expected a <class 'NoneType'>"
)
CALLABLE = re.compile(r"Type .* expects a function or a callable class: ")  # stands before the reason
SHOWN_VERBS = {parser: verb for verb, parser in PLANNING.items()}
SHAPE = re.compile(r"Expected a <class 'list'>")  # reported only if there is no other reason


def _whole_numbers_first() -> None:
    """Let `--trainer.limit_train_batches 1` be one batch, also if another package was imported before Lightning.

    typing remembers the order of the first `Union[float, int]` of a process, such as rich's, for all that follow, and
    jsonargparse would then read 1 as 1.0, which is all batches.
    """
    hints = Trainer.__init__.__annotations__
    for name, hint in hints.items():
        kinds = get_args(hint)
        if set(kinds) in ({int, float}, {int, float, type(None)}):
            hints[name] = int | float | None if type(None) in kinds else int | float


_whole_numbers_first()


class OneLineParser(LightningArgumentParser):
    """A parser that raises `UserError` where the stock parser prints its usage and exits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # with abbreviations, a new option could change what an existing script means
        super().__init__(*args, allow_abbrev=False, **options)

    def format_help(self) -> str:
        """Return the help without the usage of the stock parser, 180 lines with the names of all options."""
        _, _, described = super().format_help().partition("\n\n")
        _, *verbs = (self.prog or "").split()
        if not verbs:  # of one class
            return described
        return f"usage: litpeft {SHOWN_VERBS.get(verbs[-1], verbs[-1])} [--OPTION VALUE ...]\n\n{described}"

    def parse_args(self, *args: Any, **options: Any) -> Namespace:
        if self._subcommands_action is not None:  # not an inner parser
            known_options.store(dict(self._subcommands_action._name_parser_map))
        return super().parse_args(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # an inner parser: the outer one knows the full option name
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
        raise UserError(plain_message(message, options)) from ex


def plain_message(message: str, options: Iterable[str] = ()) -> str:
    """Return a jsonargparse error as one sentence that names the option.

    Args:
        message: error text of jsonargparse; several lines if it tried alternatives.
        options: known options, with their dashes.
    """
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)|does not accept option '(\S+)'", message):
        known = [*options, *known_options.of_classes()]
        if match[2]:  # the option is in a file, without dashes
            known = [name.removeprefix("--") for name in known]
        word = (match[1] or match[2]).replace(".init_args", "")
        word = word.split("=")[0]
        guess = f" (did you mean {COMMON[word]}?)" if word in COMMON else did_you_mean(word, known)
        return f"unknown option {word}{guess}."
    keys, reasons = [], []
    for line in message.splitlines():
        line = CALLABLE.sub("", line.strip().removeprefix("- "))
        while match := re.match(r'Parser key "([^"]+)":\s*', line):
            keys.append(match[1])
            line = line[match.end() :].removeprefix("- ")
        if line and not NOISE.match(line):
            reasons.append(line)
    reasons = [re.sub(r"\. Got value: Namespace\(.*", "", reason) for reason in reasons]
    reasons.sort(key=lambda reason: bool(SHAPE.match(reason)))
    path = ".".join(dict.fromkeys(keys))
    return _rephrase(path, reasons[0] if reasons else " ".join(message.split()))


def _rephrase(path: str, reason: str) -> str:
    """Return a reason of jsonargparse as a plain sentence about the option `path`."""
    if match := re.match(r"Expected a dot import path string: (.*)", reason):
        names = sorted({kind.__name__ for kind in derived(CLASSES[path]) if is_public(kind)}) if path in CLASSES else []
        listed = f"; known: {', '.join(names)}" if 0 < len(names) < 20 else ""
        return f"{path}: no class named {match[1]!r}{did_you_mean(match[1], names)}{listed}."
    if match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", reason):
        names = [f"{match[1]}.{name}" for name in vars(importlib.import_module(match[1]))]
        return f"{path}: there is no {match[1]}.{match[2]}{did_you_mean(f'{match[1]}.{match[2]}', names)}."
    if match := re.search(r"Option '([^']+)' is not accepted", reason):
        if match[1] in arguments_of(CLASSES.get(path)):
            names = ", ".join(sorted(public_names(CLASSES[path], match[1])))
            return f"{path}.{match[1]}: first name a class that has this option ({names}) with --{path} ..."
        return f"{path} has no option {match[1]!r}{did_you_mean(match[1], arguments_of(CLASSES.get(path)))}."
    if match := re.match(r"Expected an? (?:typing\.)?(.+?)\.?(?: Got value: (.*))?$", reason):
        wanted = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", match[1])
        wanted = re.sub(r"Literal\[(.*)\]", r"one of \1", wanted).replace("list", "a list, as [a,b]")
        return f"{path} must be {wanted}{f', got {match[2]}' if match[2] else ''}."
    if reason.startswith("Exceeds the limit"):  # jsonargparse also tries to parse a text as an integer
        return f"{path}: a value in it has more than 4,300 digits."
    if match := re.match(r"Unable to load config (.*)", reason, re.DOTALL):
        return f"{path} must hold options by name, such as {path}.NAME, got {match[1].rstrip('.')}."
    if match := re.match(r"the following arguments are required: (.*)", reason):
        names = [
            name.partition(".")[2]
            if name.startswith(("fit.", "test.", "validate.", "predict.", "estimate.", "find_lr.", "show_data."))
            else name
            for name in match[1].split(", ")
        ]
        return f"required: {', '.join(f'--{path}.{name}' if path else f'--{name}' for name in names)}."
    prefix = f"{path}: " if path and not reason.startswith(("model.", "data.", "trainer.", "checkpoint.")) else ""
    return f"{prefix}{reason.rstrip('.')}."


def check_classes(options: Namespace) -> None:
    """Refuse abstract base classes where a concrete class is needed, and nulls where a class takes none.

    Raises:
        UserError: names the option and the classes to choose from.
    """
    for path, choice in {
        "data": options.data,
        **{f"model.{name}": options.model.init_args.get(name) for name in PARTS},
    }.items():
        name = getattr(choice, "class_path", None)
        if choice is None:
            continue
        if name is None or name.startswith("typing."):  # jsonargparse turns `{}` into this
            raise UserError(f"{path} names no class; give its class_path, or leave {path} out.")
        if path not in OURS:
            continue
        kind, last = class_at(name), name.rpartition(".")[2]
        if kind is CLASSES[path] or not is_public(kind):
            known = ", ".join(sorted(public_names(CLASSES[path])))
            raise UserError(f"{path}: {last} is an abstract base class; name one of {known}, before its options.")
        _check_nulls(path, kind, choice.get("init_args"))
    _check_nulls("model", class_at(options.model.class_path), options.model.get("init_args"))


def _check_nulls(path: str, kind: type, given: Namespace | None) -> None:
    """Refuse null where a class takes none; jsonargparse accepts null if the class passes arguments to a parent."""
    for name, value in vars(given).items() if given else ():
        if value is not None:
            continue
        signatures = (inspect.signature(cls.__init__).parameters for cls in kind.__mro__)
        argument = next((parameters[name] for parameters in signatures if name in parameters), None)
        if argument is None or argument.default is None:
            continue
        if re.search("None|Optional|Any|_empty", str(argument.annotation)):
            continue
        hint = "" if argument.default is argument.empty else f"; leave it out for {argument.default!r}"
        raise UserError(f"{path}.{name} must be {argument.annotation}, not null{hint}.")

"""Parse a command line with the real parser of its verb, and stop before it runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
from lightning.pytorch.cli import LightningCLI

from litpeft.__main__ import COMMANDS, TRAINER_VERBS
from litpeft.cli.arguments import typed_options, with_configs
from litpeft.cli.config_files import packaged_configs
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.cli.option_checks import check_values
from litpeft.cli.parser import check_classes, class_at
from litpeft.commands.data import DataCLI
from litpeft.commands.estimate import EstimateCLI
from litpeft.commands.find_lr import FindCLI
from litpeft.commands.parser import CommandParser
from litpeft.sweeps.experiment import read_experiment

PLANNED = {"estimate": EstimateCLI, "find_lr": FindCLI, "data": DataCLI}
OF_A_RUN = {  # options of a run folder on a page are parsed as those of such a run
    "test": ["--config=base", "--config=sst2"],
    "predict": ["--config=base", "--config=sst2"],
    "validate": ["--config=base", "--config=sst2"],
    "fit": ["--config=base", "--config=sst2", "--config=lora"],
}


STAND_INS = {"RUN/config.yaml": "minilm_sst2"}  # file of a reader -> a packaged one


class Parsed(BaseException):
    """Raised instead of running the command."""


def parse(words: Sequence[str]) -> None:
    """Parse the words after `litpeft`.

    Raises:
        UserError: the command line is wrong.
        AssertionError: no parser has read it.
    """
    verb, *rest = [STAND_INS.get(word, word) for word in words]
    if verb in ("--help", "--version") or {"--help", "-h"} & set(rest) or any(w.endswith(".help") for w in rest):
        assert verb.startswith("-") or verb in TRAINER_VERBS | COMMANDS
    elif verb in TRAINER_VERBS or verb in PLANNED:
        if verb == "predict":
            rest = rest[next((place for place, word in enumerate(rest) if word.startswith("-")), len(rest)) :]
        if verb in OF_A_RUN and not {"config", "model"} & dict(typed_options(rest)).keys():
            rest = [*OF_A_RUN[verb], *(word for word in rest if word != "--resume")]
        parse_run(verb, rest)
    elif verb == "sweep":
        parse_sweep(rest)
    else:
        assert verb in COMMANDS, verb
        _, others = stopped(verb, rest)
        if others and verb == "evaluate":  # a model as it is
            parse_run("fit", [*others, "--model.adapter", "Untrained"])
        elif others:
            assert verb == "demo", others
            parse_run("fit", ["--config=demo", "--model.model_name=x", *others])


def parse_run(verb: str, words: Sequence[str]) -> None:
    """Parse the options of `fit` and related verbs, and check them as far as no file is read."""
    options = parser_of(verb).parse_args(with_configs("fit", words))
    assert options.model is not None, "no --model, and no configuration that names one"
    assert options.data is not None, "no --data, and no configuration that names it"
    check_values(options)
    check_classes(options)
    for choice in (options.data, options.model.init_args.adapter):  # constructors check their options
        if choice is not None:
            class_at(choice.class_path)(**dict(choice.get("init_args") or {}))


def parse_sweep(words: Sequence[str]) -> None:
    """Parse the options of `sweep`, and those that it gives to all trials with the first one's."""
    options, others = stopped("sweep", words)
    if options.experiment not in packaged_configs():
        assert options.experiment.endswith(".yaml"), options.experiment
        parse_run("fit", ["--config=base", "--config=sst2", *others])
        return
    trial = read_experiment(options.experiment).trials[0]
    if others:  # without options, tests/cli/test_configs.py resolves every trial
        parse_run("fit", [*trial.arguments, *others])


def stopped(verb: str, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what the parser of a verb reads: its options, and the words that are left."""
    known = CommandParser.parse_known_args

    def parse_args(self: CommandParser, words: Any = None, namespace: Any = None) -> Any:
        options, others = known(self, words, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        raise Parsed(options, [])

    def parse_known_args(self: CommandParser, words: Any = None, namespace: Any = None) -> Any:
        raise Parsed(*known(self, words, namespace))

    command = importlib.import_module(f"litpeft.commands.{verb}")
    with (
        patch.object(CommandParser, "parse_args", parse_args),
        patch.object(CommandParser, "parse_known_args", parse_known_args),
        pytest.raises(Parsed) as found,
    ):
        command.main(list(words))
    return found.value.args


@cache
def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb with the options of `fit`.

    Building a parser takes half a second, so that each is built once.
    """

    def parse_arguments(self: LightningCLI, parser: argparse.ArgumentParser, args: Any) -> None:
        raise Parsed(parser)

    name = "show_data" if verb == "data" else verb
    with patch.object(LightningCLI, "parse_arguments", parse_arguments), pytest.raises(Parsed) as found:
        PLANNED.get(verb, LitPeftCLI)(name, ["--config=base", "--config=sst2"])
    (verbs,) = (a for a in found.value.args[0]._actions if isinstance(a, argparse._SubParsersAction))
    return verbs.choices[name]

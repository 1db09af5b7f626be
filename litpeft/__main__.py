"""The entry point of the command line: dispatches verbs before torch or any other heavy package is imported."""

from __future__ import annotations

import importlib
import os
import sys

from litpeft import __version__
from litpeft.cli.verbs import COMMANDS, PLANNING, TRAINER_VERBS
from litpeft.errors import UserError, did_you_mean, naming_options, one_line
from litpeft.runs.record_schema import is_utf8

HELP = f"""usage: litpeft VERB [options]

What does each fine-tuning method cost in memory and time, what quality does it reach, and is the difference real?

{{verbs}}

  litpeft fit --config sst2 --config lora --model.model_name roberta-base
  litpeft VERB --help            the options of a verb
  litpeft --version              {__version__}
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 1 (the run failed), 2 (user error), 128 + N (signal N)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        verbs = TRAINER_VERBS | COMMANDS
        print(HELP.format(verbs="\n".join(f"  {name:10} {text}" for name, text in verbs.items())))
        return 0
    if verb == "--version":
        print(f"litpeft {__version__}")
        return 0
    if "LITPEFT_SWEEP_PID" in os.environ:
        importlib.import_module("litpeft.sweeps.launchers").end_with_parent()
    sys.path.insert(0, os.getcwd())  # the user's own classes; the console script `litpeft` does not add this folder
    try:
        with naming_options():
            code = _run(verb, arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"litpeft: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the output has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 141  # 128 + SIGPIPE, which Windows does not have


def _run(verb: str, arguments: list[str]) -> int:
    _check_utf8(arguments)
    if (parser := verb if verb in TRAINER_VERBS else PLANNING.get(verb)) is not None:
        help_of = importlib.import_module("litpeft.cli.short_help")
        if (text := help_of.help_text(parser, arguments[1:])) is not None:
            print(text.rstrip())
            return 0
        arguments = help_of.without_all(arguments)
        importlib.import_module("litpeft.cli.first_look").look(parser, arguments[1:])
    if verb in COMMANDS:
        return importlib.import_module(f"litpeft.commands.{verb}").main(arguments[1:])
    if verb in TRAINER_VERBS:
        return importlib.import_module("litpeft.commands.training").main(arguments)
    guess = did_you_mean(verb, TRAINER_VERBS | COMMANDS)
    raise UserError(f"no verb {verb!r}{guess}; `litpeft --help` lists them.")


def _check_utf8(arguments: list[str]) -> None:
    """Refuse arguments that are not UTF-8: neither a terminal nor a record could show them."""
    for option, word in zip(["", *arguments], arguments, strict=False):
        name, _, value = word.partition("=") if word.startswith("-") else (option, "", word)
        if not is_utf8(word):
            shown = name if name.startswith("-") and is_utf8(name) else ""
            raise UserError(f"{shown} {value if shown else word!r} is not UTF-8; give another name.".lstrip())


if __name__ == "__main__":
    sys.exit(main())

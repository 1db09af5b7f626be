"""The entry point: answers what needs no torch at once, and hands the rest to LightningCLI."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

from litpeft import __version__
from litpeft.errors import UserError, one_line
from litpeft.runs.record_schema import is_utf8

TRAINER_VERBS = {
    "fit": "train a model, and leave a record of what it cost and gave",
    "validate": "measure a finished run on its validation rows",
    "test": "measure a finished run on its test rows, and add that to its record",
    "predict": "write a finished run's predictions to a file",
}
COMMANDS = {  # verb -> what it does; the module in litpeft/commands has the same name
    "compare": "hold runs against each other: a table by what varies, and which differences are real",
    "configs": "list, print or copy the configurations that come with the package",
    "sweep": "run an experiment: every trial of its axes with every seed, each in a process of its own",
    "evaluate": "measure a finished run by benchmarks: TruthfulQA, arithmetic, BLiMP, MMLU, any task of lm-eval",
    "estimate": "what a run will need of a GPU's memory, or of the host's, before it runs and without weights",
    "report": "show runs as one page for the browser, or as Markdown with pictures: table, charts, every run",
    "find_lr": "which learning rates train an adapter, by raising the rate from step to step",
    "export": "write a finished run as a PEFT adapter, or as a plain model with the adapter folded in",
    "demo": "fine-tune a small real model on real text, from what pip can bring",
}
HELP = f"""usage: litpeft VERB [options]

What does each way to fine-tune cost in memory and time, what does it give, and is the difference real?

{{verbs}}

  litpeft fit --config sst2 --config lora --model.model_name roberta-base
  litpeft VERB --help            all options of a verb
  litpeft --version              {__version__}
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; the exit code is 2 for a mistake of the user's, 1 for a run that failed."""
    words = sys.argv[1:] if arguments is None else arguments
    verb = words[0] if words else "--help"
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
        _check_words(words)
        if verb in COMMANDS:
            return importlib.import_module(f"litpeft.commands.{verb}").main(words[1:])
        if verb in TRAINER_VERBS:
            return importlib.import_module("litpeft.commands.training").main(words)
        close = difflib.get_close_matches(verb, [*TRAINER_VERBS, *COMMANDS], n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"no verb {verb!r}{guess}; `litpeft --help` lists them.")
    except UserError as error:
        print(f"litpeft: error: {one_line(str(error))}", file=sys.stderr)
        return 2


def _check_words(words: list[str]) -> None:
    """Neither a terminal nor a record can show bytes of a command line that are no text."""
    for option, word in zip(["", *words], words, strict=False):
        name, _, value = word.partition("=") if word.startswith("-") else (option, "", word)
        if not is_utf8(word):
            told = name if name.startswith("-") and is_utf8(name) else ""
            raise UserError(f"{told} {value if told else word!r} is not UTF-8; give another name.".lstrip())


if __name__ == "__main__":
    sys.exit(main())

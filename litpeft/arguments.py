"""What was typed after the verb: as pairs, and with the configurations that it names put in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from litpeft.errors import UserError
from litpeft.run_folder import CONFIG, saved_config
from litpeft.shipped import find_config, read_yaml

ALONE = ("resume", "overwrite", "help", "h", "print_config")  # options without a value


def typed_options(words: Sequence[str]) -> list[tuple[str, str]]:
    """(option, value) of each option, in order: `--a.b 1` and `--a.b=1` alike give ("a.b", "1")."""
    pairs = []
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            pairs.append((key, value if equals or key in ALONE else next(rest, "")))
    return [("config" if key == "c" else key, value) for key, value in pairs]


def with_configs(verb: str, words: Sequence[str]) -> list[str]:
    """The words as jsonargparse can read them: bare names of configurations become files.

    Where a finished run is measured or resumed and no model is named, its own configuration comes first.

    Raises:
        UserError: there is no such configuration or run, or a file is not YAML.
    """
    typed = dict(typed_options(words))
    out = []
    for place, word in enumerate(words):
        if place and words[place - 1] in ("--config", "-c"):
            word = _checked(word)
        elif word.startswith("--config="):
            word = f"--config={_checked(word.removeprefix('--config='))}"
        out.append(word)
    finished = verb != "fit" or "resume" in typed
    if not finished or typed.keys() & {"config", "model", "help", "h"}:
        return out
    if "run_dir" not in typed:
        raise UserError(f"litpeft {verb} needs --run_dir, the folder of a run.")
    saved_config(Path(typed["run_dir"]))  # says in a sentence what is missing
    return [f"--config={Path(typed['run_dir']) / CONFIG}", *out]


def _checked(name: str) -> str:
    """The file that a configuration's name means, if it can be read."""
    read_yaml(name)
    return find_config(name)

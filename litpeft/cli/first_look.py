"""Check what can be checked of a command line before torch and Lightning are imported, which takes seconds."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from litpeft.cli import known_options
from litpeft.cli.config_files import find_config, read_yaml
from litpeft.cli.typed_options import typed_options
from litpeft.cli.verbs import PLANNING
from litpeft.errors import UserError, did_you_mean
from litpeft.runs.folder import CONFIG, saved_config

COMMON = {  # names of other tools -> litpeft's options
    "--seed": "--seed_everything",
    "--lr": "--model.optimizer.lr",
    "--learning_rate": "--model.optimizer.lr",
    "--epochs": "--trainer.max_epochs",
    "--batch_size": "--data.batch_size",
}
# what stands before the first dot of an option, for all verbs together; a test compares them with the parsers
GROUPS = (
    *("config", "c", "help", "h", "print_config", "seed_everything", "run_dir", "experiment", "resume", "no_resume"),
    *("logger", "overwrite", "no_overwrite", "ckpt_path", "verbose", "weights_only", "return_predictions"),
    *("model", "data", "trainer", "throughput", "memory", "predictions", "checkpoint", "record", "benchmarks"),
)
# options that a mistyped one may have meant
USUAL = (
    *(
        "--config",
        "--seed_everything",
        "--run_dir",
        "--experiment",
        "--resume",
        "--overwrite",
        "--ckpt_path",
        "--model",
    ),
    *("--model.model_name", "--model.adapter", "--model.adapter.rank", "--model.optimizer", "--model.optimizer.lr"),
    *("--model.dtype", "--model.base", "--model.scheduler", "--data", "--data.train_file", "--data.batch_size"),
    *("--data.max_length", "--trainer.max_epochs", "--trainer.max_steps", "--benchmarks.tasks", "--record.predictions"),
)
NAMING = ("model", "data", "model.adapter", "model.scheduler")  # options that name a class of litpeft
OF_ANY_CLASS = ("class_path", "init_args", "dict_kwargs", "adapter", "optimizer", "scheduler")  # or classes themselves
WORD = re.compile(r"(?!(null|none|inf|nan|true|false)$)[a-z]\w*", re.IGNORECASE)  # certainly not a number
# splits whose files a verb must find; `estimate` can do without
FILES = {"test": ("test",), "predict": ("predict",)} | dict.fromkeys(("fit", "find_lr", "show_data"), ("train", "val"))


def look(verb: str, arguments: Sequence[str]) -> None:
    """Check configuration names, the folder of a finished run, the names of options, numbers and data files.

    Does nothing once torch is imported: the parser then checks all of it, and everything else. Options of classes are
    checked if an earlier command of this version has kept them.

    Raises:
        UserError: a file does not exist or is not YAML, or an option is unknown.
    """
    if "torch" in sys.modules:
        return
    words = list(arguments)
    names = [word.partition("=")[0] for word in words]
    if {"--help", "-h"} & set(names):
        return
    # with a configuration only the parser can judge
    needs_run = verb in ("validate", "test", "predict") and not {"--config", "-c", "--model"} & set(names)
    contents = []  # of the configurations
    for place, (word, name) in enumerate(zip(words, names, strict=True)):
        value = word.partition("=")[2] if "=" in word else next(iter(words[place + 1 : place + 2]), "")
        if name in ("--config", "-c") and not value.startswith(("{", "--")):
            find_config(value)
            contents.append(read_yaml(value))
        elif name == "--run_dir" and needs_run and not value.startswith("--"):
            saved_config(Path(value))
    for word, name in zip(words, names, strict=True) if verb not in PLANNING.values() else ():
        if word.startswith("--") and name.lstrip("-").partition(".")[0] not in GROUPS:
            guess = f" (did you mean {COMMON[name]}?)" if name in COMMON else did_you_mean(name, USUAL)
            raise UserError(f"unknown option {name}{guess}.")
    options = typed_options(words)
    if any(value.startswith("{") for _, value in options):
        return  # classes may be named inside
    classes = _classes(options, contents)
    if (known := known_options.load(verb)) is not None:
        for option, value in options:
            _check_option(option, value, classes, known)
    _check_files(verb, options)
    if verb == "fit":
        _check_required(options, contents, classes, known)


def _classes(options: Sequence[tuple[str, str]], contents: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return the names of all classes that the options and the configurations give to each option that names one."""
    found = {path: set[str]() for path in NAMING}

    def add(path: str, named: Any) -> None:
        name = named.get("class_path") if isinstance(named, Mapping) else named
        if isinstance(name, str) and name not in ("", "null"):
            found[path].add(name.rpartition(".")[2])

    for option, value in options:
        if option.removesuffix(".class_path") in found:
            add(option.removesuffix(".class_path"), value)
    files = [Path(value, CONFIG) for option, value in options if option == "run_dir"]
    for content in (*contents, *(read_yaml(str(file)) for file in files if file.is_file())):
        for path in ("model", "data"):
            add(path, content.get(path))
        model = content.get("model")
        settings = model.get("init_args") if isinstance(model, Mapping) else None
        for part in ("adapter", "scheduler"):
            add(f"model.{part}", settings.get(part) if isinstance(settings, Mapping) else None)
    return found


def _check_option(option: str, value: str, classes: Mapping[str, set[str]], known: Mapping[str, Any]) -> None:
    """Refuse an option that no parser of this version takes, and words for numbers of classes of litpeft."""
    path = next((path for path in sorted(NAMING, key=len, reverse=True) if option.startswith(f"{path}.")), None)
    if path is None:
        parts = option.removesuffix("+").split(".")
        starts = [".".join(parts[:count]) for count in range(2, len(parts) + 1)] or parts
        if not any(f"--{start}" in known["options"] for start in starts):
            guess = did_you_mean(f"--{option}", [*known["options"], *known["of_classes"]])
            raise UserError(f"unknown option --{option}{guess}.")
        return
    name, *deeper = option.removeprefix(f"{path}.").removeprefix("init_args.").removesuffix("+").split(".")
    ours = known["classes"][path]
    if name in OF_ANY_CLASS or not classes[path] or classes[path] - ours.keys():
        return
    if not any(name in ours[each] for each in classes[path]):
        if takers := known["takers"][path].get(name):
            text = f"{path}.{name}: first name a class that has this option ({', '.join(takers)}) with --{path} ..."
        else:
            text = f"{path} has no option {name!r}{did_you_mean(name, known['takers'][path])}."
        raise UserError(text)
    kinds = {ours[each].get(name) for each in classes[path]}
    if not deeper and kinds <= set(known_options.NUMBERS) and WORD.fullmatch(value):
        raise UserError(f"{path}.{name} must be {kinds.pop()}, got {value}.")


def _check_files(verb: str, options: Sequence[tuple[str, str]]) -> None:
    """Refuse data files that do not exist; those of a finished or resumed run are not always read."""
    names = [option for option, _ in options]
    if verb == "fit" and "resume" in names:
        return
    files = {f"data.{split}_file" for split in FILES.get(verb, ())}
    for option, value in options:
        is_name = Path(value).suffix and ":" not in value and not glob.has_magic(value)  # not demo:..., not part-*.csv
        if option in files and is_name and not os.path.exists(os.path.expanduser(value)):
            raise UserError(f"{option} {value}: No such file or directory.")


def _check_required(
    options: Sequence[tuple[str, str]],
    contents: Sequence[Mapping[str, Any]],
    classes: Mapping[str, set[str]],
    known: Mapping[str, Any] | None,
) -> None:
    """Refuse a fit without a task, a data set, or the model of a task of litpeft; a resumed run has them."""
    names = {option for option, _ in options}
    if names & {"resume", "print_config"} or any("." in key or key == "axes" for each in contents for key in each):
        return  # an experiment, too, is left to the parser
    if missing := [f"--{path}" for path in ("data", "model") if not classes[path]]:
        raise UserError(f"required: {', '.join(missing)}.")
    models = [content["model"] for content in contents if isinstance(content.get("model"), Mapping)]
    given = {key for model in models for key in (*model, *(model.get("init_args") or ()))}
    ours = known["classes"]["model"] if known else {}
    given |= {name.rpartition(".")[2] for name in names if name.startswith("model.")}
    if all("model_name" in ours.get(each, ()) for each in classes["model"]) and "model_name" not in given:
        raise UserError("required: --model.model_name.")

"""Read experiment files, which describe a sweep: common options, axes of values, and seeds.

    question: Does DoRA justify its training time?
    configs: [base, sst2, adamw]                     # as for `--config`; later ones override
    options: {model.model_name: roberta-base}        # as on the command line
    axes:
      adapter: [lora, dora]                          # configurations; `full` means `none`
      model.optimizer.lr: [1.0e-4, 3.0e-4]           # values of an option; axes form a grid
      size:                                          # options that change together
        model.adapter.rank: [8, 32]
        model.adapter.alpha: [16, 64]
      data:                                          # named variants: options and `configs`
        small: {data.train_samples: 500}
        all: {}
    exclude: [{adapter: dora, size: rank=32}]        # values may be lists
    seeds: 5                                         # seeds 0 to 4; or a list of seeds

Further keys: `baseline` (a label, or values of axes), `metric`, `target` and `average_over` (the axis of the tasks, for
`litpeft compare`), `published`, and `like: NAME`, which takes all keys missing here, except `published`, from another
experiment.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litpeft.cli.config_files import find_config, read_yaml
from litpeft.errors import UserError
from litpeft.runs.folder import folder_name
from litpeft.runs.strategy_names import shown_label, stored_name

DESCRIPTION = ("question", "baseline", "metric", "target", "average_over", "published")  # for `litpeft compare`
KEYS = ("like", "question", "configs", "options", "axes", "exclude", "seeds", *DESCRIPTION[1:])
RESERVED = re.compile(r"config|run_dir|experiment|resume|overwrite|seed_everything|ckpt_path")  # set by the sweep
OPTION = re.compile(r"(model|data|trainer|checkpoint|throughput|memory|record|predictions|benchmarks)(\.|$)")


@dataclass(frozen=True)
class Choice:
    """One value of an axis.

    Attributes:
        name: name of the value, used in labels, `exclude` and `baseline`.
        configs: configurations to add.
        options: {command-line option: value} to set.
    """

    name: str
    configs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One point of the grid, which is run once per seed.

    Attributes:
        name: name of the folder.
        label: label in `sweep.yaml`.
        axes: {axis: value}.
        arguments: command line of `litpeft fit`, without the seed.
    """

    name: str
    label: str
    axes: dict[str, str]
    arguments: tuple[str, ...]

    def shown(self, label: str) -> str:
        """Return the label, or an axis value, with `full` for the configuration `none`."""
        return shown_label(label) if any(Path(each).name == "none.yaml" for each in self.arguments) else label


@dataclass(frozen=True)
class Experiment:
    """Content of an experiment file.

    Attributes:
        name: name of the file without suffix.
        axes: {axis: values}.
        trials: all points of the grid that are not excluded; the last axis varies fastest.
        seeds: seeds of every trial.
        description: `question`, `baseline`, `metric`, `target` and `published`.
    """

    name: str
    axes: dict[str, list[Choice]]
    trials: list[Trial]
    seeds: list[int]
    description: dict[str, Any]


def read_experiment(name: str, settings: dict[str, Any] | None = None) -> Experiment:
    """Read an experiment from a file, or a packaged experiment.

    Args:
        name: path of the file, or name of a packaged experiment.
        settings: options for all trials, which override the options in the file.

    Raises:
        UserError: a key or value is invalid.
    """
    try:
        path = Path(find_config(name))
    except UserError as error:
        raise UserError(str(error).replace("--config", "litpeft sweep")) from error
    content = _content(path)
    if "model" in content:
        raise UserError(f"{path}: it configures a single run; use litpeft fit --config {name}.")
    if unknown := content.keys() - set(KEYS):
        raise UserError(f"{path}: unknown key {sorted(unknown)[0]!r}; an experiment has {', '.join(KEYS)}.")
    if not content.get("axes"):
        raise UserError(f"{path}: axes is missing; list the values in which the runs differ.")
    axes = _mapping(path, "axes", content["axes"])
    choices = {axis: _choices(f"{path}: axes.{axis}", axis, values) for axis, values in axes.items()}
    options = _options(f"{path}: options", content.get("options") or {})
    settings = _options("litpeft sweep", settings or {})
    configs = _names(f"{path}: configs", content.get("configs") or [])
    points = _points(choices, _exclusions(path, content, choices))
    trials = [_trial(point, configs, options, settings) for point in points]
    if not trials:
        raise UserError(f"{path}: exclude leaves no trial; remove a rule.")
    for trial in trials:
        if sum(trial.name == other.name for other in trials) > 1:
            raise UserError(f"{path}: axes: two trials are called {trial.label!r}; rename a variant.")
    description = {key: content.get(key) for key in DESCRIPTION}
    if (over := description["average_over"]) is not None and over not in choices:
        raise UserError(f"{path}: average_over {over!r} is none of the axes {', '.join(choices)}.")
    description["baseline"] = _baseline(path, description["baseline"], trials)
    return Experiment(path.stem, choices, trials, _seeds(path, content.get("seeds", 1)), description)


def _content(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a file, completed from the experiment named by `like`."""
    if path in seen:
        raise UserError(f"{path}: like refers back to this file.")
    content = read_yaml(str(path))
    if "like" not in content:
        return content
    if not isinstance(content["like"], str):
        raise UserError(f"{path}: like must be the name of an experiment or a file, got {content['like']!r}.")
    (name,) = _names(f"{path}: like", content["like"])
    other = _content(Path(find_config(name)), (*seen, path))
    return {key: value for key, value in other.items() if key != "published"} | content


def _choices(place: str, axis: str, values: Any) -> list[Choice]:
    if isinstance(values, dict) and values and all(isinstance(each, list) for each in values.values()):
        options = _options(place, values)
        if len({len(each) for each in options.values()}) > 1:
            raise UserError(f"{place}: lists that change together must have the same length.")
        points = [dict(zip(options, point, strict=True)) for point in zip(*options.values(), strict=True)]
        found = [Choice(_shown(*next(iter(point.items()))), (), point) for point in points]
    elif isinstance(values, dict):
        found = [_variant(f"{place}.{name}", str(name), content) for name, content in values.items()]
    elif isinstance(values, list) and OPTION.match(axis):
        _options(place, {axis: None})
        found = [Choice(_shown(axis, value), (), {axis: value}) for value in values]
    elif isinstance(values, list):
        found = [Choice(Path(stored_name(name)).stem, (name,)) for name in _names(place, values)]
    else:
        raise UserError(f"{place} must be a list of values, or a mapping of named variants, got {values!r}.")
    names = [choice.name for choice in found]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{place} must be a list of different values, got {', '.join(names) or 'no value'}.")
    return found


def _variant(place: str, name: str, content: Any) -> Choice:
    if isinstance(content, str):  # the name of a configuration
        return Choice(name, tuple(_names(place, [content])))
    content = dict(_mapping(place, "variant", content or {}))
    configs = _names(f"{place}.configs", content.pop("configs", None) or [])
    return Choice(name, tuple(configs), _options(place, content))


def _mapping(place: str | Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{place}: {what} must be a mapping with names as keys, got {value!r}.")
    return value


def _options(place: str, content: Any) -> dict[str, Any]:
    for option in _mapping(place, "it", content):
        if not isinstance(option, str) or RESERVED.fullmatch(option):
            raise UserError(f"{place}: {option} is set by the sweep; use configs or seeds instead.")
        if not OPTION.match(option):
            raise UserError(f"{place}: {option!r} is not an option of litpeft fit, such as model.adapter.rank.")
    return dict(content)


def _names(place: str, names: Any) -> list[str]:
    """Return a list of configuration names, after checking that each can be read."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place} must be a list of configuration names or files, got {names!r}.")
    for name in names:
        try:
            read_yaml(name)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    return names


def _points(choices: dict[str, list[Choice]], excluded: list[dict[str, list[str]]]) -> list[dict[str, Choice]]:
    points = (dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values()))
    return [
        point
        for point in points
        if not any(all(point[axis].name in names for axis, names in rule.items()) for rule in excluded)
    ]


def _exclusions(path: Path, content: dict[str, Any], choices: dict[str, list[Choice]]) -> list[dict[str, list[str]]]:
    """Return the rules of `exclude`: {axis: names of values}."""
    rules = []
    excluded = content.get("exclude") or []
    if not isinstance(excluded, list):
        raise UserError(f"{path}: exclude must be a list of mappings from axes to values, got {excluded!r}.")
    for mapping in excluded:
        rule: dict[str, list[str]] = {}
        for axis, values in _mapping(path, "exclude", mapping).items():
            if axis not in choices:
                raise UserError(f"{path}: exclude names {axis!r}, but the axes are {', '.join(choices)}.")
            rule[axis] = [
                _choice_name(path, axis, value, choices) for value in (values if isinstance(values, list) else [values])
            ]
        rules.append(rule)
    return rules


def _choice_name(path: Path, axis: str, value: Any, choices: dict[str, list[Choice]]) -> str:
    names = [choice.name for choice in choices[axis]]
    for name in names:
        spellings = str(value), stored_name(str(value)), _shown(axis, value)
        if name in spellings or name.partition("=")[2] == str(value):
            return name
    raise UserError(f"{path}: {axis} has no value {value!r}; it has {', '.join(names)}.")


def _trial(point: dict[str, Choice], configs: list[str], options: dict[str, Any], typed: dict[str, Any]) -> Trial:
    """Build the command line of a trial: configurations, then options of the file, of the axes, and as typed."""
    specific: dict[str, Any] = {}
    for more in [*(choice.options for choice in point.values()), typed]:
        specific |= more
    # common options first, and each class before its arguments, because naming a class resets its arguments
    settings = {key: value for key, value in options.items() if key not in specific}
    settings |= {key: specific[key] for key in sorted(specific, key=_depth)}
    label = ",".join(choice.name for choice in point.values())
    chosen = [*configs, *(name for choice in point.values() for name in choice.configs)]
    arguments = [argument for name in chosen for argument in ("--config", find_config(name))]
    arguments += [
        f"--{option}={value if isinstance(value, str) else json.dumps(value)}" for option, value in settings.items()
    ]
    axes = {axis: choice.name.removeprefix(f"{axis.rpartition('.')[2]}=") for axis, choice in point.items()}
    return Trial(folder_name(label), label, axes, tuple(arguments))


def _depth(option: str) -> int:
    """Return the depth of an option: 1 for model.optimizer, 2 for model.optimizer.lr."""
    return option.replace(".init_args", "").removesuffix(".class_path").count(".")


def _shown(option: str, value: Any) -> str:
    """Return the name of an option value: `rank=8`; classes and files are shortened to their last name."""
    text = value if isinstance(value, str) else json.dumps(value).replace('"', "").replace(" ", "")
    if isinstance(value, str) and "/" in value:
        text = Path(value).name
    elif isinstance(value, str) and re.fullmatch(r"[a-z_]\w*(\.\w+)+", value):
        text = value.rpartition(".")[2]
    return f"{option.rpartition('.')[2]}={text}"


def _seeds(path: Path, value: Any) -> list[int]:
    seeds = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds must be a number of seeds, or a list of different seeds, got {value!r}.")
    return seeds


def _baseline(path: Path, value: Any, trials: list[Trial]) -> str | None:
    """Return the label of the baseline trial; the first trial if `baseline` is not set."""
    if value is None:
        return trials[0].label
    for trial in trials:
        if isinstance(value, dict):
            found = all(trial.axes.get(axis) in (str(each), stored_name(str(each))) for axis, each in value.items())
        else:
            found = value in (trial.label, trial.shown(trial.label))
        if found:
            return trial.label
    raise UserError(
        f"{path}: baseline {value!r} is not a trial; there are {', '.join(trial.label for trial in trials)}."
    )

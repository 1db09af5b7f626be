"""An experiment file: a question, what all its runs share, the axes along which they differ, and their seeds.

    question: Is DoRA worth its time?
    configs: [base, sst2, adamw]                     # as `--config` takes them, the later one wins
    options: {model.model_name: roberta-base}        # as the command line takes them
    axes:
      adapter: [lora, dora]                          # names of configurations
      model.optimizer.lr: [1.0e-4, 3.0e-4]           # values of an option: a grid with the axis above
      size:                                          # options that change together, place by place
        model.adapter.rank: [8, 32]
        model.adapter.alpha: [16, 64]
      data:                                          # named variants: any options, and `configs`
        little: {data.train_samples: 500}
        all: {}
    exclude: [{adapter: dora, size: rank=32}]        # or lists of values
    seeds: 5                                         # from 0 on; or a list

Beside these: `baseline` (a label, or values of axes), `metric` and `target` (of `litpeft compare`), `published`, and
`like: NAME`: what this file does not say but for what was published is taken from that experiment.
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

KEYS = (
    "like",
    "question",
    "configs",
    "options",
    "axes",
    "exclude",
    "seeds",
    "baseline",
    "metric",
    "target",
    "published",
)
RESERVED = re.compile(r"config|run_dir|experiment|resume|overwrite|seed_everything|ckpt_path")  # the sweep gives them
OPTION = re.compile(r"(model|data|trainer|checkpoint|throughput|memory|record|predictions|benchmarks)(\.|$)")


@dataclass(frozen=True)
class Choice:
    """One value of an axis.

    Attributes:
        name: as shown, and as exclusions and the baseline name it.
        configs: configurations that it adds.
        options: options that it sets, by their names on the command line.
    """

    name: str
    configs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One point of the grid, to be run once a seed.

    Attributes:
        name: of its folder.
        label: as shown.
        axes: the value of each axis, without its name.
        words: what `litpeft fit` is told, the seed aside.
    """

    name: str
    label: str
    axes: dict[str, str]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """What an experiment file says.

    Attributes:
        name: of the file.
        axes: values by name of the axis, in order.
        trials: every point that is not excluded, in the order of the file, the last axis fastest.
        seeds: of each trial.
        told: the file's `question`, `baseline`, `metric`, `target` and `published`.
    """

    name: str
    axes: dict[str, list[Choice]]
    trials: list[Trial]
    seeds: list[int]
    told: dict[str, Any]


def read_experiment(name: str, settings: dict[str, Any] | None = None) -> Experiment:
    """The experiment in a file, or the shipped one of that name.

    Args:
        name: of the file, or of the experiment.
        settings: options for all trials, that win over the file's.

    Raises:
        UserError: names the key that is wrong, and what it must be.
    """
    try:
        path = Path(find_config(name))
    except UserError as error:
        raise UserError(str(error).replace("--config", "litpeft sweep")) from error
    content = _content(path)
    if "model" in content:
        raise UserError(f"{path}: it is a configuration of one run: litpeft fit --config {name}; a sweep has `axes`.")
    if unknown := content.keys() - set(KEYS):
        raise UserError(f"{path}: unknown key {sorted(unknown)[0]!r}; an experiment has {', '.join(KEYS)}.")
    if not content.get("axes"):
        raise UserError(f"{path}: there is no `axes`, what the runs differ in.")
    axes = _mapping(path, "axes", content["axes"])
    choices = {axis: _choices(f"{path}: axes.{axis}", axis, values) for axis, values in axes.items()}
    options = _options(f"{path}: options", content.get("options") or {})
    settings = _options("litpeft sweep", settings or {})
    configs = _names(f"{path}: configs", content.get("configs") or [])
    points = _points(choices, _exclusions(path, content, choices))
    trials = [_trial(point, configs, options, settings) for point in points]
    if not trials:
        raise UserError(f"{path}: exclude leaves no trial.")
    for trial in trials:
        if sum(trial.name == other.name for other in trials) > 1:
            raise UserError(f"{path}: two trials are called {trial.label!r}; give their variants other names.")
    told = {key: content.get(key) for key in ("question", "baseline", "metric", "target", "published")}
    told["baseline"] = _baseline(path, told["baseline"], trials)
    return Experiment(path.stem, choices, trials, _seeds(path, content.get("seeds", 1)), told)


def _content(path: Path, twins: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file says, and what those say that it is `like`, one after another."""
    if path in twins:
        raise UserError(f"{path}: like: leads back to it.")
    content = read_yaml(str(path))
    if "like" not in content:
        return content
    if not isinstance(content["like"], str):
        raise UserError(f"{path}: like must be the name of an experiment or a file, got {content['like']!r}.")
    (name,) = _names(f"{path}: like", content["like"])
    other = _content(Path(find_config(name)), (*twins, path))
    return {key: value for key, value in other.items() if key != "published"} | content


def _choices(place: str, axis: str, values: Any) -> list[Choice]:
    if isinstance(values, dict) and values and all(isinstance(each, list) for each in values.values()):
        options = _options(place, values)
        if len({len(each) for each in options.values()}) > 1:
            raise UserError(f"{place}: lists that go together must be of one length.")
        points = [dict(zip(options, point, strict=True)) for point in zip(*options.values(), strict=True)]
        found = [Choice(_shown(*next(iter(point.items()))), (), point) for point in points]
    elif isinstance(values, dict):
        found = [_variant(f"{place}.{name}", str(name), told) for name, told in values.items()]
    elif isinstance(values, list) and OPTION.match(axis):
        _options(place, {axis: None})
        found = [Choice(_shown(axis, value), (), {axis: value}) for value in values]
    elif isinstance(values, list):
        found = [Choice(Path(name).stem, (name,)) for name in _names(place, values)]
    else:
        raise UserError(f"{place} must be a list of values, or a mapping of named variants, got {values!r}.")
    names = [choice.name for choice in found]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{place}: needs values, each once, got {', '.join(names) or 'none'}.")
    return found


def _variant(place: str, name: str, told: Any) -> Choice:
    if isinstance(told, str):  # a configuration by another name
        return Choice(name, tuple(_names(place, [told])))
    told = dict(_mapping(place, "variant", told or {}))
    configs = _names(f"{place}.configs", told.pop("configs", None) or [])
    return Choice(name, tuple(configs), _options(place, told))


def _mapping(place: str | Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{place}: {what} must hold options by name, got {value!r}.")
    return value


def _options(place: str, told: Any) -> dict[str, Any]:
    for option in _mapping(place, "it", told):
        if not isinstance(option, str) or RESERVED.fullmatch(option):
            raise UserError(f"{place}: {option} is given by the sweep itself; see configs and seeds.")
        if not OPTION.match(option):
            raise UserError(f"{place}: {option!r} is no option of litpeft fit, such as model.adapter.rank.")
    return dict(told)


def _names(place: str, names: Any) -> list[str]:
    """Configurations, each of which is there."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place} must be names of configurations or files, got {names!r}.")
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
    """By axis, the names of the values that a rule is about."""
    rules = []
    told_of = content.get("exclude") or []
    if not isinstance(told_of, list):
        raise UserError(f"{path}: exclude must be a list of values by axis, got {told_of!r}.")
    for told in told_of:
        rule: dict[str, list[str]] = {}
        for axis, values in _mapping(path, "exclude", told).items():
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
        if str(value) in (name, name.partition("=")[2]) or name == _shown(axis, value):
            return name
    raise UserError(f"{path}: {axis} has no value {value!r}; it has {', '.join(names)}.")


def _trial(point: dict[str, Choice], configs: list[str], options: dict[str, Any], typed: dict[str, Any]) -> Trial:
    """Configurations come first, so that no option is lost to one; then the axes' options, and what was typed."""
    chosen = [*configs, *(name for choice in point.values() for name in choice.configs)]
    own: dict[str, Any] = {}
    for more in [*(choice.options for choice in point.values()), typed]:
        own |= more
    # what all trials share comes first, and no class stands behind its arguments: it would undo them
    settings = {key: value for key, value in options.items() if key not in own}
    settings |= {key: own[key] for key in sorted(own, key=_depth)}
    label = ",".join(choice.name for choice in point.values())
    words = [word for name in chosen for word in ("--config", find_config(name))]
    words += [f"--{option}={_word(value)}" for option, value in settings.items()]
    axes = {axis: choice.name.removeprefix(f"{axis.rpartition('.')[2]}=") for axis, choice in point.items()}
    return Trial(folder_name(label), label, axes, tuple(words))


def _depth(option: str) -> int:
    """A class lies above its arguments: 1 for model.optimizer, 2 for model.optimizer.lr."""
    return option.replace(".init_args", "").removesuffix(".class_path").count(".")


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _shown(option: str, value: Any) -> str:
    """An option's value by the option's last name: rank=8; a class or a file by its own last name."""
    text = value if isinstance(value, str) else json.dumps(value).replace('"', "").replace(" ", "")
    if isinstance(value, str) and "/" in value:
        text = Path(value).name
    elif isinstance(value, str) and re.fullmatch(r"[a-z_]\w*(\.\w+)+", value):
        text = value.rpartition(".")[2]
    return f"{option.rpartition('.')[2]}={text}"


def _seeds(path: Path, told: Any) -> list[int]:
    seeds = list(range(told)) if isinstance(told, int) and not isinstance(told, bool) else told
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds must be a number of seeds, or a list of different ones, got {told!r}.")
    return seeds


def _baseline(path: Path, told: Any, trials: list[Trial]) -> str | None:
    """The label of the trial that the others are held against; the first one's where none is named."""
    if told is None:
        return trials[0].label
    for trial in trials:
        named = isinstance(told, dict) and all(trial.axes.get(axis) == str(value) for axis, value in told.items())
        if named or told == trial.label:
            return trial.label
    raise UserError(f"{path}: baseline {told!r} is no trial; there are {', '.join(trial.label for trial in trials)}.")

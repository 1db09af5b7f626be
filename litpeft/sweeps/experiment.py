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
    tune:                                            # every trial of the grid chooses its own values
      model.optimizer.weight_decay: [0.0, 0.1]
    tune_seeds: 1                                    # seeds for the choice; or a list; the default is one seed
    seeds: 5                                         # seeds 0 to 4; or a list of seeds

With `tune`, each trial first runs all combinations of its values (with `--select optuna` some of them) with the seeds
of `tune_seeds`, which must not be in `seeds`, and keeps the combination with the best mean of the validation metric for
its runs with `seeds`. A variant may have its own values: `lora: {configs: [lora], tune: {model.optimizer.lr: [1.0e-3,
3.0e-3]}}`.

Further keys: `baseline` (a label, or values of axes), `metric`, `target` and `average_over` (the axis of the tasks, for
`litpeft compare`), `published`, and `like: NAME`, which takes all keys missing here, except `published`, from another
experiment.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.sweep_folder import TUNING
from litpeft.cli.config_files import find_config, read_yaml
from litpeft.errors import UserError
from litpeft.runs.folder import folder_name
from litpeft.runs.strategy_names import shown_label
from litpeft.sweeps.axes import (
    Choice,
    choice_name,
    config_names,
    mapping_of,
    options_of,
    read_choices,
    read_tune,
    shown_value,
    typed,
    without_option,
)

DESCRIPTION = ("question", "baseline", "metric", "target", "average_over", "published")  # for `litpeft compare`
KEYS = ("like", "question", "configs", "options", "axes", "exclude", "tune", "tune_seeds", "seeds", *DESCRIPTION[1:])
FIRST_TUNING_SEED, MOST_SEEDS = 1000, 10**6


@dataclass(frozen=True)
class Trial:
    """One point of the grid, which is run once per seed.

    Attributes:
        name: name of the folder.
        label: label in `sweep.yaml`.
        axes: {axis: value}.
        arguments: command line of `litpeft fit`, without the seed; without the values of `tune` before their choice.
        candidates: one trial for each combination of the values of `tune`; empty without `tune`.
        values: {option of `tune`: value}, of a candidate.
    """

    name: str
    label: str
    axes: dict[str, str]
    arguments: tuple[str, ...]
    candidates: tuple[Trial, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)

    def shown(self, label: str) -> str:
        """Return the label, or an axis value, with `full` for the configuration `none`."""
        return shown_label(label) if self._is_full else label

    @cached_property
    def _is_full(self) -> bool:
        return any(each.endswith("none.yaml") and Path(each).name == "none.yaml" for each in self.arguments)


@dataclass(frozen=True)
class Experiment:
    """Content of an experiment file.

    Attributes:
        name: name of the file without suffix.
        axes: {axis: values}.
        trials: all points of the grid that are not excluded; the last axis varies fastest.
        seeds: seeds of every trial.
        description: `question`, `baseline`, `metric`, `target` and `published`.
        tune_seeds: seeds of every candidate.
    """

    name: str
    axes: dict[str, list[Choice]]
    trials: list[Trial]
    seeds: list[int]
    description: dict[str, Any]
    tune_seeds: list[int] = field(default_factory=list)

    def to_resolve(self) -> list[Trial]:
        """Return the trials whose command lines are complete: candidates, and trials without `tune`."""
        return [each for trial in self.trials for each in (trial.candidates or (trial,))]


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
    axes = mapping_of(path, "axes", content["axes"])
    choices = {axis: read_choices(f"{path}: axes.{axis}", axis, values) for axis, values in axes.items()}
    options = options_of(f"{path}: options", content.get("options") or {})
    settings = options_of("litpeft sweep", settings or {})
    configs = config_names(f"{path}: configs", content.get("configs") or [])
    points = _points(choices, _exclusions(path, content, choices))
    tune = read_tune(f"{path}: tune", content.get("tune"))
    find = cache(find_config)  # looks through a folder each time
    trials = [_trial(path, point, configs, options, settings, tune, find) for point in points]
    if not trials:
        raise UserError(f"{path}: exclude leaves no trial; remove a rule.")
    names = Counter(trial.name for trial in trials)
    for trial in trials:
        if names[trial.name] > 1:
            raise UserError(f"{path}: axes: two trials are called {trial.label!r}; rename a variant.")
        if trial.name == TUNING:
            raise UserError(f"{path}: axes: the folder {TUNING} is for tuning runs; rename {trial.label!r}.")
    description = {key: content.get(key) for key in DESCRIPTION}
    if (over := description["average_over"]) is not None and over not in choices:
        raise UserError(f"{path}: average_over {over!r} is none of the axes {', '.join(choices)}.")
    description["baseline"] = _baseline(path, description["baseline"], trials, choices)
    seeds = _seeds(path, "seeds", content.get("seeds", 1))
    tune_seeds = []
    if any(trial.candidates for trial in trials):
        tune_seeds = _tune_seeds(path, content.get("tune_seeds"), seeds)
        if not str(metric := description["metric"] or "val_").startswith("val_"):
            raise UserError(f"{path}: metric {metric}: tune needs a validation metric; name one, such as val_loss.")
    return Experiment(path.stem, choices, trials, seeds, description, tune_seeds)


def _content(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a file, completed from the experiment named by `like`."""
    if path in seen:
        raise UserError(f"{path}: like refers back to this file.")
    content = read_yaml(str(path))
    if "like" not in content:
        return content
    if not isinstance(content["like"], str):
        raise UserError(f"{path}: like must be the name of an experiment or a file, got {content['like']!r}.")
    (name,) = config_names(f"{path}: like", content["like"])
    other = _content(Path(find_config(name)), (*seen, path))
    return {key: value for key, value in other.items() if key != "published"} | content


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
        for axis, values in mapping_of(path, "exclude", mapping).items():
            some = values if isinstance(values, list) else [values]
            rule[axis] = [choice_name(path, "exclude", axis, value, choices) for value in some]
        rules.append(rule)
    return rules


def _trial(
    path: Path,
    point: dict[str, Choice],
    configs: list[str],
    options: dict[str, Any],
    settings: dict[str, Any],
    tune: dict[str, list[Any]],
    find: Callable[[str], str],
) -> Trial:
    """Build a trial, and a candidate for each combination of its values of `tune`."""
    label = ",".join(choice.name for choice in point.values())
    chosen = [*configs, *(name for choice in point.values() for name in choice.configs)]
    configurations = [argument for name in chosen for argument in ("--config", find(name))]
    specific: dict[str, Any] = {}
    for more in [*(choice.options for choice in point.values()), settings]:
        specific |= more
    axes = {axis: without_option(axis, choice.name) for axis, choice in point.items()}
    name = folder_name(label)
    tuned = dict(tune)
    for choice in point.values():
        tuned |= choice.tune
    for option in tuned:
        if option in settings:
            raise UserError(f"litpeft sweep: {option} is in tune of {path}; leave it out, or change the values there.")
        if option in specific:
            raise UserError(f"{path}: tune: {option} is also set for {label}; give it there as tune with one value.")
    candidates = []
    for combination in itertools.product(*tuned.values()) if tuned else ():
        values = dict(zip(tuned, combination, strict=True))
        shown = ",".join(itertools.starmap(shown_value, values.items()))
        arguments = (*configurations, *_typed_options(options, specific | values))
        place = f"{TUNING}/{name}/{folder_name(shown)}"
        candidates.append(Trial(place, f"{TUNING}: {label},{shown}", axes, arguments, (), values))
    if len({each.name for each in candidates}) < len(candidates):
        raise UserError(f"{path}: tune: two combinations of values of {label} have the same name; leave one out.")
    arguments = (*configurations, *_typed_options(options, specific))
    return Trial(name, label, axes, arguments, tuple(candidates))


def _typed_options(common: dict[str, Any], specific: dict[str, Any]) -> list[str]:
    """Return the options of a trial as they are typed; its specific options override the common ones."""
    # common options first, and each class before its arguments, because naming a class resets its arguments
    settings = {key: value for key, value in common.items() if key not in specific}
    settings |= {key: specific[key] for key in sorted(specific, key=_depth)}
    return [f"--{option}={typed(value)}" for option, value in settings.items()]


def _depth(option: str) -> int:
    """Return the depth of an option: 1 for model.optimizer, 2 for model.optimizer.lr."""
    return option.replace(".init_args", "").removesuffix(".class_path").count(".")


def _seeds(path: Path, key: str, value: Any, start: int = 0) -> list[int]:
    """Return the seeds of a key of the file: a list, or the number of seeds that follow `start`."""
    count = isinstance(value, int) and not isinstance(value, bool) and value <= MOST_SEEDS
    seeds = list(range(start, start + value)) if count else value
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: {key} must be a number of seeds, or a list of different seeds, got {value!r}.")
    return seeds


def _tune_seeds(path: Path, value: Any, seeds: list[int]) -> list[int]:
    """Return the seeds of tuning runs; a number of them is taken after the largest seed of the final runs."""
    found = _seeds(path, "tune_seeds", 1 if value is None else value, max(FIRST_TUNING_SEED, max(seeds) + 1))
    if both := sorted(set(found) & set(seeds)):
        raise UserError(f"{path}: tune_seeds: seed {both[0]} is also in seeds; choose seeds that no final run has.")
    return found


def _baseline(path: Path, value: Any, trials: list[Trial], choices: dict[str, list[Choice]]) -> str | None:
    """Return the label of the baseline trial; the first trial if `baseline` is not set."""
    if value is None:
        return trials[0].label
    if isinstance(value, dict):
        names = {axis: choice_name(path, "baseline", axis, each, choices) for axis, each in value.items()}
        value = {axis: without_option(axis, name) for axis, name in names.items()}
    for trial in trials:
        if isinstance(value, dict):
            found = value.items() <= trial.axes.items()
        else:
            found = value in (trial.label, trial.shown(trial.label))
        if found:
            return trial.label
    raise UserError(
        f"{path}: baseline {value!r} is not a trial; there are {', '.join(trial.label for trial in trials)}."
    )

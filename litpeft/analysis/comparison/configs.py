"""Compare configurations of runs: values on an axis, keys covered by an axis, and keys that differ."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from litpeft.analysis.comparison.options import DATA_SEED, Options, short_key
from litpeft.analysis.comparison.results import Run, distinct_by
from litpeft.errors import UserError, did_you_mean

ABSENT = "(absent)"
FIELD_KEYS = {  # record field used as an axis -> config keys that it covers, with all keys below them
    # each method has a learning rate of its own; a remark names the rates
    "adapter": ("model.init_args.adapter", "model.init_args.optimizer.init_args.lr"),
    "optimizer": ("model.init_args.optimizer",),
    "scheduler": ("model.init_args.scheduler",),
    "lr": ("model.init_args.optimizer.init_args.lr",),
    "precision": ("model.init_args.dtype",),
    "task": ("model",),
    "model_name": ("model.init_args.model_name", "data.init_args.tokenizer"),
    "data": ("data",),
    "effective_batch_size": (
        "data.init_args.batch_size",
        "data.init_args.batch_tokens",
        "trainer.accumulate_grad_batches",
    ),
}
NO_EFFECT = re.compile(  # config keys that do not affect results
    r"seed_everything|run_dir|experiment|logger|config|resume|overwrite"
    r"|trainer\.(accelerator|logger|enable_\w+|log_every_n_steps|profiler|default_root_dir)"
    r"|data\.init_args\.(num_workers|cache_dir|predict_file|test_samples)"
    r"|checkpoint\.every_n_(steps|minutes)|(predictions|throughput|memory|energy|record|progress|benchmarks)(\..*)?"
)
ADAPTER = "model.adapter"
SHARED = re.compile(r"model\.adapter\.(?!class_path|quant_type)")
DATA_FILE = re.compile(r"data\.init_args\.(\w+)_file")


def value_of(run: Run, axis: str) -> Any:
    """Return the value of a run on an axis; ABSENT if the run has no such option.

    Args:
        run: the run.
        axis: record field, `lr`, or dotted config key with or without `init_args`.
    """
    record, flat = run.record, run.options
    if axis == "lr":
        first = next(iter(record.get("optimizer_settings") or ()), {})
        return first.get("initial_lr", first.get("lr", flat.get("model.init_args.optimizer.init_args.lr", ABSENT)))
    if axis in record and axis != "config":
        return record[axis]
    key = flat.key_of(axis)
    return ABSENT if key is None else flat[key]


def covered_keys(axes: Iterable[str]) -> list[str]:
    """Return the config keys that axes cover, each with all keys below it.

    A key ending in `class_path` also covers the options of the class.
    """
    keys = [key for axis in axes for key in FIELD_KEYS.get(axis, (axis,))]
    keys += [other for key in keys if short_key(key) == "model.model_name" for other in ("data.init_args.tokenizer",)]
    return [short_key(key).removesuffix(".class_path") for key in keys]


def is_covered(key: str, covered: Collection[str]) -> bool:
    """Return whether a config key is one of the covered keys or below one of them.

    The adapter axis covers the class and `quant_type` only, so that adapters with different ranks count as confounded.
    """
    name = short_key(key)
    above = set(covered) - ({ADAPTER} if SHARED.match(name) else set())
    return any(name == other or name.startswith(f"{other}.") for other in above)


def known_axes(axes: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Return the axes; the last part of an option's name stands for the option if no other has it, as in `rank`.

    Raises:
        UserError: no run has an axis, or several options end so; the message suggests names.
    """
    return [_known_axis(axis, runs) for axis in axes]


def _known_axis(axis: str, runs: Sequence[Run]) -> str:
    if any(value_of(run, axis) is not ABSENT for run in runs):
        return axis
    options = {id(run.options.shared): run.options for run in runs}.values()
    names = {short_key(key) for each in options for key in each} | set(FIELD_KEYS)
    close = sorted(name for name in names if name.endswith(f".{axis}"))
    if len(close) == 1:
        return close[0]
    guess = f" (did you mean {' or '.join(close)}?)" if close else did_you_mean(axis, names)
    raise UserError(f"--by {axis}: no run's record or configuration has it{guess}.")


def differing(flats: Sequence[Options], ignored: Collection[str] = ()) -> list[str]:
    """Return the keys that affect results and differ between configurations, sorted.

    An option missing from some configurations of the same class comes from another version of the class: no difference.
    """
    different = list({id(flat.shared): flat for flat in flats}.values())
    if len(different) == 1:  # at most the seed differs
        return []
    keys = set().union(*different) - set(ignored)
    kept = [key for key in keys if not NO_EFFECT.fullmatch(key)]
    return sorted(key for key in kept if _differs(flats if key == DATA_SEED else different, key))


def config_value(flat: Mapping[str, Any], key: str) -> Any:
    """Return the value of an option; None if its parent is not set, ABSENT if the class has no such option."""
    if key in flat:
        return flat[key]
    parent = key.rpartition(".")[0]
    return ABSENT if parent.endswith("init_args") or "." not in parent else None


def harmless_files(runs: Sequence[Run]) -> set[str]:
    """Return the keys of data files that may differ because the tables read from them are identical."""
    keys = set().union(*{id(run.options.shared): run.options for run in runs}.values())
    summaries = [run.record for run in distinct_by(runs, "data_summary")]
    splits = {match[1] for key in keys if (match := DATA_FILE.fullmatch(key))}
    same = set()
    for split in splits:
        tables = {fingerprint(record, split) for record in summaries}
        if len(tables - {None}) <= 1 and (None not in tables or split == "test"):  # the test split is optional
            same.add(f"data.init_args.{split}_file")
    return same


def fingerprint(record: Mapping[str, Any], split: str) -> str | None:
    """Return the fingerprint of the tokenised rows of a split; None if unknown."""
    tables = (record.get("data_summary") or {}).get("tables") or {}
    return (tables.get(split) or {}).get("fingerprint")


def value_as_text(item: Any) -> str:
    """Return a config value as text."""
    if item is None:
        return "none"
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, sort_keys=True)


def _differs(flats: Sequence[Mapping[str, Any]], key: str) -> bool:
    known = [item for flat in flats if (item := config_value(flat, key)) is not ABSENT]
    if key == "checkpoint.keep":  # all and a number keep more files; the weights of the run are the last ones too
        known = [item if item == "best" else "last" for item in known]
    partly_set = None in known and any(item is not None for item in known)
    if key == DATA_SEED and partly_set:  # Run.options replaces a data seed equal to the seed of the run by None
        known = [flat.get("seed_everything") if flat.get(key) is None else flat[key] for flat in flats]
    return any(item != known[0] for item in known[1:])

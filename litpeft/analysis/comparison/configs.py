"""Whole configurations against each other: what an axis covers, what changes no result, and what else differs."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from litpeft.analysis.comparison.results import Run
from litpeft.errors import UserError

ABSENT = "(absent)"
FIELD_KEYS = {  # record field that may be an axis -> config keys that it stands for, with all that is below them
    "adapter": ("model.init_args.adapter",),
    "optimizer": ("model.init_args.optimizer",),
    "scheduler": ("model.init_args.scheduler",),
    "lr": ("model.init_args.optimizer.init_args.lr",),
    "precision": ("model.init_args.dtype",),
    "task": ("model",),
    "model_name": ("model.init_args.model_name", "data.init_args.tokenizer"),
    "data": ("data",),
    "effective_batch_size": ("data.init_args.batch_size", "trainer.accumulate_grad_batches"),
}
CHANGES_NOTHING = re.compile(  # no result, or nothing but how closely it was watched
    r"seed_everything|run_dir|experiment|config|resume|overwrite"
    r"|trainer\.(accelerator|logger|enable_\w+|log_every_n_steps|profiler|default_root_dir)"
    r"|data\.init_args\.(num_workers|cache_dir|predict_file|test_samples)"
    r"|checkpoint\.every_n_steps|(predictions|throughput|memory|energy|record|progress|benchmarks)(\..*)?"
)
ADAPTER = "model.adapter"
SHARED = re.compile(r"model\.adapter\.(?!class_path|quant_type)")
DATA_SEED = "data.init_args.seed"
DATA_FILE = re.compile(r"data\.init_args\.(\w+)_file")


def short(key: str) -> str:
    """`model.init_args.adapter.init_args.rank` as one types it: `model.adapter.rank`."""
    return key.replace(".init_args", "")


def value_of(run: Run, axis: str) -> Any:
    """What a run has on an axis; ABSENT where it has no such option.

    Args:
        run: with its record and options.
        axis: a record's field, `lr`, or a dotted config key, with or without `init_args`.
    """
    record, flat = run.record, run.options
    if axis == "lr":
        first = next(iter(record.get("optimizer_settings") or ()), {})
        return first.get("initial_lr", first.get("lr", flat.get("model.init_args.optimizer.init_args.lr", ABSENT)))
    if axis in record and axis != "config":
        return record[axis]
    found = {key: item for key, item in flat.items() if short(key) == short(axis)}
    if not found:  # of a class, its name
        found = {key: item for key, item in flat.items() if short(key) == f"{short(axis)}.class_path"}
    return next(iter(found.values()), ABSENT)


def covered_keys(axes: Iterable[str]) -> list[str]:
    """Config keys that axes stand for, themselves or all that is below them.

    With a class its options differ: a key that ends in `class_path` covers all beside it too.
    """
    keys = [key for axis in axes for key in FIELD_KEYS.get(axis, (axis,))]
    keys += [other for key in keys if short(key) == "model.model_name" for other in ("data.init_args.tokenizer",)]
    return [short(key).removesuffix(".class_path") for key in keys]


def is_covered(key: str, covered: Collection[str]) -> bool:
    """Whether a config key is one of these, or below one.

    Rank, dropout and what else two adapters both have is not what makes them two: of an adapter, its class and what its
    name tells are covered; options that only one of them has are no difference anyway.
    """
    name = short(key)
    above = set(covered) - ({ADAPTER} if SHARED.match(name) else set())
    return any(name == other or name.startswith(f"{other}.") for other in above)


def check_axes(axes: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse an axis that no run knows.

    Raises:
        UserError: names it, and the closest name that there is.
    """
    for axis in axes:
        if all(value_of(run, axis) is ABSENT for run in runs):
            names = {short(key) for run in runs for key in run.options} | set(FIELD_KEYS)
            close = [name for name in sorted(names) if name.endswith(f".{axis}")]
            close = close or difflib.get_close_matches(axis, sorted(names), n=1)
            guess = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"--by {axis}: no run's record or configuration has it{guess}.")


def differing(flats: Sequence[Mapping[str, Any]], ignored: Collection[str] = ()) -> list[str]:
    """Keys that change a result and in which configurations differ, sorted.

    An option that only some have, beside others of the same class, is one that another version of the class does not
    know: no difference by itself. The class, the version and the commit are told apart elsewhere.
    """
    keys = set().union(*flats) - set(ignored)
    return sorted(key for key in keys if not CHANGES_NOTHING.fullmatch(key) and _differs(flats, key))


def config_value(flat: Mapping[str, Any], key: str) -> Any:
    """The value of an option: None if it lies below one that is not given, ABSENT if the class does not know it."""
    if key in flat:
        return flat[key]
    parent = key.rpartition(".")[0]
    return ABSENT if parent.endswith("init_args") or "." not in parent else None


def harmless_files(runs: Sequence[Run]) -> set[str]:
    """Keys of data files that may differ, because the tables that were made of them are known to be the same."""
    splits = {match[1] for run in runs for key in run.options if (match := DATA_FILE.fullmatch(key))}
    same = set()
    for split in splits:
        tables = {fingerprint(run.record, split) for run in runs}
        if len(tables - {None}) <= 1 and (None not in tables or split == "test"):  # not each run has been tested
            same.add(f"data.init_args.{split}_file")
    return same


def fingerprint(record: Mapping[str, Any], split: str) -> str | None:
    """Of the rows of a split, as they were tokenised; None where it is not known."""
    tables = (record.get("data_summary") or {}).get("tables") or {}
    return (tables.get(split) or {}).get("fingerprint")


def shown(item: Any) -> str:
    """A config value for readers."""
    if item is None:
        return "none"
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, sort_keys=True)


def _differs(flats: Sequence[Mapping[str, Any]], key: str) -> bool:
    known = [item for flat in flats if (item := config_value(flat, key)) is not ABSENT]
    some = None in known and any(item is not None for item in known)
    if key == DATA_SEED and some:  # one that was given to all is the run's own in one of them
        known = [flat.get("seed_everything") if flat.get(key) is None else flat[key] for flat in flats]
    return any(item != known[0] for item in known[1:])

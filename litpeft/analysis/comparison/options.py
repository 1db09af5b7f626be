"""The options of a run: its configuration as {dotted key: value}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from litpeft.runs.indexed_record import IndexedRecord

SEED, DATA_SEED = "seed_everything", "data.init_args.seed"


class Flat(dict[str, Any]):
    """{dotted key: value} of a configuration; an empty mapping is a value."""

    @cached_property
    def by_short_key(self) -> dict[str, str]:
        """The keys by their short names; of several with the same, the first."""
        return {short_key(key): key for key in reversed(self)}


class Options(Mapping[str, Any]):
    """The options of a run. Runs that differ only in the seed share all others, if their records are in one index.

    Args:
        shared: {dotted key: value}; runs whose `shared` is the same object differ at most in the seed.
        seed: value of `seed_everything`, if that is an option.
    """

    __slots__ = ("seed", "shared")

    def __init__(self, shared: Flat, seed: Any) -> None:
        self.shared, self.seed = shared, seed

    def key_of(self, axis: str) -> str | None:
        """Return the key of an option given with or without `init_args`, or of its class; None without one."""
        short = short_key(axis)
        return self.shared.by_short_key.get(short) or self.shared.by_short_key.get(f"{short}.class_path")

    def __getitem__(self, key: str) -> Any:
        found = self.shared[key]
        return self.seed if key == SEED else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.shared)

    def __len__(self) -> int:
        return len(self.shared)

    def __contains__(self, key: object) -> bool:
        return key in self.shared


def short_key(key: str) -> str:
    """Return a config key as typed on the command line: without `init_args`, as in `model.adapter.rank`."""
    return key.replace(".init_args", "")


def options_of(record: Mapping[str, Any]) -> Options:
    """Return the options of a run from its record; a data seed equal to the seed of the run becomes None."""
    if not isinstance(record, IndexedRecord):
        config = record.get("config") or {}
        flat, seed = Flat(), config.get(SEED)
        _flatten(config, "", flat)
        if flat.get(DATA_SEED) == seed:
            flat[DATA_SEED] = None
        return Options(flat, seed)
    number, config, seed, flat_configs = record.shared_config
    seed = (config or {}).get(SEED) if seed is None else seed
    if (shared := flat_configs.get(number)) is None:
        shared = flat_configs[number] = Flat()
        _flatten(config or {}, "", shared)
    if shared.get(DATA_SEED) != seed:
        return Options(shared, seed)
    if (without := flat_configs.get((number, None))) is None:
        without = flat_configs[number, None] = Flat(shared | {DATA_SEED: None})
    return Options(without, seed)


def _flatten(config: Mapping[str, Any], prefix: str, flat: Flat) -> None:
    for key, item in config.items():
        if isinstance(item, dict) and item:
            _flatten(item, f"{prefix}{key}.", flat)
        else:
            flat[f"{prefix}{key}"] = item

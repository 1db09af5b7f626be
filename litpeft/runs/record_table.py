"""Hold many run records by columns; a value that records have in common is checked and held once."""

from __future__ import annotations

import json
import marshal
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from litpeft.runs.record import FIELDS, VERSION, complete_evaluations
from litpeft.runs.record_schema import NUMBER, OTHERS, RECORD, WHOLE, acceptor

LARGE = (  # other in every run and rarely needed: checked, and read from the file when they are asked for
    *("validations", "memory_phases", "step_split_seconds_p50", "step_split_seconds_p95", "energy_joules_by_source"),
    *("peaks_by_process",),
)
KINDS = {name: RECORD.get(name, RECORD[OTHERS]) for name in FIELDS}
WHOLE_NUMBERS = tuple(name for name, kind in KINDS.items() if kind == WHOLE)
NUMBERS = tuple(name for name, kind in KINDS.items() if kind == NUMBER)
SHARED = tuple(name for name in FIELDS if name not in (*LARGE, *NUMBERS, *WHOLE_NUMBERS))
CONFIG_SEED = "config.seed_everything"  # a column, so that runs that differ only in the seed have one configuration
ACCEPTS = {name: acceptor(kind) for name, kind in KINDS.items()}
ALL_NUMBERS, ALL_WHOLE = acceptor([NUMBER]), acceptor([WHOLE])
NULL = -(2**63)  # stands for null in a column of whole numbers


class RecordTable:
    """The fields of many records, by columns.

    Attributes:
        rows: number of records.
        numbers: {name of a number: its value in each record}.
        ids: {name of another field: number of its value in each record}.
        shared: {name of another field: its different values}.
        values: {name of a field: its value in each record}; a column is made when it is first asked for.
        complete: records that are held complete, by row.
        flat_configs: configurations as {dotted key: value}, kept here by the comparison.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.numbers: dict[str, Any] = {name: [] for name in (*NUMBERS, *WHOLE_NUMBERS, CONFIG_SEED)}
        self.ids: dict[str, Any] = {name: array("I") for name in SHARED}
        self.shared: dict[str, list[Any]] = {name: [] for name in SHARED}
        self.values = _Values(self)
        self.complete: dict[int, dict[str, Any]] = {}
        self.flat_configs: dict[Any, dict[str, Any]] = {}
        self._known: dict[str, dict[Any, int]] = {name: {} for name in SHARED}  # key of a value -> its number

    def add(self, text: str) -> bool:
        """Add the record in a text; return False, and add nothing, if it is invalid or has unknown fields."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if type(record) is not dict or not record.keys() <= FIELDS.keys() or record.get("version") != VERSION:
            return False
        seed, config = None, record.get("config")
        if type(config) is dict and type(config.get("seed_everything")) is int:
            seed, config["seed_everything"] = config["seed_everything"], None
        numbers = [*map(record.get, NUMBERS), *(whole := list(map(record.get, WHOLE_NUMBERS)))]
        if not ALL_NUMBERS(numbers) or not ALL_WHOLE(whole):
            return False
        if not all(ACCEPTS[name](record[name]) for name in LARGE if record.get(name) is not None):
            return False
        if not self._known["config"] and self.rows:
            self._know_loaded()
        try:
            ids = [self._number(name, record.get(name)) for name in SHARED]
        except ValueError:
            return False
        for name, value in zip(self.numbers, (*numbers, seed), strict=True):
            self.numbers[name].append(value)
        for name, number in zip(SHARED, ids, strict=True):
            self.ids[name].append(number)
        self.rows += 1
        self.values.clear()
        return True

    def extend(self, other: RecordTable) -> None:
        """Add the records of another table."""
        if not self._known["config"] and self.rows:
            self._know_loaded()
        for name, column in self.numbers.items():
            column.extend(other.numbers[name])
        for name in SHARED:
            numbers = [self._number(name, value) for value in other.shared[name]]
            self.ids[name].extend(map(numbers.__getitem__, other.ids[name]))
        self.rows += other.rows
        self.values.clear()

    def _number(self, name: str, value: Any) -> int:
        """Return the number of a value of a column; a new value is added.

        Raises:
            ValueError: the value is not valid.
        """
        known, key = self._known[name], _key(value)
        if (number := known.get(key)) is None:
            if not ACCEPTS[name](value):
                raise ValueError(name)
            number = known[key] = len(self.shared[name])
            self.shared[name].append(complete_evaluations(value) if name == "benchmarks" else value)
        return number

    def _know_loaded(self) -> None:
        """Number the values of a loaded table, so that records can be added."""
        self._known = {name: {_key(value): number for number, value in enumerate(self.shared[name])} for name in SHARED}

    def has(self, name: str) -> bool:
        """Return whether any record has a value of a field that is not large."""
        if name in SHARED:
            return self.shared[name] != [None]
        return self.numbers[name].count(None) < self.rows

    def take(self, rows: Sequence[int]) -> RecordTable:
        """Return a table of these rows, in this order, without values that none of them has."""
        taken = RecordTable()
        taken.rows = len(rows)
        for name in self.numbers:
            column = self.numbers[name]
            taken.numbers[name] = [column[row] for row in rows]
        for name in SHARED:
            column, numbers = self.ids[name], dict[int, int]()
            taken.ids[name] = array("I", [numbers.setdefault(column[row], len(numbers)) for row in rows])
            taken.shared[name] = [self.shared[name][number] for number in numbers]
        return taken

    def dump(self) -> Iterator[tuple[str, bytes]]:
        """Yield the columns as (name, bytes), for `load`."""
        for name, column in self.numbers.items():
            kinds = set(map(type, column)) - {type(None)}
            if kinds == {float}:
                content = b"d" + array("d", [float("nan") if each is None else each for each in column]).tobytes()
            elif kinds <= {int} and all(each is None or NULL < each < -NULL for each in column):
                content = b"q" + array("q", [NULL if each is None else each for each in column]).tobytes()
            else:
                content = b"j" + json.dumps(column).encode()
            yield name, content
        for name in SHARED:
            yield f"{name} ids", self.ids[name].tobytes()
            yield name, json.dumps(self.shared[name]).encode()

    @classmethod
    def load(cls, rows: int, columns: Mapping[str, Any]) -> RecordTable:
        """Return the table of `rows` records that `dump` wrote; columns are read when they are first asked for.

        Raises:
            KeyError: a column is missing.
        """
        table = cls()
        table.rows = rows
        table.numbers = _Lazy({name: columns[name] for name in table.numbers}, _numbers)
        table.ids = _Lazy({name: columns[f"{name} ids"] for name in SHARED}, lambda content: _array("I", content))
        table.shared = _Lazy({name: columns[name] for name in SHARED}, lambda content: json.loads(bytes(content)))
        return table


class _Values(dict[str, Any]):
    """The columns of a table as values, made when they are first asked for."""

    def __init__(self, table: RecordTable) -> None:
        self.table = table

    def __missing__(self, name: str) -> Any:
        if name in SHARED:
            shared = self.table.shared[name]
            self[name] = _Configs(self.table) if name == "config" else [shared[i] for i in self.table.ids[name]]
        elif name in FIELDS and name not in LARGE:
            self[name] = self.table.numbers[name]
        else:
            raise KeyError(name)
        return self[name]


class _Configs:
    """The configuration of each record, with its seed."""

    def __init__(self, table: RecordTable) -> None:
        self.shared, self.ids, self.seeds = table.shared["config"], table.ids["config"], table.numbers[CONFIG_SEED]

    def __getitem__(self, row: int) -> Any:
        shared, seed = self.shared[self.ids[row]], self.seeds[row]
        return shared if seed is None else {**shared, "seed_everything": seed}


class _Lazy(dict[str, Any]):
    """Columns that are read from bytes when they are first asked for."""

    def __init__(self, waiting: dict[str, Any], read: Callable[[Any], Any]) -> None:
        self.waiting, self.read = waiting, read

    def __missing__(self, name: str) -> Any:
        self[name] = self.read(self.waiting[name])
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.waiting)


def _key(value: Any) -> Any:
    """Return a key that is the same only for the same JSON value, with the types and the order of its parts.

    Raises:
        ValueError: the value is nested too deeply.
    """
    # version 2 of the format has no references, which differ between equal values
    return value if value is None or type(value) is str else marshal.dumps(value, 2)


def _array(kind: str, content: Any) -> array[Any]:
    found = array(kind)
    found.frombytes(content)
    return found


def _numbers(content: Any) -> list[Any]:
    kind, content = bytes(content[:1]).decode(), content[1:]
    if kind == "d":
        return [None if each != each else each for each in _array("d", content)]
    if kind == "q":
        return [None if each == NULL else each for each in _array("q", content)]
    return json.loads(bytes(content))

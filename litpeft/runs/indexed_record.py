"""A run record in a table of many records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.runs.record import FIELDS, read_record
from litpeft.runs.record_table import CONFIG_SEED, LARGE, RecordTable

KEPT = 1000  # records that are held complete after one of their large fields was read


class IndexedRecord(Mapping[str, Any]):
    """A record in a table, with the fields of `read_record`; large fields are read from its file.

    Args:
        table: the table.
        row: row of the record.
        folder: the run folder.
    """

    __slots__ = ("_folder", "_row", "_table", "_values")

    def __init__(self, table: RecordTable, row: int, folder: Path) -> None:
        self._table, self._row, self._folder, self._values = table, row, folder, table.values

    def __getitem__(self, name: str) -> Any:
        return self._complete()[name] if name in LARGE else self._values[name][self._row]

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self._values[name][self._row]
        except KeyError:
            return self._complete()[name] if name in LARGE else default

    def __iter__(self) -> Iterator[str]:
        return iter(FIELDS)

    def __len__(self) -> int:
        return len(FIELDS)

    def __contains__(self, name: object) -> bool:
        return name in FIELDS

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self) | dict(other)

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(other) | dict(self)

    @property
    def shared_config(self) -> tuple[int, Any, int | None, dict[Any, dict[str, Any]]]:
        """Return the number and content of the configuration without its seed, the seed, and `table.flat_configs`."""
        table, number = self._table, self._table.ids["config"][self._row]
        return number, table.shared["config"][number], table.numbers[CONFIG_SEED][self._row], table.flat_configs

    @property
    def table(self) -> RecordTable:
        return self._table

    def _complete(self) -> dict[str, Any]:
        """Read the record from its file.

        Raises:
            UserError: the file cannot be read, or has another record now.
        """
        complete = self._table.complete
        if self._row not in complete:
            record = read_record(self._folder)
            if any(record[name] != self._values[name][self._row] for name in FIELDS if name not in LARGE):
                raise UserError(f"{self._folder} has changed while its record was read; give the command again.")
            if len(complete) >= KEPT:
                complete.clear()
            complete[self._row] = record
        return complete[self._row]


def column(records: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return the value of a field in each record; None where it is missing."""
    try:  # without a call for each record, of which there may be 100,000
        return [record._values[name][record._row] for record in records]
    except (AttributeError, KeyError):
        return [record.get(name) for record in records]


def known_fields(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the names of all fields that may be known in these records: the others are null in each of them.

    Of a record with other metrics or benchmarks, all fields may be known, because a figure may be among them.
    """
    known: set[str] = set()
    tables: dict[int, RecordTable] = {}
    for record in records:
        if record.get("other_metrics") or record.get("benchmarks"):
            return set(FIELDS)
        if isinstance(record, IndexedRecord):
            tables[id(record.table)] = record.table
        else:
            known.update(name for name, value in record.items() if value is not None)
    for table in tables.values():
        known.update(name for name in FIELDS if name in LARGE or table.has(name))
    return known

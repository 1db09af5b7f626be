"""The index of many records: whatever changes in a folder is noticed, and no result depends on the index."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from litpeft.errors import UserError
from litpeft.runs import indexed_record, record_index, record_reader
from litpeft.runs.indexed_record import known_fields
from litpeft.runs.record import FIELDS, FILE_NAME, VERSION, as_json, new_record, read_record
from litpeft.runs.record_index import FEWEST, INDEX, RecordFolder
from litpeft.runs.record_reader import RECENT
from litpeft.runs.record_schema import RECORD, acceptor, schema_error
from litpeft.runs.record_table import LARGE, SHARED, RecordTable

SKIP = "sweep.yaml", "tuning"
NAMES = "a", "b", "tuning"


@pytest.fixture(autouse=True)
def few_and_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Index any number of records, also those that have just been written."""
    monkeypatch.setattr(record_index, "FEWEST", 1)
    monkeypatch.setattr(record_reader, "RECENT", 0)


def record_of(number: int, **more: Any) -> dict[str, Any]:
    config = {"trainer": {"max_epochs": 1}, "seed_everything": number, "data": {"init_args": {"seed": None}}}
    figures = {"val_loss": number / 7, "steps": number, "packages": {"torch": "2"}, "status": "ok"}
    return new_record() | figures | {"seed": number, "config": config, "validations": [{"step": number}]} | more


def write(folder: Path, number: int, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(as_json(record_of(number, **more)), encoding="utf-8")


@pytest.mark.parametrize("vanishes", [True, False])
def test_an_index_that_cannot_take_its_place_leaves_nothing(
    vanishes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(scratch: str, path: Path) -> None:
        if vanishes:  # as where another process removes the folder
            Path(scratch).unlink()
        raise PermissionError("read-only")

    write(tmp_path / "a", 1)
    monkeypatch.setattr(record_index.os, "replace", refuse)
    below = RecordFolder(tmp_path, SKIP)
    assert [below.record(run, tmp_path / run)["seed"] for run in below.runs] == [1]
    below.save()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_fields_that_are_null_in_all_records_are_not_known(tmp_path: Path) -> None:
    null = {name for name, value in record_of(1).items() if value is None}
    assert known_fields([record_of(1), record_of(2)]) == FIELDS.keys() - null
    assert known_fields([record_of(1), record_of(2, test_loss=0.5)]) == FIELDS.keys() - null | {"test_loss"}
    for more in (
        {"other_metrics": {"val_f1": 0.5}},
        {"benchmarks": [{"step": 1, "results": {}}]},
    ):  # with other figures
        assert known_fields([record_of(1), record_of(2, **more)]) == FIELDS.keys()
    for number in (1, 2):
        write(tmp_path / f"{number}", number)
    below = RecordFolder(tmp_path, SKIP)
    indexed = [below.record(run, tmp_path / run) for run in below.runs]
    assert known_fields(indexed) - set(LARGE) == FIELDS.keys() - null - set(LARGE)
    assert known_fields(indexed) > set(LARGE)  # fields that are not in the table may be known
    write(tmp_path / "3", 3, other_metrics={"val_f1": 0.5})
    below = RecordFolder(tmp_path, SKIP)
    assert known_fields([below.record(run, tmp_path / run) for run in below.runs]) == FIELDS.keys()


def found(folder: Path) -> list[tuple[Path, dict[str, Any]]] | str:
    """Return what the index finds, and renew it; or the error."""
    below = RecordFolder(folder, SKIP)
    try:
        records = [(folder / run, dict(below.record(run, folder / run))) for run in below.runs]
    except UserError as error:
        return str(error)
    below.save()
    return records


def expected(folder: Path) -> list[tuple[Path, dict[str, Any]]] | str:
    """Return what is there, without an index; or the error."""
    folders = []
    for path, subfolders, files in os.walk(folder):
        if FILE_NAME in files:
            folders.append(Path(path))
            subfolders.clear()
        if SKIP[0] in files and SKIP[1] in subfolders:
            subfolders.remove(SKIP[1])
        subfolders.sort()
    try:
        return [(path, read_record(path)) for path in folders]
    except UserError as error:
        return str(error)


def same(folder: Path) -> bool:
    """Return whether an index, old and renewed, gives what is there, with the types of all numbers."""
    return repr(found(folder)) == repr(expected(folder)) == repr(found(folder))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _half(path: Path) -> None:
    text = as_json(record_of(5))
    path.mkdir(parents=True, exist_ok=True)
    (path / FILE_NAME).write_text(text[: len(text) // 2])


def _same_size_and_time(path: Path) -> None:
    """Change a digit in place and set the time of modification back, as some copying programs do."""
    file = path / FILE_NAME
    if file.is_file():
        before, content = file.stat(), file.read_bytes()  # bytes: it may be no UTF-8
        file.write_bytes(content.replace(b'"steps": 1', b'"steps": 2'))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _move(path: Path) -> None:
    if path.exists() and not path.with_name("moved").exists():
        path.rename(path.with_name("moved"))


def _link(path: Path) -> None:
    target = path.parent / "outside"
    write(target, 8)
    if not path.exists() and not path.is_symlink():
        path.symlink_to(target, target_is_directory=True)


def _linked_record(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    other = path / "other.json"
    other.write_text(as_json(record_of(9)))
    (path / FILE_NAME).unlink(missing_ok=True)
    (path / FILE_NAME).symlink_to(other)


CHANGES: dict[str, Callable[[Path], None]] = {
    "write": lambda path: write(path, 1),
    "write another": lambda path: write(path, 123, error="ö\u2028"),
    "same size and time": _same_size_and_time,
    "half a record": _half,
    "compact": lambda path: (write(path, 3), (path / FILE_NAME).write_text(json.dumps(record_of(3))))[0],
    "unknown field": lambda path: (write(path, 3), (path / FILE_NAME).write_text('{"version": 1, "more": 2}'))[0],
    "not UTF-8": lambda path: (write(path, 3), (path / FILE_NAME).write_bytes(b"\xff{}"))[0],
    "remove": _remove,
    "remove the record": lambda path: (path / FILE_NAME).unlink(missing_ok=True),
    "empty folder": lambda path: path.mkdir(parents=True, exist_ok=True),
    "sweep beside": lambda path: (path.parent.mkdir(parents=True, exist_ok=True), (path.parent / SKIP[0]).touch())[0],
    "move": _move,
    "link": _link,
    "linked record": _linked_record,
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_known_run_is_noticed(tmp_path: Path, change: str) -> None:
    for name in ("a", "b"):
        write(tmp_path / "runs" / name, 1)
    assert same(tmp_path / "runs")
    time.sleep(0.01)
    CHANGES[change](tmp_path / "runs" / "a")
    assert same(tmp_path / "runs")


places = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(CHANGES)), places), min_size=1, max_size=7))
def test_any_change_in_a_folder_is_noticed(changes: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "runs"
        write(folder / "z", 0)
        assert same(folder)
        for change, place in changes:
            time.sleep(0.008)  # longer than the resolution of the times of files
            path = folder / place
            if any(part.is_file() or part.is_symlink() for part in (path, *path.parents)):
                continue
            CHANGES[change](path)
            assert same(folder), f"{change} {place}"


def test_only_what_changed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, listed = list[str](), list[str]()
    reading, listing = record_reader.read, RecordFolder._list
    monkeypatch.setattr(record_reader, "read", lambda path, *more: (read.append(path), reading(path, *more))[1])
    monkeypatch.setattr(RecordFolder, "_list", lambda self, path: (listed.append(path), listing(self, path))[1])
    for number in range(6):
        write(tmp_path / f"trial{number // 2}" / f"seed{number % 2}", number)
    found(tmp_path)
    assert len(read) == 6
    written = (tmp_path / INDEX).stat()
    read.clear(), listed.clear()
    found(tmp_path)
    assert (read, listed) == ([], [""])  # the index itself has changed the folder that holds it
    assert (tmp_path / INDEX).stat() == written
    time.sleep(0.01)
    write(tmp_path / "trial1" / "seed1", 30)
    write(tmp_path / "trial2" / "seed2", 31)
    listed.clear()
    found(tmp_path)
    assert sorted(read) == [f"{tmp_path}/trial1/seed1/{FILE_NAME}", f"{tmp_path}/trial2/seed2/{FILE_NAME}"]
    assert (tmp_path / INDEX).stat().st_ino != written.st_ino


def test_many_records_are_read_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        write(tmp_path / f"{number}", number, val_loss=None if number == 4 else number / 7)
    (tmp_path / "7" / FILE_NAME).write_text("{}")  # is refused when it is asked for
    paths = [f"{tmp_path}/{number}/{FILE_NAME}" for number in range(9)]
    monkeypatch.setattr(record_reader, "available_cores", lambda: 4)
    alone, together = RecordTable(), RecordTable()
    now = time.time_ns() + 2 * RECENT
    expected = record_reader.read_all(paths, alone, now)  # too few for several
    started = list[Any]()
    popen = record_reader.subprocess.Popen
    monkeypatch.setattr(
        record_reader.subprocess, "Popen", lambda *a, **o: (started.append(popen(*a, **o)), started[-1])[1]
    )
    monkeypatch.setattr(record_reader, "FEWEST", 3)
    together.add(Path(paths[0]).read_text())  # as a table that an index already has
    found = record_reader.read_all(paths, together, now)
    assert [process.returncode for process in started] == [0, 0]
    assert [signature for _, signature in found] == [signature for _, signature in expected]
    assert [row - (row >= 0) for row, _ in found] == [row for row, _ in expected]
    assert expected[7] == (record_reader.UNREAD, record_reader.NEVER)
    assert (together.rows, alone.rows) == (9, 8)
    for name in ("seed", "val_loss", "steps", "packages", "status", "config"):
        ours, theirs = together.values[name], alone.values[name]
        assert [ours[row + 1] for row in range(8)] == [theirs[row] for row in range(8)]
    for table in (together, alone):  # both know their values: nothing is held twice
        assert len(table.shared["config"]) == len(table.shared["packages"]) == 1


def test_what_a_process_fails_to_read_is_read_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        write(tmp_path / f"{number}", number)
    monkeypatch.setattr(record_reader, "available_cores", lambda: 2)
    monkeypatch.setattr(record_reader, "FEWEST", 3)
    monkeypatch.setattr(record_reader.sys, "executable", shutil.which("false"))
    below = RecordFolder(tmp_path, SKIP)
    assert [below.entries[run][0] for run in below.runs] == [0, 1, 2, *[record_reader.UNREAD] * 3]
    assert [below.record(run, tmp_path / run)["seed"] for run in below.runs] == list(range(6))


def test_what_may_change_within_the_resolution_of_times_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds: the clock of another machine may differ, and the times of some file systems have two seconds."""
    monkeypatch.setattr(record_reader, "RECENT", RECENT)
    write(tmp_path / "a", 1)
    changed = (tmp_path / "a" / FILE_NAME).stat().st_ctime_ns
    for seconds, again in ((0, True), (9.9, True), (11, False)):
        monkeypatch.setattr(time, "time_ns", lambda seconds=seconds: changed + round(seconds * 1e9))
        (tmp_path / INDEX).unlink(missing_ok=True)
        found(tmp_path)
        known = RecordFolder(tmp_path, SKIP).known
        assert (known["a"][1] == record_reader.NEVER) == again


@pytest.mark.parametrize("modified", [-(10**9) * 3600, 20 * 10**9])
def test_a_file_whose_time_of_modification_was_set_is_read_again_too(
    modified: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set back an hour, as some copying programs do: its status has changed now. Or in the future: clocks differ."""
    monkeypatch.setattr(record_reader, "RECENT", RECENT)
    write(tmp_path / "a", 1)
    changed = (tmp_path / "a" / FILE_NAME).stat().st_mtime_ns
    os.utime(tmp_path / "a" / FILE_NAME, ns=(changed + modified, changed + modified))
    for seconds, again in ((9, True), (12, modified > 0), (31, False)):
        monkeypatch.setattr(time, "time_ns", lambda seconds=seconds: changed + seconds * 10**9)
        (tmp_path / INDEX).unlink(missing_ok=True)
        found(tmp_path)
        assert (RecordFolder(tmp_path, SKIP).known["a"][1] == record_reader.NEVER) == again


def test_below_a_thousand_records_there_is_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FEWEST == 1000
    monkeypatch.setattr(record_index, "FEWEST", 3)
    for number in range(3):
        write(tmp_path / f"{number}", number)
        assert same(tmp_path)
        assert (tmp_path / INDEX).exists() == (number == 2)


@pytest.mark.parametrize("failing", ["mkstemp", "replace"])
@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_without_the_right_or_the_space_to_write_there_is_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, reason: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(tempfile if failing == "mkstemp" else os, failing, fail)
    write(tmp_path / "a", 1)
    assert same(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("runs")
    for number in range(4):
        write(folder / f"seed{number}", number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_index, "FEWEST", 1)
        patch.setattr(record_reader, "RECENT", 0)
        found(folder)
    return folder, (folder / INDEX).read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_index_is_made_anew(indexed: tuple[Path, bytes], data: st.DataObject) -> None:
    folder, whole = indexed
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    bit = 1 << data.draw(st.integers(0, 7))
    damaged = whole[:place] if cut else whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
    (folder / INDEX).write_bytes(damaged)
    assert RecordFolder(folder, SKIP).known == {}
    assert same(folder)
    assert RecordFolder(folder, SKIP).known != {}


def test_an_index_of_other_fields_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(record_index, "CONTENT", 1)
        found(tmp_path)
        assert RecordFolder(tmp_path, SKIP).known
    assert not RecordFolder(tmp_path, SKIP).known
    assert same(tmp_path)
    assert RecordFolder(tmp_path, SKIP).known


def test_two_commands_at_once_leave_a_right_index(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    first = RecordFolder(tmp_path, SKIP)
    first.record("a", tmp_path / "a")
    time.sleep(0.01)
    write(tmp_path / "a", 2)
    write(tmp_path / "b", 3)
    second = RecordFolder(tmp_path, SKIP)
    for run in second.runs:
        second.record(run, tmp_path / run)
    second.save()
    first.save()  # an older state; what differs from it is read again
    assert same(tmp_path)


def test_a_large_field_of_a_record_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    record = RecordFolder(tmp_path, SKIP).record("a", tmp_path / "a")
    assert record["steps"] == 1
    write(tmp_path / "a", 2)
    with pytest.raises(UserError, match="has changed while its record was read; give the command again"):
        record["validations"]


def test_only_some_records_are_held_complete_and_each_of_them_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The large fields of all runs of a folder need not fit into memory."""
    monkeypatch.setattr(indexed_record, "KEPT", 3)
    reads: list[str] = []
    monkeypatch.setattr(indexed_record, "read_record", lambda folder: reads.append(folder.name) or read_record(folder))
    for number in range(8):
        write(tmp_path / f"run{number}", number)
    folder = RecordFolder(tmp_path, SKIP)
    records = [folder.record(f"run{number}", tmp_path / f"run{number}") for number in range(8)]
    held = []
    for number, record in enumerate(records):
        for _ in range(2):
            assert record["validations"] == [{"step": number}]
        held.append(len(record.table.complete))
    assert max(held) == 3
    assert reads == [f"run{number}" for number in range(8)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(list(FIELDS)), values, max_size=4))
def test_what_the_fast_check_accepts_is_valid(fields: dict[str, Any]) -> None:
    if acceptor(RECORD)(fields):
        assert schema_error(fields, RECORD) is None


def test_the_fast_check_accepts_a_record() -> None:
    assert acceptor(RECORD)(record_of(1))
    labels = {"matched_by": "name", "names": {"0": "no"}}
    assert acceptor(RECORD)({"head_labels": labels})
    assert not acceptor(RECORD)({"head_labels": labels | {"matched_by": None}})
    assert not acceptor(RECORD)({"head_labels": {"names": {}}})
    assert not acceptor(RECORD)({"seed": 1.0})
    assert not acceptor(RECORD)({"val_loss": float("nan")})
    for value, reason in ((10**400, "too large"), (-(10**400), "too large"), (1e100, "too large"), (math.nan, "NaN")):
        assert not acceptor(RECORD)({"val_loss": value})
        assert schema_error({"val_loss": value}, RECORD) == f"val_loss must be a number, but is {reason}"
    assert schema_error({"val_loss": 9.9e99}, RECORD) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(list(FIELDS)), values, max_size=4), max_size=3))
@example([{"experiment": "a"}, {"experiment": "b", "error": "x"}, {"error": "y"}])
def test_a_table_has_the_valid_records_after_it_was_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    folder, table, kept = tmp_path_factory.getbasetemp() / "table", RecordTable(), []
    folder.mkdir(exist_ok=True)
    for number, fields in enumerate([{}, *records]):
        text = as_json(record_of(number) | fields | {"version": 1})
        (folder / FILE_NAME).write_bytes(text.encode(errors="surrogatepass"))
        try:
            record = read_record(folder)
        except UserError:
            assert not table.add(text)
        else:
            if table.add(text):
                kept.append(record)
    loaded = RecordTable.load(table.rows, dict(table.dump()))
    assert loaded.add(as_json(record_of(0)))
    for each in (table, loaded, loaded.take(range(table.rows))):
        for row, record in enumerate(kept):
            names = [name for name in FIELDS if name in SHARED or name in each.numbers]
            assert repr([each.values[name][row] for name in names]) == repr([record[name] for name in names])


@pytest.mark.parametrize("name", [*LARGE, "benchmarks", "config", "val_loss", "steps", "adapter"])
def test_an_invalid_value_in_any_kind_of_field_keeps_a_record_out_of_the_table(name: str) -> None:
    table = RecordTable()
    assert not table.add(as_json(record_of(0) | {"version": VERSION, name: [float("1e99"), {}]}))
    assert table.add(as_json(record_of(0) | {"version": VERSION, name: None}))
    assert table.rows == 1


def test_tuning_runs_beside_the_file_of_a_sweep_are_not_searched(tmp_path: Path) -> None:
    for number, name in enumerate(("one/tuning/a", "one/b", "two/tuning/a", "two/tuning.txt/c")):
        write(tmp_path / name, number)
    (tmp_path / "one" / "sweep.yaml").touch()
    assert RecordFolder(tmp_path, SKIP).runs == ["one/b", "two/tuning/a", "two/tuning.txt/c"]
    (tmp_path / "one" / "sweep.yaml").unlink()
    assert RecordFolder(tmp_path, SKIP).runs[:2] == ["one/b", "one/tuning/a"]
    assert same(tmp_path)

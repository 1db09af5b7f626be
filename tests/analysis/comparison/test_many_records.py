"""Comparisons of many records: the same to the byte with an index of the records, without one, and after a change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litpeft.analysis import power
from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.formats import FORMATS
from litpeft.analysis.comparison.grouping import find_runs
from litpeft.analysis.comparison.terminal import as_text
from litpeft.analysis.power import MOST_PAIRS, POWER, pairs_needed, pairs_to_decide
from litpeft.errors import UserError
from litpeft.runs import record_index, record_reader
from litpeft.runs.indexed_record import IndexedRecord
from litpeft.runs.record import read_record, write_record
from litpeft.runs.record_index import INDEX
from tests.analysis.comparison.build import write_grid, write_run
from tests.growth.made_sweep import write_sweep

WAYS: list[dict[str, Any]] = [
    {},
    {"by": ["rank", "model.optimizer.lr"], "targets": [("val_accuracy", 0.5)]},
    {"by": ["adapter", "lr", "effective_batch_size"], "relative": True, "baseline": None},
    {"by": ["model.adapter.rank", "lr"], "figures": ["val_f1", "peak_rss_bytes", "steps"], "prefer": "time"},
    {"by": ["adapter"]},  # refused: the ranks differ
    {"by": ["no_such_axis"]},
    {"by": ["rank", "lr"], "figures": ["no_such_figure"]},
    {"by": ["rank", "lr"], "examples": True},  # refused: no run saved them
]


def shown(folder: Path, **how: Any) -> dict[str, str] | str:
    """Return a comparison in all formats, or the error."""
    try:
        comparison = compare(folder, **how)
    except UserError as error:
        return str(error)
    return {name: form(comparison) for name, form in FORMATS.items()} | {"terminal": as_text(comparison)}


@pytest.fixture
def indexing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Index any number of records; a context of it in which FEWEST is large has no index."""
    monkeypatch.setattr(record_index, "FEWEST", 1)
    monkeypatch.setattr(record_reader, "RECENT", 0)
    return monkeypatch


def check(folder: Path, indexing: pytest.MonkeyPatch, ways: list[dict[str, Any]]) -> None:
    """Check that comparisons with a new index and with an old one are those without one."""
    for how in ways:
        with indexing.context() as patch:
            patch.setattr(record_index, "FEWEST", 10**9)
            expected = shown(folder, **how)
        (folder / INDEX).unlink(missing_ok=True)
        for state in ("new", "old"):
            assert shown(folder, **how) == expected, (state, how)
            assert (folder / INDEX).is_file()
    assert all(isinstance(run.record, IndexedRecord) for run in find_runs([folder]))


def test_a_sweep_is_the_same_with_an_index(tmp_path: Path, indexing: pytest.MonkeyPatch) -> None:
    folder = write_sweep(tmp_path, trials=6, seeds=2)
    check(folder, indexing, WAYS)
    runs = sorted(folder.glob("*/seed*"))
    for run, fields in {
        runs[1]: {"status": "oom", "error": "out of memory"},
        runs[3]: {"val_accuracy": 0.1, "machine": None, "git": None},
        runs[6]: {"packages": {"torch": "1"}, "other_metrics": {"val_more": 1}, "train_seconds": 3},
        runs[9]: {"seed": 77, "trainable_params": None, "test_loss": 2.5},
    }.items():
        write_record(run, read_record(run) | fields)
        renewed = shown(folder)  # by the one record that has changed
        check(folder, indexing, WAYS[:1])
        assert renewed == shown(folder)
    check(folder, indexing, WAYS[1:4])
    (runs[5] / "record.json").write_text('{\n  "version": 1,')
    with pytest.raises(UserError, match="is not JSON"):
        compare(folder)


def test_options_and_row_results_are_the_same_with_an_index(tmp_path: Path, indexing: pytest.MonkeyPatch) -> None:
    rows = {"loss": [0.1, 0.2, 0.3, 0.4], "correct": [1, 0, 1, 1]}
    write_grid(tmp_path, {"none": [0.9, 0.91, 0.92], "lora": [0.8, 0.83, 0.82]}, examples=rows)
    write_run(tmp_path / "dora" / "seed0", "dora", 0, 0.85, examples=rows, options={"data.init_args.seed": 0})
    write_run(tmp_path / "dora" / "seed1", "dora", 1, 0.86, examples=rows, options={"data.init_args.seed": 1})
    write_run(tmp_path / "dora" / "seed2", "dora", 2, None, status="failed", error="a\nb")
    check(tmp_path, indexing, [{}, {"examples": True}, {"by": ["model.adapter"]}, {"by": ["seed"]}])
    write_run(tmp_path / "dora" / "seed3", "dora", 3, 0.86, options={"data.init_args.seed": 1})
    check(tmp_path, indexing, [{"by": ["adapter", "data.seed"]}])
    assert isinstance(shown(tmp_path), str)  # one run of dora has the data seed of another
    (tmp_path / INDEX).unlink()
    with indexing.context() as patch:
        error = shown(tmp_path)
        patch.setattr(record_index, "FEWEST", 10**9)
        assert shown(tmp_path) == error


def test_a_record_of_an_index_is_the_whole_record(tmp_path: Path, indexing: pytest.MonkeyPatch) -> None:
    folder = write_sweep(tmp_path, trials=2, seeds=2)
    compare(folder)
    run = compare(folder).groups[1].runs[1]
    whole = read_record(run.folder)
    assert dict(run.record) == {**run.record} == run.record | {} == {} | run.record == whole == run.record
    assert list(run.record) == list(whole)
    assert len(run.record) == len(whole)
    assert run.record["memory_phases"] == whole["memory_phases"] == run.record.get("memory_phases")
    assert json.dumps(dict(run.record)) == json.dumps(whole)
    assert run.record.get("no_such_field", 5) == 5
    assert "no_such_field" not in run.record
    assert run.record.get("config.seed_everything") is None
    with pytest.raises(KeyError):
        run.record["no_such_field"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.05, 0.005]), st.floats(1e-3, 30), st.sampled_from(["needed", "decide"])),
        min_size=1,
        max_size=12,
    )
)
def test_what_is_known_of_other_effects_gives_the_same_seeds(asked: list[tuple[float, float, str]]) -> None:
    power._known.clear()
    for level, effect, kind in asked:
        way = power._power if kind == "needed" else power._power_of_two
        found = (pairs_needed if kind == "needed" else pairs_to_decide)(effect, 1.0, level)
        if found is None:
            assert way(effect, MOST_PAIRS, level) < POWER
        else:
            assert way(effect, found, level) >= POWER
            assert found == 2 or way(effect, found - 1, level) < POWER


@pytest.mark.parametrize("mean", [0.0, math.inf, -math.inf, math.nan])
def test_no_number_of_seeds_shows_a_difference_that_is_none_or_no_number(mean: float) -> None:
    assert pairs_needed(mean, 1.0) is None

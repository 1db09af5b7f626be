"""Tables that are written while they are made need no memory that grows with their rows."""

from __future__ import annotations

import io
import itertools
import re
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from litpeft.data import SST2, FineTuneData
from litpeft.data.arrays import Lists
from litpeft.data.cache import cached_table, stored

BATCHES, TOKENS = 16, 1 << 18  # 16 MiB
SMAPS = Path("/proc/self/smaps")


def resident(folder: Path) -> int:
    """Return the bytes of the files in a folder that are in this process's memory."""
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.MULTILINE)
    return sum(
        1024 * int(re.search(r"^Rss: +(\d+) kB", part, re.MULTILINE)[1]) for part in parts if str(folder) in part
    )


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux")
def test_what_is_read_of_a_stored_table_leaves_memory_while_it_is_written(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watched(datasets.Dataset):
        def save_to_disk(self, *arguments: Any, **options: Any) -> None:
            assert sum(len(chunk) for chunk in self.data.column("ids").chunks) == BATCHES
            total = sum(
                int(chunk.flatten().to_numpy().sum()) for chunk in self.data.column("ids").chunks
            )  # reads it all
            assert total == TOKENS * sum(range(BATCHES))
            end = time.monotonic() + 10
            while resident(tmp_path / "rows") > 1 << 20 and time.monotonic() < end:
                time.sleep(0.01)
            seen.append(resident(tmp_path / "rows"))
            super().save_to_disk(*arguments, **options)

    def make() -> tuple[Any, dict[str, Any]]:
        batches = ({"ids": pa.array([[number] * TOKENS], pa.list_(pa.int32()))} for number in range(BATCHES))
        return Watched(stored(batches, tmp_path / "rows"), fingerprint="x"), {"made": 1}

    table, facts = cached_table(tmp_path / "table", make)
    assert seen[0] <= 1 << 20
    assert facts["highest_token"] == BATCHES - 1
    assert [row[-1] for row in table["ids"]] == list(range(BATCHES))
    assert list((tmp_path / "rows").iterdir()) == []  # the file has lost its name, and goes with the table


def test_a_column_of_no_lists_has_no_lengths() -> None:
    empty = datasets.Dataset.from_dict({"ids": []}, features=datasets.Features({"ids": [datasets.Value("int32")]}))
    assert Lists(empty, "ids").lengths.shape == (0,)


def test_prepare_data_writes_the_tables_that_other_processes_read(
    tiny_model: str, sentences: dict[str, str], tmp_path: Path
) -> None:
    files = {"train_file": sentences["train"], "val_file": sentences["val"]}
    SST2(tokenizer=tiny_model, cache_dir=str(tmp_path), **files).prepare_data()
    written = sorted(path.name for path in (tmp_path / "tables").iterdir())
    other = SST2(tokenizer=tiny_model, cache_dir=str(tmp_path), **files)
    other.tokenise = None  # another process would only read
    other.setup("fit")
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == written
    assert [len(other.rows[split]) for split in ("train", "val")] == [96, 32]


def test_the_largest_token_of_a_table_of_an_old_version_is_looked_up(
    tiny_model: str, sentences: dict[str, str]
) -> None:
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"])
    data.setup("fit")
    largest = data.highest_token()
    rows = [ids for split in ("train", "val") for ids in data.table(split)[0]["input_ids"]]
    assert largest == max(map(max, rows))
    data._highest = {}  # tables of 0.1.0 do not say it
    assert data.highest_token() == largest


def test_data_without_a_table_need_no_embeddings() -> None:
    assert SST2(train_file="rows.tsv").highest_token() == FineTuneData().highest_token() == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        """Return what its last line has shown, one text after the other."""
        return [text.strip() for text in self.getvalue().split("\n")[-1].split("\r")]


@pytest.mark.parametrize(("seconds", "terminal", "bar"), [(1, True, True), (0.1, True, False), (1, False, False)])
def test_a_bar_shows_what_takes_long_on_a_terminal_and_goes_when_all_is_done(
    seconds: float, terminal: bool, bar: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, clock = Terminal() if terminal else io.StringIO(), itertools.count()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr("tqdm.std.time", lambda: seconds * next(clock))
    table = stored(({"ids": pa.array([number])} for number in range(9)), tmp_path)
    assert table["ids"].to_pylist() == list(range(9))
    if bar:
        assert any(re.match(r"preparing rows: \dk rows \[", text) for text in told.shown())
        assert told.shown()[-2:] == ["", ""]
    else:
        assert told.getvalue() == ""

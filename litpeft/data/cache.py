"""Cache of tokenised tables on disk, with a hash of everything that a table depends on as cache key."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from litpeft.errors import first_sentence
from litpeft.runs.atomic_write import damage, remove_folder, whole_folder

_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # the files of tables that `stored` returned
USUAL = {"truncation_side": "right", "split_special_tokens": False}  # options of tokenizers beside their rules
FORMAT = 1  # increase when the columns of a cached table change: runs that were begun before cannot be resumed then


def fingerprint(*parts: Any) -> str:
    """Return the cache key of a table: a hash of everything that it depends on."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def rows_fingerprint(rows: np.ndarray) -> str:
    """Return a hash of the numbers of the rows that are used of a table, (rows,) int64, in rising order."""
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a tokenizer's rules, options and vocabulary; its name and folder do not matter."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        options = getattr(tokenizer, "init_kwargs", {})
        switches = {name: value for name, value in options.items() if isinstance(value, bool)}  # such as do_lower_case
        rules: Any = [tokenizer.get_vocab(), tokenizer.special_tokens_map, "specials around whole texts", switches]
    else:
        rules = json.loads(backend.to_str())
        rules.pop("truncation"), rules.pop("padding")  # options of the last call, not of the tokenizer
    unusual = {name: given for name, value in USUAL.items() if (given := getattr(tokenizer, name, value)) != value}
    return fingerprint(type(tokenizer).__name__, rules, *([unusual] if unusual else []))


def cached_table(
    folder: Path, make: Callable[[], tuple[datasets.Dataset, dict[str, Any]]]
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Return the table and facts in `folder`; if the folder does not exist, write them with `make` first.

    The folder appears only when complete, so a killed process leaves no partial table. If two processes write the same
    table, the first to finish wins. A damaged table is written again.
    """
    if folder.exists():
        problem = damage(folder)
        try:
            if problem is None:
                return _read(folder)
        except Exception as error:  # checksums match but it is no table: arrow raises many kinds of errors
            problem = first_sentence(error)
        print(f"litpeft: the table {folder}: {problem}; the table is built again.", file=sys.stderr)
        remove_folder(folder)
    table, facts = make()
    with whole_folder(folder, replace=False) as scratch:
        with _dropping_pages():
            facts = facts | {"highest_token": highest_token(table)}
            table.save_to_disk(str(scratch / "table"))
        (scratch / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return _read(folder)


def stored(batches: Iterable[dict[str, pa.Array]], folder: Path) -> pa.Table:
    """Write batches of columns to a file as they come, and return them as one table that is read from the disk.

    The memory that this needs does not grow with the number of rows. The file loses its name once it is written, so it
    is gone when the table is. On a terminal, a bar shows the thousands of rows if this takes more than two seconds.

    Args:
        batches: columns by name, the same ones in each batch, with equal lengths; at least one batch.
        folder: folder of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder, suffix=".arrow")
    os.close(handle)
    try:
        writer = None
        with pa.OSFile(path, "wb") as file:
            for columns in tqdm(batches, desc="preparing rows", unit="k rows", delay=2, leave=False, disable=None):
                batch = pa.RecordBatch.from_pydict(columns)
                writer = writer or pa.ipc.new_stream(file, batch.schema)
                writer.write_batch(batch)
            assert writer is not None
            writer.close()
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _mapped.add(mapped)
        return pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
    finally:
        os.unlink(path)


@contextmanager
def _dropping_pages() -> Iterator[None]:
    """Drop what is read of the files of `stored` from memory while the block runs: it would count as this process's."""
    done = threading.Event()

    def drop() -> None:
        while not done.wait(0.02):
            for file in list(_mapped):
                file.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=drop, daemon=True)
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()


def highest_token(table: datasets.Dataset) -> int:
    """Return the largest token id of a table."""
    columns = [table.data.column(name) for name in table.column_names]
    chunks = [chunk for column in columns if _holds_ids(column.type) for chunk in column.chunks]
    return max((pc.max(chunk.flatten()).as_py() or 0 for chunk in chunks), default=0)


def _holds_ids(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_int32(kind.value_type)


def dataset_of(table: pa.Table) -> datasets.Dataset:
    """Return the table as a data set, without the hash of all its bytes that `datasets` would compute from a copy."""
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex)


def _read(folder: Path) -> tuple[datasets.Dataset, dict[str, Any]]:
    return datasets.load_from_disk(str(folder / "table")), json.loads((folder / "facts.json").read_text("utf-8"))

"""Fuzz the file readers: each reads a file or refuses it with a message that names it: `python -m tests.fuzz.readers`.

With atheris (`pip install atheris`) the bytes are guided by code coverage; without atheris, or with `--random`, they
are valid files with some bytes changed at random.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from litpeft.analysis.comparison import benchmarks, row_tests, sweep_folder
from litpeft.analysis.comparison.results import Run
from litpeft.analysis.comparison.sweep_folder import read_sweep
from litpeft.analysis.comparison.tuning import tuning_sentences
from litpeft.benchmarks import sources
from litpeft.benchmarks.sources import arithmetic, blimp, mmlu, truthfulqa
from litpeft.callbacks import checkpoint_io
from litpeft.callbacks.checkpoint_io import LOOP, TENSORS, FolderCheckpointIO
from litpeft.data import files, messages, raw_files, templates
from litpeft.data.files import has_header, read_rows
from litpeft.data.messages import Unusable, conversation, find_columns
from litpeft.data.templates import _read_texts
from litpeft.errors import UserError, one_line
from litpeft.runs import atomic_write, folder, record, record_schema, safe_read
from litpeft.runs.atomic_write import SUMS, damage, file_hash
from litpeft.runs.folder import saved_config
from litpeft.runs.record import new_record, read_record
from litpeft.runs.summary import summary
from litpeft.sweeps import experiment
from litpeft.sweeps.experiment import read_experiment

EVALUATION = {"step": 1, "seconds": 1.0, "skipped": {}, "results": {"a": {"scores": {"acc": 0.5}, "standard_errors": {}, "items": 1, "fingerprint": "f", "tasks": []}}}  # fmt: skip
RECORD = new_record() | {"benchmarks": [EVALUATION], "val_examples": "val_examples.json", "val_step": 1, "steps": 3}
RECORD |= {"total_params": 9, "trainable_params": 3, "memory_phases": {"train": {"peak_tensor_bytes": 1}}}
TUNED = {"metric": "val_loss", "seeds": [7], "tried": [{"values": {"model.optimizer.lr": 0.1}, "mean": 0.5, "runs": 1}]}
TUNED |= {"chosen": {"model.optimizer.lr": 0.1}, "edges": {"model.optimizer.lr": "lowest"}}
TRIAL = {"name": "lora", "label": "lora", "axes": {"adapter": "lora"}, "tuned": TUNED}
SWEEP = {"experiment": "e", "axes": ["adapter"], "trials": [TRIAL], "seeds": [0], "target": {"val_loss": 1}}
MC = {"question": "q", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}


def _rows(path: Path) -> None:
    has_header(path, ["text"])
    list(read_rows(path, {"text": "data.text_column", "label": "data.label_column"}))


def _chat(path: Path) -> None:
    for _, row in read_rows(path, {}):
        columns = find_columns(row, {}, answered=False)
        with suppress(Unusable):
            _ = columns and conversation(row, columns)


def _record(path: Path) -> None:
    summary(read_record(path.parent))


def _sweep(path: Path) -> None:
    if sweep := read_sweep(path.parent):
        tuning_sentences(sweep)


def _checkpoint(path: Path) -> None:
    """Load a checkpoint with matching checksums, so that its content is parsed."""
    if path.name != SUMS:
        sums = "".join(f"{file_hash(path.parent / name)}  {name}\n" for name in (LOOP, TENSORS))
        (path.parent / SUMS).write_text(sums)
    FolderCheckpointIO().load_checkpoint(path.parent)


def _torch_bytes() -> bytes:
    file = Path(tempfile.mkstemp()[1])
    torch.save({"epoch": 1, "state": torch.zeros(2)}, file)
    content = file.read_bytes()
    file.unlink()
    return content


READERS: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {  # name -> (file name, valid content, reader)
    "tsv": ("t.tsv", "text\tlabel\nça va\t1\nno\t0\n".encode(), _rows),
    "csv": ("t.csv", b'text,label\n"a ""b"", c",1\nd,0\n', _rows),
    "jsonl": ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": "b\\u00e9", "label": 0}\n', _rows),
    "json": ("t.json", b'[{"text": "a", "label": 1}, {"text": "b", "label": 0}]', _rows),
    "record": ("record.json", json.dumps(RECORD).encode(), _record),
    "config": ("config.yaml", b"model: {class_path: A, init_args: {a: [1, x]}}\n", lambda path: saved_config(path.parent)),
    "examples": (
        "val_examples.json",
        b'{"step": 1, "table": "t", "loss": [0.5, 1], "correct": [1, 0]}',
        lambda path: row_tests._rows(Run(path.parent, RECORD, {})),
    ),
    "items": (
        "benchmark_items/step-000001.json",
        b'{"a": {"fingerprint": "f", "acc": [0, 1]}}',
        lambda path: benchmarks.item_scores(Run(path.parent.parent, RECORD, {}), "a_acc"),
    ),
    "sweep": ("sweep.yaml", yaml.safe_dump(SWEEP).encode(), _sweep),
    "experiment": ("e.yaml", b"axes:\n  adapter: [lora, dora]\ntune: {data.batch_size: [4, 8]}\nseeds: [0, 1]\n", lambda path: read_experiment(str(path))),
    "chat": ("t.jsonl", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n', _chat),
    "sharegpt": ("t.json", b'[{"conversations": [{"from": "human", "value": "a"}], "tools": "[]"}]', _chat),
    "txt": ("t.txt", b"one\n\ntwo\r\n", lambda path: list(read_rows(path, {}, documents="paragraph"))),
    "compressed": ("t.csv.gz", gzip.compress(b"text,label\na,1\n"), _rows),
    "template": ("t.yaml", b"prompt_input: '{instruction} {input}'\nprompt_no_input: '{instruction}'\n", lambda path: _read_texts(path, str(path))),
    "truthfulqa": ("mc_task.json", json.dumps([MC]).encode(), lambda path: truthfulqa(str(path.parent))),
    "mmlu": ("math_test.csv", b'"q, r",a,b,c,d,A\nq,a,b,c,d,D\n', lambda path: mmlu("math", str(path.parent))),
    "blimp": ("causative.jsonl", b'{"sentence_good": "a", "sentence_bad": "b"}\n', lambda path: blimp("causative", str(path.parent))),
    "arithmetic": (
        "two_digit_addition.jsonl",
        b'{"context": "Q: 1?\\n\\nA:", "completion": " 2"}\n',
        lambda path: arithmetic(2, "addition", str(path.parent)),
    ),
    "sums": (SUMS, b"0" * 64 + b"  loop.pt\n", lambda path: damage(path.parent)),
    "tensors": (TENSORS, save({"a": torch.zeros(2)}), _checkpoint),
    "loop": (LOOP, _torch_bytes(), _checkpoint),
}  # fmt: skip


INSTRUMENTED = (
    safe_read,
    record_schema,
    record,
    files,
    messages,
    raw_files,
    templates,
    sources,
    atomic_write,
    checkpoint_io,
    folder,
)
INSTRUMENTED += (experiment, sweep_folder, row_tests, benchmarks)


class Reader:
    """A reader with its file.

    Args:
        name: the key in READERS.
        folder: an empty folder.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, (file, self.valid, self.read) = name, READERS[name]
        self.path = folder / file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(self.valid)
        if name in ("tensors", "loop"):
            for other in ("tensors", "loop"):
                (folder / READERS[other][0]).write_bytes(READERS[other][1])
        if name == "mmlu":
            (folder / "math_dev.csv").write_bytes(self.valid)

    def accepts(self, content: bytes) -> bool:
        """Return whether the file with these bytes is read; False if it is refused with a UserError.

        Raises:
            Exception: the reader failed in another way.
        """
        self.path.write_bytes(content)
        benchmarks._read_items.cache_clear()
        try:
            self.read(self.path)
        except UserError as error:
            message = one_line(str(error))
            assert self.path.name in message or self.path.parent.name in message, f"names no file: {message}"
            return False
        return True


BITS = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\t",
    b'"',
    b"'",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"null",
    b"NaN",
)
BITS += (
    b"1e400",
    b"9" * 5000,
    b"-1",
    b"[" * 2000,
    b"&a [*a]",
    b"<<: *x",
    b"!!int x",
    b"2001-13-45",
    b"\xed\xb3\xbf",
    b"\\ud800",
)
BITS += (b"true", b"{}", b"\xe2\x80\xa8", b"x" * 100_000, b"- ", b"? ", b"../../x", b"!!python/name:os.system ", b"%")


def changed(draw: random.Random, valid: bytes) -> bytes:
    """Return the content of a valid file with a few changes."""
    for _ in range(draw.randint(1, 3)):
        at, end = sorted((draw.randint(0, len(valid)), draw.randint(0, len(valid))))
        kind = draw.randrange(5)
        put = draw.choice(BITS) if kind < 3 else draw.randbytes(draw.randint(0, 4))
        valid = valid[:at] + put + valid[at if kind in (0, 3) else min(end, at + 12) if kind < 4 else end :]
    return valid


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="number of cases, over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=list(READERS))
    parser.add_argument("--random", action="store_true", help="change bytes at random although atheris is installed")
    options = parser.parse_args()
    names = options.reader or list(READERS)
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None or options.random:
        print("" if options.random else "atheris is not installed: bytes are changed at random instead")
        return _at_random(names, options.cases // len(names), options.seed)
    wrong = 0
    for place, name in enumerate(names):  # each in its own process, because atheris exits the process
        started = time.monotonic()
        if not (child := os.fork()):
            _by_coverage(atheris, name, options.cases // len(names), options.seed + place)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(
            f"{name:12} {options.cases // len(names):7} cases, exit code {code}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        wrong += code != 0
    return 1 if wrong else 0


def _by_coverage(atheris: Any, name: str, cases: int, seed: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="readers-"))
    reader = Reader(name, folder / "file")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "valid").write_bytes(reader.valid)
    os.chdir(folder)
    for module in INSTRUMENTED:
        local = [each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__]
        methods = [each for kind in local if isinstance(kind, type) for each in vars(kind).values()]
        for each in (*local, *methods):
            if hasattr(each, "__code__"):
                atheris.instrument_func(each)
    with open(folder / "log", "w") as log:
        os.dup2(log.fileno(), 1)
        atheris.Setup(
            [
                sys.argv[0],
                f"-runs={cases}",
                f"-seed={seed + 1}",
                "-max_len=4096",
                "-len_control=0",
                "-timeout=30",
                "corpus",
            ],
            lambda content: reader.accepts(content) and None,
        )
        atheris.Fuzz()


def _at_random(names: list[str], cases: int, seed: int) -> int:
    print(f"{'':12} {'cases':>7} {'read':>7} {'refused':>8} {'wrong':>6} {'seconds':>8}")
    wrong = 0
    for name in names:
        folder, draw, started, read, bad = (
            Path(tempfile.mkdtemp(prefix="readers-")),
            random.Random(f"{seed} {name}"),
            time.monotonic(),
            0,
            0,
        )
        reader = Reader(name, folder)
        for _ in range(cases):
            content = changed(draw, reader.valid)
            try:
                read += reader.accepts(content)
            except Exception as error:
                bad += 1
                print(f"{name}: {type(error).__name__}: {str(error)[:200]}: {content[:200]!r}") if bad < 4 else None
        shutil.rmtree(folder)
        print(
            f"{name:12} {cases:7} {read:7} {cases - read - bad:8} {bad:6} {time.monotonic() - started:8.0f}", flush=True
        )
        wrong += bad
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Some hundred of the cases of `make fuzz`, always the same, and that the fuzzer itself sees what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz_kind
from tests.fuzz.cases import EVERY
from tests.fuzz.readers import READERS, Reader, changed
from tests.fuzz.watch import Case, run_case, shortened
from tests.fuzz.world import LINES, World

FEW = {
    "fit, typed": 20,
    "fit, YAML": 15,
    "sweep": 30,
    "compare and report": 20,
    "finished runs": 3,
    "estimate and find_lr": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITPEFT_CACHE", "")  # which the world sets, and which is put back
        made = World(tmp_path_factory.mktemp("world"))
        yield made
        made.leave()


@pytest.mark.parametrize("kind", EVERY)
def test_what_was_changed_runs_or_is_refused_in_one_sentence(world: World, kind: str, tmp_path: Path) -> None:
    count, _ = fuzz_kind(world, kind, EVERY[kind][0](), FEW[kind], 0, tmp_path)
    assert not count["wrong"], [file.read_text() for file in tmp_path.iterdir()]
    assert count["refused"]


def test_what_was_not_changed_runs(world: World) -> None:
    with shortened() as how:
        for line in LINES[2:]:  # the last is trained with, the others are built
            words = [f"--{option}={value}" for option, value in line.items()]
            case = Case(["fit", *words, "--run_dir", "out"], trained=line is LINES[-1])
            assert run_case(world, how, case) == ("ran", ""), line


def test_the_watch_sees_what_is_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(["fit", "--data.batch_size", "0"], named=["batch_size"])

    def told(print_: str, code: int = 2) -> str:
        def main(words: list[str]) -> int:
            exec(print_)
            return code

        monkeypatch.setattr("tests.fuzz.watch.main", main)
        return run_case(world, how, case)[0]

    said = "import sys; print('litpeft: error: {}', file=sys.stderr)"
    with shortened() as how:
        assert told(said.format("data.batch_size must be 1.")) == "refused"
        assert told(said.format("something is wrong.")) == "wrong"
        assert told(said.format("data.batch_size must be 1."), code=1) == "wrong"
        assert told(said.format("data.batch_size: " + "x" * 2000)) == "wrong"
        assert told(said.format("data.batch_size\\x1b[31m")) == "wrong"
        assert told("raise ValueError('data.batch_size')") == "wrong"
        assert told("open('finished/record.json', 'a').write(' '); " + said.format("data.batch_size is 0.")) == "wrong"


@pytest.mark.parametrize("name", READERS)
def test_files_of_any_bytes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader, draw = Reader(name, tmp_path), random.Random(0)
    assert reader.one(reader.valid) or name == "sums"
    for _ in range(40):
        reader.one(changed(draw, reader.valid))

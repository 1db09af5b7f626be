"""About a hundred fixed cases of `make fuzz`, and tests of the fuzzer itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz_kind
from tests.fuzz.cases import EVERY
from tests.fuzz.readers import READERS, Reader, changed
from tests.fuzz.watch import Case, run_case, shortened_cli
from tests.fuzz.world import LINES, World

FEW = {
    "fit, command line": 20,
    "fit, YAML": 15,
    "sweep": 30,
    "compare and report": 20,
    "finished runs": 3,
    "estimate and find_lr": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITPEFT_CACHE", "")  # set by World; restored by this context
        world = World(tmp_path_factory.mktemp("world"))
        yield world
        world.leave()


@pytest.mark.parametrize("kind", EVERY)
def test_a_changed_case_runs_or_is_refused_in_one_sentence(world: World, kind: str, tmp_path: Path) -> None:
    count, _ = fuzz_kind(world, kind, EVERY[kind][0](), FEW[kind], 0, tmp_path)
    assert not count["wrong"], [file.read_text() for file in tmp_path.iterdir()]
    assert count["refused"]


def test_an_unchanged_case_runs(world: World) -> None:
    with shortened_cli() as cli:
        for line in LINES[2:]:  # the last one is trained, the others are built
            arguments = [f"--{option}={value}" for option, value in line.items()]
            case = Case(["fit", *arguments, "--run_dir", "out"], trained=line is LINES[-1])
            assert run_case(world, cli, case) == ("ran", ""), line


def test_run_case_detects_each_kind_of_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(["fit", "--data.batch_size", "0"], named=["batch_size"])

    def verdict(source: str, code: int = 2) -> str:
        def main(arguments: list[str]) -> int:
            exec(source)
            return code

        monkeypatch.setattr("tests.fuzz.watch.main", main)
        return run_case(world, cli, case)[0]

    error = "import sys; print('litpeft: error: {}', file=sys.stderr)"
    with shortened_cli() as cli:
        assert verdict(error.format("data.batch_size must be 1.")) == "refused"
        assert verdict(error.format("something is wrong.")) == "wrong"
        assert verdict(error.format("data.batch_size must be 1."), code=1) == "wrong"
        assert verdict(error.format("data.batch_size: " + "x" * 2000)) == "wrong"
        assert verdict(error.format("data.batch_size\\x1b[31m")) == "wrong"
        assert verdict("raise ValueError('data.batch_size')") == "wrong"
        assert (
            verdict("open('finished/record.json', 'a').write(' '); " + error.format("data.batch_size is 0.")) == "wrong"
        )


@pytest.mark.parametrize("name", READERS)
def test_files_of_any_bytes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader, draw = Reader(name, tmp_path), random.Random(0)
    assert reader.accepts(reader.valid) or name == "sums"
    for _ in range(40):
        reader.accepts(changed(draw, reader.valid))

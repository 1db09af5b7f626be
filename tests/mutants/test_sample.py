"""The sample of mutants: places are drawn, tests are limited, and mutants that change nothing are recognised."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.mutants.covering import within
from tests.mutants.forked import ROOT, Outcome, still_there
from tests.mutants.sample import EQUIVALENT, Mutant, _annotations, _lines, draw, files_of, is_python, read_equivalent

SECONDS = {"a": 1.0, "b": 2.0, "c": 50.0, "d": 60.0}


@pytest.mark.parametrize(
    ("tests", "most", "number", "chosen"),
    [("abcd", 40, 9, "ab"), ("abcd", 53, 9, "abc"), ("abcd", 40, 1, "a"), ("dc", 40, 9, "d"), ("", 40, 9, "")],
)
def test_the_quickest_tests_are_run_and_at_least_one(tests: str, most: float, number: int, chosen: str) -> None:
    assert within(list(tests), SECONDS, most, number) == list(chosen)


def run_pytest(*tests: str, cwd: Path | None = None) -> Outcome:
    """Return the outcome of these tests in a process of its own, without plugins, which take seconds to import."""
    quick = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-x", *tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=quick)
    return Outcome(done.returncode, None, done.stdout + done.stderr, 0.0)


def test_a_test_that_cannot_be_imported_has_noticed_the_mutant_and_one_that_is_not_there_has_not(
    tmp_path: Path,
) -> None:
    for file, named, killed in (("broken", "test_a", True), ("whole", "test_b", False), ("whole", "test_a", False)):
        code = "from litpeft import nothing_of_this_name\n" if file == "broken" else ""
        path = tmp_path / f"test_{file}.py"
        path.write_text(f"{code}def test_a() -> None: ...\n")
        assert run_pytest(f"{path}::{named}").killed == killed


def test_tests_that_are_recorded_but_gone_are_left_out(tmp_path: Path) -> None:
    """Pytest would run none of the others, and every mutant of their lines would survive."""
    (tmp_path / "test_a.py").write_text(
        "import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_a(x): ...\ndef test_b(): ...\n"
    )
    names = "test_a.py::test_a[3]", "test_a.py::test_a[1]", "test_gone.py::test_a", "test_a.py::test_b"
    tests, left = [], [*names, "test_a.py::test_c[1]"]
    while left != tests:
        tests = left
        outcome = run_pytest(*tests, cwd=tmp_path)
        left = still_there(tests, outcome)
    assert (outcome.code, tests) == (0, ["test_a.py::test_a", "test_a.py::test_b"])


def test_a_mutant_must_be_python() -> None:
    assert is_python("a = 1\n")
    assert not is_python("if not a := 1:\n    pass\n")


def test_a_place_that_many_operators_change_is_drawn_as_often_as_another() -> None:
    many = [Mutant("litpeft/ops/a.py", f"operator {number}", 0, (1, 4)) for number in range(9)]
    population = [*many, Mutant("litpeft/ops/a.py", "one", 0, (2, 0))]
    drawn = Counter(draw(population, 1, seed)[0].line for seed in range(400))
    assert 140 < drawn[2] < 260
    assert draw(population, 5, 3) == draw(population, 5, 3)
    assert {mutant.line for mutant in draw(population, 5, 3)} == {1, 2}
    assert draw(population, 1, 3)[0].folder == "ops"


def test_annotations_are_left_out() -> None:
    source = "def f(a: int | None = 1 + 2) -> str | None:\n    b: int | str = 3\n    return a | b\n"
    places = list(_annotations(source))
    assert sorted(first for first, _ in places) == [(1, 9), (1, 32), (2, 7)]
    assert all(first[0] == last[0] for first, last in places)


def test_an_equivalent_mutant_is_found_by_its_changed_lines() -> None:
    diff = "--- a\n+++ a\n@@ -1,2 +1,2 @@\n context\n-    x = 1\n+    x = 2\n"
    assert _lines(diff) == _lines("- x = 1\n+ x = 2") == "- x = 1\n+ x = 2"
    assert isinstance(read_equivalent(), set)


def test_the_files_of_a_folder_and_of_the_start_of_a_name() -> None:
    assert files_of(["ops"])[0] == "litpeft/ops/__init__.py"
    assert files_of(["commands/export"]) == ["litpeft/commands/export.py", "litpeft/commands/export_check.py"]


def test_each_equivalent_mutant_changes_a_line_that_is_there_and_has_a_reason() -> None:
    for each in yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")):
        lines = {line.strip() for line in (ROOT / each["file"]).read_text(encoding="utf-8").splitlines()}
        removed = [line[2:] for line in each["diff"].splitlines() if line.startswith("- ") and line[2:]]
        assert removed, each
        assert [line for line in removed if line not in lines] == [], each["file"]
        assert each["reason"]

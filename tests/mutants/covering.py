"""Find the tests that cover a line, from what `tests.mutants.record` has recorded."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tests.mutants.record import RECORDED, ROOT

NEAR = 20  # lines above a line of a long statement, in which the tracer may have seen the statement


class Covering:
    """The recorded tests by line.

    Args:
        folder: folder with the recordings.
    """

    def __init__(self, folder: Path = RECORDED) -> None:
        from coverage import CoverageData

        self.seconds: dict[str, float] = {}
        self._recordings: list[Any] = []
        for path in sorted(folder.glob("*.json")):
            self.seconds |= json.loads(path.read_text(encoding="utf-8"))
            recording = CoverageData(basename=str(path.with_suffix(".coverage")))
            recording.read()
            self._recordings.append(recording)

    @cache  # noqa: B019 (there is one object of this class)
    def _by_line(self, file: str) -> dict[int, set[str]]:
        """Return the tests that cover each line of a file."""
        found: dict[int, set[str]] = {}
        for recording in self._recordings:
            for line, tests in recording.contexts_by_lineno(str(ROOT / file)).items():
                found.setdefault(line, set()).update(test for test in tests if test in self.seconds)
        return found

    def tests(self, file: str, lines: Iterable[int]) -> list[str]:
        """Return the tests that cover one of these lines, the quickest first, and then the other tests of their files.

        A line outside of functions runs when the module is imported: all tests of the module count as covering it. What
        a fixture of a whole file runs is recorded for the first of its tests only.
        """
        by_line, inside = self._by_line(file), _lines_in_functions(file)
        found: set[str] = set()
        for line in lines:
            above = (by_line[near] for near in range(line, max(0, line - NEAR), -1) if by_line.get(near))
            found |= next(above, set()) if line in inside else set().union(*by_line.values())
        files = {test.partition("::")[0] for test in found}
        others = {test for test in self.seconds if test.partition("::")[0] in files} - found
        return [test for part in (found, others) for test in sorted(part, key=lambda test: (self.seconds[test], test))]


@cache
def _lines_in_functions(file: str) -> set[int]:
    """Return the numbers of the lines inside of the bodies of functions."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {line for node in functions for line in range(node.body[0].lineno, node.end_lineno + 1)}


def within(tests: list[str], seconds: dict[str, float], most: float, number: int) -> list[str]:
    """Return the first tests whose recorded seconds add up to no more than `most`, at least one and at most `number`."""
    chosen, total = [], 0.0
    for test in tests[:number]:
        total += seconds[test]
        if chosen and total > most:
            break
        chosen.append(test)
    return chosen

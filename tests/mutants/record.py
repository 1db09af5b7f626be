"""Record which lines each test covers, and how long it takes: python -m tests.mutants.record [FOLDER or FILE ...].

One file per folder of tests in `.mutants/`, which git ignores; a folder that has a file is left out unless it is named.
A file of tests, such as `data/test_csv.py`, is recorded beside its folder, whose other tests stay as they are.
Only fast tests, and only what they run in their own process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / ".mutants"
FAST = "not slow and not whole and not gpu"
FOLDERS = (
    *("data", "adapters", "ops", "optim", "analysis", "runs", "profiling", "tasks", "benchmarks", "callbacks"),
    *("sweeps", "training", "commands", "api", "cli"),
)


class Contexts:
    """A plugin of pytest that gives each test a coverage context of its own, its fixtures included."""

    def __init__(self, coverage: Any) -> None:
        self._coverage = coverage
        self.seconds: Counter[str] = Counter()
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.outcome != "passed":  # a test that is skipped here notices nothing
            self.failed.add(report.nodeid)


def record(folder: str) -> int:
    """Run the fast tests of a folder or file, in this process; write their lines and seconds. Return pytest's code."""
    from coverage import Coverage

    to = RECORDED / folder.removesuffix(".py").replace("/", "-")
    coverage = Coverage(data_file=f"{to}.coverage", source=[str(ROOT / "litpeft")], config_file=False)
    coverage.erase()
    contexts = Contexts(coverage)
    coverage.start()
    try:
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-m", FAST, f"tests/{folder}"], [contexts])
    finally:
        coverage.stop()
        coverage.save()
    tests = {name: seconds for name, seconds in contexts.seconds.items() if name not in contexts.failed}
    Path(f"{to}.json").write_text(json.dumps(tests, indent=1), encoding="utf-8")
    return int(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folders", nargs="*", help="folders or files of tests (default: all folders that are not recorded yet)"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one folder, in this process
    given = parser.parse_args()
    RECORDED.mkdir(exist_ok=True)
    if given.here:
        return record(given.folders[0])
    for folder in given.folders or [name for name in FOLDERS if not (RECORDED / f"{name}.json").exists()]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.mutants.record", "--here", folder]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

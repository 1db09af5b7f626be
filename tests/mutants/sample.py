"""Run a seeded sample of mutants against the tests that cover them: python -m tests.mutants.sample --number 400 --seed 1.

The mutants are those of cosmic-ray's operators; a place that many operators can change is drawn as often as another. Each
is run against the fast tests that cover its line, the quickest first
(recorded by `tests.mutants.record`). Survivors are written as diffs into `.mutants/`; `equivalent.yaml` lists those that
change nothing, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.mutants.covering import Covering, within
from tests.mutants.forked import ROOT, Copy, Outcome, import_libraries, scratch_copy, still_there
from tests.mutants.record import RECORDED

FOLDERS = (
    *("analysis", "data", "profiling", "runs", "adapters", "ops", "optim", "training", "tasks", "benchmarks"),
    *("callbacks", "sweeps", "commands/export"),
)
EQUIVALENT = Path(__file__).parent / "equivalent.yaml"
SECONDS, TESTS = 40.0, 400  # recorded seconds and number of the tests that are run for one mutant, at most
TIMEOUT, WHOLE_TIMEOUT = 300.0, 3600.0  # seconds for one mutant, and for all tests that killed one, without a mutant


@dataclass(frozen=True)
class Mutant:
    """A change that one of cosmic-ray's operators makes.

    Attributes:
        file: the file, from the repository's root.
        operator: name of the operator.
        occurrence: number of the operator's place in the file.
        place: line and column.
    """

    file: str
    operator: str
    occurrence: int
    place: tuple[int, int]

    @property
    def line(self) -> int:
        return self.place[0]

    @property
    def folder(self) -> str:
        return next(name for name in FOLDERS if self.file.startswith(f"litpeft/{name}"))

    def source(self) -> str | None:
        """Return the changed source."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return mutate_code(
            (ROOT / self.file).read_text(encoding="utf-8"), get_operator(self.operator)(), self.occurrence
        )

    def diff(self, changed: str) -> str:
        before = (ROOT / self.file).read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, changed.splitlines(keepends=True), self.file, self.file, n=1))


def mutants_of(file: str) -> Iterator[Mutant]:
    """Yield all mutants of a file, but those inside of annotations, which are never evaluated."""
    import parso.python.tree  # noqa: F401 (before cosmic-ray's operators, which import it in a circle)
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = (ROOT / file).read_text(encoding="utf-8")
    nodes, annotations = list(ast_nodes(get_ast(source))), list(_annotations(source))
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        places = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(places):
            if not any(first <= start <= last for first, last in annotations):
                yield Mutant(file, name, occurrence, start)


def _annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the first and the last place, (line, column), of each annotation."""
    for node in ast.walk(ast.parse(source)):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.AST):
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def draw(population: list[Mutant], number: int, seed: int) -> list[Mutant]:
    """Return a sample: places in the code, and one mutant of each place."""
    places: dict[tuple[str, tuple[int, int]], list[Mutant]] = {}
    for mutant in population:
        places.setdefault((mutant.file, mutant.place), []).append(mutant)
    generator = random.Random(seed)
    drawn = generator.sample(sorted(places), min(number, len(places)))
    return [generator.choice(places[place]) for place in drawn]


def files_of(folders: list[str]) -> list[str]:
    """Return the files of these folders of litpeft; `commands/export` is a start of names."""
    found = {path for name in folders for path in (ROOT / "litpeft").glob(f"{name}*") if path.suffix == ".py"}
    found |= {path for name in folders for path in (ROOT / "litpeft" / name).rglob("*.py")}
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def read_equivalent() -> set[tuple[str, str]]:
    """Return the file and the changed lines (`- old`, `+ new`) of each mutant that changes nothing."""
    listed = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or []
    return {(each["file"], _lines(each["diff"])) for each in listed}


def _lines(diff: str) -> str:
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=400, help="number of mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample (default: %(default)s)")
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS), help="folders of litpeft")
    parser.add_argument("--only", nargs="+", default=[], help="run only the part of the sample in these folders")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: %(default)s)")
    given = parser.parse_args()
    covering = Covering()
    if not covering.seconds:
        print("nothing is recorded yet: run python -m tests.mutants.record first")
        return 1
    population = [mutant for file in files_of(given.folders) for mutant in mutants_of(file)]
    chosen = draw(population, given.number, given.seed)
    print(f"{len(chosen)} of {len(population)} mutants, seed {given.seed}", flush=True)
    chosen.sort(key=lambda mutant: (FOLDERS.index(mutant.folder), mutant.file, mutant.place))
    equivalent = read_equivalent()
    trials = [_trial(each, covering, equivalent) for each in chosen if each.folder in (given.only or FOLDERS)]
    import_libraries()
    name = "-".join(["survivors", f"seed{given.seed}", *given.only]).replace("/", "-")
    return _run_all(trials, given.jobs, RECORDED / f"{name}.diff")


@dataclass(frozen=True)
class Trial:
    """A mutant and all that its run needs: the repository's files may change while a sample runs.

    Attributes:
        mutant: the mutant.
        changed: the changed source.
        diff: the change.
        tests: the tests to run.
        left_out: why the mutant does not count: it is listed as equivalent, or cannot be compiled. None if it counts.
    """

    mutant: Mutant
    changed: str
    diff: str
    tests: list[str]
    left_out: str | None


def _trial(mutant: Mutant, covering: Covering, equivalent: set[tuple[str, str]]) -> Trial:
    changed = mutant.source()
    diff = mutant.diff(changed)
    tests = within(covering.tests(mutant.file, [mutant.line]), covering.seconds, SECONDS, TESTS)
    left_out = "equivalent" if (mutant.file, _lines(diff)) in equivalent else None
    return Trial(mutant, changed, diff, tests, left_out if is_python(changed) else "no Python")


def is_python(source: str) -> bool:
    """Return whether a source can be compiled: some operators write `not a := b`, which every test would notice."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _run(trial: Trial) -> Outcome | None:
    """Return what the tests say about a mutant, in the copy of this process; None if none is run."""
    if trial.left_out or not trial.tests:
        return None
    tests = trial.tests
    with _copies[0].changed(trial.mutant.file, trial.changed):
        while True:  # pytest runs none of its tests where it misses one
            outcome = _copies[0].run(["-x", *tests], TIMEOUT)
            before, tests = tests, still_there(tests, outcome)
            if tests == before:
                return outcome
            if not tests:
                return None


_copies: list[Copy] = []  # the copy of this process


def _use_copy(copies: multiprocessing.Queue[Copy]) -> None:
    _copies.append(copies.get())


def _run_all(trials: list[Trial], jobs: int, report: Path) -> int:
    by_folder: dict[str, Counter[str]] = {}
    killers: set[str] = set()
    start = time.monotonic()
    report.write_text("", encoding="utf-8")
    forking = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        copies = forking.Queue()
        for _ in range(jobs):
            copies.put(copy := stack.enter_context(scratch_copy()))
        processes = stack.enter_context(ProcessPoolExecutor(jobs, forking, _use_copy, (copies,)))
        for trial, outcome in zip(trials, processes.map(_run, trials), strict=True):
            mutant = trial.mutant
            word = trial.left_out or _word(outcome)
            by_folder.setdefault(mutant.folder, Counter())[word] += 1
            seconds = outcome.seconds if outcome else 0.0
            by = (outcome.failed or ("(did not end)" if outcome.code is None else "")) if outcome else ""
            print(f"{word:11} {seconds:5.1f} s  {mutant.file}:{mutant.line} {mutant.operator} {by}", flush=True)
            if outcome and outcome.failed:
                killers.add(outcome.failed)
            if word in ("SURVIVED", "NOT COVERED"):
                with report.open("a", encoding="utf-8") as file:
                    file.write(f"# {word}: {mutant.operator}, {len(trial.tests)} tests\n{trial.diff}\n")
        # a test that fails without a mutant has killed nothing
        unchanged = copy.run(sorted(killers), WHOLE_TIMEOUT) if killers else None
    total: Counter[str] = Counter()
    for folder, counts in sorted(by_folder.items()):
        total += counts
        print(f"{folder:16} {_score(counts)}")
    print(f"{'all':16} {_score(total)}, {(time.monotonic() - start) / len(trials):.1f} s each; survivors: {report}")
    if unchanged and unchanged.code != 0:
        print(f"{unchanged.output}\nthe tests must pass without a mutant; pytest's exit code is {unchanged.code}")
    return int(bool(unchanged and unchanged.code))


def _word(outcome: Outcome | None) -> str:
    return "NOT COVERED" if outcome is None else "killed" if outcome.killed else "SURVIVED"


def _score(counts: Counter[str]) -> str:
    """Return the score: killed of those that count; a line that no fast test covers is not killed."""
    counted = counts.total() - counts["equivalent"] - counts["no Python"]
    share = 100 * counts["killed"] / counted if counted else 100.0
    others = ", ".join(f"{counts[word]} {word}" for word in ("NOT COVERED", "equivalent", "no Python") if counts[word])
    return f"{counts['killed']:4} of {counted:4} killed ({share:.0f} %){others and ', ' + others.lower()}"


if __name__ == "__main__":
    sys.exit(main())

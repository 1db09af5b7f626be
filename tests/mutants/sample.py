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
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.mutants.covering import Covering, within
from tests.mutants.forked import ROOT, import_libraries, scratch_copy
from tests.mutants.record import RECORDED

FOLDERS = (
    *("adapters", "ops", "data", "optim", "training", "tasks", "profiling", "runs", "analysis", "benchmarks"),
    *("callbacks", "sweeps", "commands/export"),
)
EQUIVALENT = Path(__file__).parent / "equivalent.yaml"
SECONDS, TESTS = 40.0, 400  # recorded seconds and number of the tests that are run for one mutant, at most
TIMEOUT = 120.0


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
    given = parser.parse_args()
    covering = Covering()
    if not covering.seconds:
        print("nothing is recorded yet: run python -m tests.mutants.record first")
        return 1
    population = [mutant for file in files_of(given.folders) for mutant in mutants_of(file)]
    chosen = draw(population, given.number, given.seed)
    print(f"{len(chosen)} of {len(population)} mutants, seed {given.seed}", flush=True)
    import_libraries()
    return _run(sorted(chosen, key=lambda mutant: (mutant.file, mutant.place)), covering, given.seed)


def _run(mutants: list[Mutant], covering: Covering, seed: int) -> int:
    equivalent, survivors = read_equivalent(), []
    by_folder: dict[str, Counter[str]] = {}
    start = time.monotonic()
    with scratch_copy() as copy:
        for mutant in mutants:
            changed = mutant.source()
            diff = mutant.diff(changed)
            tests = within(covering.tests(mutant.file, [mutant.line]), covering.seconds, SECONDS, TESTS)
            seconds = 0.0
            if (mutant.file, _lines(diff)) in equivalent:
                word = "equivalent"
            elif not tests:
                word = "NOT COVERED"
            else:
                with copy.changed(mutant.file, changed):
                    outcome = copy.run(["-x", *tests], TIMEOUT)
                word, seconds = "killed" if outcome.killed else "SURVIVED", outcome.seconds
            by_folder.setdefault(mutant.folder, Counter())[word] += 1
            print(f"{word:11} {seconds:5.1f} s  {mutant.file}:{mutant.line} {mutant.operator}", flush=True)
            if word in ("SURVIVED", "NOT COVERED"):
                survivors.append(f"# {word}: {mutant.operator}, {len(tests)} tests\n{diff}")
    report = RECORDED / f"survivors-seed{seed}.diff"
    report.write_text("\n".join(survivors), encoding="utf-8")
    total: Counter[str] = Counter()
    for folder, counts in sorted(by_folder.items()):
        total += counts
        print(f"{folder:16} {_score(counts)}")
    print(f"{'all':16} {_score(total)}, {(time.monotonic() - start) / len(mutants):.1f} s each; survivors: {report}")
    return 0


def _score(counts: Counter[str]) -> str:
    """Return the score: killed of those that are not equivalent; a line that no fast test covers is not killed."""
    counted = counts.total() - counts["equivalent"]
    share = 100 * counts["killed"] / counted if counted else 100.0
    return f"{counts['killed']:4} of {counted:4} killed ({share:.0f} %), {counts['NOT COVERED']} not covered"


if __name__ == "__main__":
    sys.exit(main())

"""Check that the tests notice each fault of `faults.yaml`: python -m tests.mutants.faults [--select TEXT].

Each fault is one wrong line. It is written into a copy of the repository, where the tests that must see it are run.
Prints `killed`, `SURVIVED` or `does not apply` (the text is no longer in the file) for each; exits with 1 unless all are
killed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.mutants.forked import Copy, Outcome, import_libraries, scratch_copy
from tests.mutants.record import FAST

LIST = Path(__file__).parent / "faults.yaml"
TIMEOUT = 180.0  # seconds for one fault; a test that does not end has noticed it
WHOLE_TIMEOUT = 3600.0  # seconds for all named tests without a fault


@dataclass(frozen=True)
class Fault:
    """A wrong line.

    Attributes:
        name: what would be wrong for a user.
        file: the file, from the repository's root.
        text: the text that stands there once.
        fault: the wrong text.
        test: pytest's arguments: files or node ids, separated by spaces.
    """

    name: str
    file: str
    text: str
    fault: str
    test: str

    @property
    def tests(self) -> list[str]:
        return self.test.split()

    @property
    def folder(self) -> str:
        return "/".join(Path(self.file).parts[1:-1]) or "."

    def applied(self, source: str) -> str | None:
        """Return the faulty source; None if the text does not stand there exactly once."""
        return source.replace(self.text, self.fault) if source.count(self.text) == 1 else None


def read_faults() -> list[Fault]:
    """Return the curated faults. Each entry is under its file in the list: {file: [{name, text, fault, test}]}."""
    with LIST.open(encoding="utf-8") as file:
        listed = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [Fault(file=file, **entry) for file, entries in listed.items() for entry in entries]


def check(copy: Copy, fault: Fault) -> tuple[str, Outcome | None]:
    """Return what the tests say about a fault, in a word and in full; None if it does not apply."""
    source = (copy.folder / fault.file).read_text(encoding="utf-8")
    if (wrong := fault.applied(source)) is None:
        return "does not apply", None
    with copy.changed(fault.file, wrong):
        outcome = copy.run(["-x", "-m", FAST, *fault.tests], TIMEOUT)
    return "killed" if outcome.killed else "SURVIVED", outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--select", default="", help="only faults with this text in their name, file or test")
    parser.add_argument("--show", action="store_true", help="show pytest's output for each fault")
    given = parser.parse_args()
    faults = [fault for fault in read_faults() if given.select in f"{fault.name} {fault.file} {fault.test}"]
    if not faults:
        print(f"no fault has {given.select!r} in its name, file or test")
        return 1
    import_libraries()
    with scratch_copy() as copy:
        return _check_all(copy, faults, given.show)


def _check_all(copy: Copy, faults: list[Fault], show: bool) -> int:
    # a test that fails anyway kills nothing
    named = sorted({test for fault in faults for test in fault.tests})
    whole = copy.run(["-m", FAST, *named], WHOLE_TIMEOUT)
    if whole.code != 0:
        print(whole.output)
        print(f"the tests must pass without a fault; pytest's exit code is {whole.code}")
        return 1
    print(f"the tests pass without a fault ({whole.seconds:.0f} s)", flush=True)
    said: Counter[str] = Counter()
    by_folder: dict[str, Counter[str]] = {}
    start = time.monotonic()
    for fault in faults:
        begin = time.monotonic()
        word, outcome = check(copy, fault)
        said[word] += 1
        by_folder.setdefault(fault.folder, Counter())[word] += 1
        # where whole files are named: the test that would do
        by = f" ({outcome.failed})" if outcome and outcome.failed and outcome.failed not in fault.tests else ""
        print(f"{word:14} {time.monotonic() - begin:5.1f} s  {fault.file}: {fault.name}{by}", flush=True)
        if show and outcome:
            print(outcome.output)
    for folder, counts in sorted(by_folder.items()):
        print(f"{folder:24} {counts['killed']:4} of {counts.total():4} killed")
    print(f"{said['killed']} of {said.total()} faults killed, {(time.monotonic() - start) / len(faults):.1f} s each")
    return int(said["killed"] < len(faults))


if __name__ == "__main__":
    sys.exit(main())

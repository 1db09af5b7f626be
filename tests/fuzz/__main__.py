"""Change command lines and files that are right, and see that each case runs or is refused in one sentence: `make fuzz`.

A case that does neither is written to a file; `python -m tests.fuzz --again FILE` shows what it does.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.fuzz.watch import Case, run_case, shortened
from tests.fuzz.world import World

# nothing is kept from one time to the next, nothing is made smaller: cases are short as they are
HOW = settings(database=None, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))


def fuzz(world: World, cases: int, first: int, kinds: list[str], failures: Path) -> bool:
    """Whether all cases ended as they should; a line a kind on the way."""
    from tests.fuzz.cases import EVERY

    print(f"{'':24} {'cases':>7} {'ran':>7} {'refused':>8} {'sentences':>10} {'wrong':>6} {'seconds':>8}")
    total: Counter[str] = Counter()
    whole = sum(EVERY[kind][1] for kind in kinds)
    for kind in kinds:
        begun = time.monotonic()
        draw, share = EVERY[kind]
        count, sentences = fuzz_kind(world, kind, draw(), cases * share // whole, first, failures)
        total += count
        row = f"{sum(count.values()):7} {count['ran']:7} {count['refused']:8} {sentences:10} {count['wrong']:6}"
        print(f"{kind:24} {row} {time.monotonic() - begun:8.0f}", flush=True)
    print(f"{'all':24} {sum(total.values()):7} {total['ran']:7} {total['refused']:8} {'':10} {total['wrong']:6}")
    if total["wrong"]:
        print(f"what went wrong is in {failures}; python -m tests.fuzz --again FILE")
    return not total["wrong"]


def fuzz_kind(
    world: World, kind: str, draw: SearchStrategy[Case], cases: int, first: int, failures: Path
) -> tuple[Counter[str], int]:
    """How many cases ran, were refused or went wrong, and how many different sentences were said."""
    count, said = Counter[str](), set[str]()
    with shortened() as how:

        @seed(first)
        @settings(HOW, max_examples=max(1, cases))
        @given(draw)
        def one(case: Case) -> None:
            verdict, what = run_case(world, how, case)
            count[verdict] += 1
            if verdict == "refused":
                said.add(what)
            if verdict == "wrong":
                file = failures / f"{kind.split()[0].strip(',')}-{len(list(failures.iterdir())):04}.json"
                file.write_text(json.dumps(json.loads(case.as_json()) | {"what": what}, indent=1))

        one()
    return count, len(said)


def main() -> int:
    from tests.fuzz.cases import EVERY

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(EVERY), help="only this one; may be given again")
    parser.add_argument("--again", type=Path, nargs="+", help="run the cases in these files, and show what they do")
    parser.add_argument("--failures", type=Path, help="folder for cases that go wrong; by default a new one in /tmp")
    options = parser.parse_args()
    again = [path.resolve() for path in options.again or ()]
    failures = (options.failures or Path(tempfile.mkdtemp(prefix="fuzz-failures-"))).resolve()
    failures.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        world = World(Path(folder))
        try:
            if not again:
                return 0 if fuzz(world, options.cases, options.seed, options.kind or list(EVERY), failures) else 1
            wrong = 0
            for path in again:
                told = json.loads(path.read_text())
                told.pop("what", None)
                with shortened() as how:
                    verdict, what = run_case(world, how, Case(**told))
                print(f"{path}: {verdict}: {what}")
                wrong += verdict == "wrong"
            return 1 if wrong else 0
        finally:
            world.leave()


if __name__ == "__main__":
    sys.exit(main())

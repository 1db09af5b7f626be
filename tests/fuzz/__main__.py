"""Change valid command lines and files, and check that each case runs or is refused in one sentence: `make fuzz`.

A case that does neither is written to a file; `python -m tests.fuzz --again FILE` runs it again.
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

from tests.fuzz.watch import Case, run_case, shortened_cli
from tests.fuzz.world import World

# no database and no shrinking: the cases are already short
SETTINGS = settings(database=None, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))


def fuzz(world: World, cases: int, first: int, kinds: list[str], failures: Path) -> bool:
    """Print a line per kind of case; return whether no case went wrong."""
    from tests.fuzz.cases import EVERY

    print(f"{'':24} {'cases':>7} {'ran':>7} {'refused':>8} {'messages':>10} {'wrong':>6} {'seconds':>8}")
    total: Counter[str] = Counter()
    weights = sum(EVERY[kind][1] for kind in kinds)
    for kind in kinds:
        started = time.monotonic()
        draw, share = EVERY[kind]
        count, messages = fuzz_kind(world, kind, draw(), cases * share // weights, first, failures)
        total += count
        row = f"{sum(count.values()):7} {count['ran']:7} {count['refused']:8} {messages:10} {count['wrong']:6}"
        print(f"{kind:24} {row} {time.monotonic() - started:8.0f}", flush=True)
    print(f"{'all':24} {sum(total.values()):7} {total['ran']:7} {total['refused']:8} {'':10} {total['wrong']:6}")
    if total["wrong"]:
        print(f"the failed cases are in {failures}; python -m tests.fuzz --again FILE")
    return not total["wrong"]


def fuzz_kind(
    world: World, kind: str, draw: SearchStrategy[Case], cases: int, first: int, failures: Path
) -> tuple[Counter[str], int]:
    """Return how many cases ran, were refused or went wrong, and the number of different messages."""
    count, messages = Counter[str](), set[str]()
    with shortened_cli() as cli:

        @seed(first)
        @settings(SETTINGS, max_examples=max(1, cases))
        @given(draw)
        def run_one(case: Case) -> None:
            verdict, detail = run_case(world, cli, case)
            count[verdict] += 1
            if verdict == "refused":
                messages.add(detail)
            if verdict == "wrong":
                file = failures / f"{kind.split()[0].strip(',')}-{len(list(failures.iterdir())):04}.json"
                file.write_text(json.dumps(json.loads(case.as_json()) | {"detail": detail}, indent=1))

        run_one()
    return count, len(messages)


def main() -> int:
    from tests.fuzz.cases import EVERY

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(EVERY), help="only this kind; can be repeated")
    parser.add_argument("--again", type=Path, nargs="+", help="run the cases in these files, and print the results")
    parser.add_argument("--failures", type=Path, help="folder for failed cases; by default a new one in /tmp")
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
                saved = json.loads(path.read_text())
                saved.pop("detail", None)
                with shortened_cli() as cli:
                    verdict, detail = run_case(world, cli, Case(**saved))
                print(f"{path}: {verdict}: {detail}")
                wrong += verdict == "wrong"
            return 1 if wrong else 0
        finally:
            world.leave()


if __name__ == "__main__":
    sys.exit(main())

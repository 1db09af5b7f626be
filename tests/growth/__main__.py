"""Measure how cost grows with the number of records and trials: python -m tests.growth (twenty minutes).

Prints seconds, seconds of the processor, and peak memory of each command, which runs in a process of its own. Records
are made in a temporary folder: 1.2 GB for 100,000.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from litpeft.runs.record_index import INDEX
from litpeft.runs.record_reader import RECENT
from tests.growth.grid import finish_grid, write_grid
from tests.growth.made_sweep import write_sweep

SHAPES = (1000, 100, 10), (10_000, 100, 100), (100_000, 100, 1000), (100_000, 10_000, 10)  # records, trials, seeds


def run(*arguments: str) -> str:
    """Run `litpeft` and return its seconds, seconds of the processor and peak memory as text."""
    started, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "tests.growth.peak", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    peak = int(done.stdout.rpartition("\n")[2])
    return f"{time.perf_counter() - started:7.1f} s, {used:6.1f} s of the processor, {peak / 2**20:6,.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=100_000, help="largest number of records (default: 100,000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for records, trials, seeds in SHAPES:
            if records > options.most:
                continue
            folder = write_sweep(Path(scratch) / f"{trials}x{seeds}", trials, seeds)
            time.sleep(RECENT / 10**9 + 1)  # so that the index holds all of them
            for state in ("first", "again"):
                shown = run("compare", str(folder), "-o", f"{scratch}/table.csv")
                print(f"compare, {records:7,} records ({trials:6,} trials), {state}: {shown}", flush=True)
            size = (folder / INDEX).stat().st_size
            print(f"index of {records:,} records: {size / 2**20:.1f} MiB", flush=True)
        page = Path(scratch) / "page.html"
        folder = write_sweep(Path(scratch) / "report", 50, 10, curves=300)
        print(f"report, 500 runs: {run('report', str(folder), '-o', str(page))}", flush=True)
        print(f"page of 500 runs: {page.stat().st_size / 2**20:.1f} MiB", flush=True)
        for steps in (3, 10):
            if (trials := steps**4) > options.most:
                continue
            grid, root = write_grid(Path(scratch) / "grid.yaml", steps), Path(scratch) / f"grid{steps}"
            print(f"sweep, {trials:6,} trials listed: {run('sweep', str(grid), '--dry_run')}", flush=True)
            finish_grid(grid, root)
            print(f"sweep, {trials:6,} finished trials continued: {run('sweep', str(grid), '--dir', str(root))}")


if __name__ == "__main__":
    main()

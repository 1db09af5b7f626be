"""Measure the memory of preparing or streaming generated instructions: `python -m tests.data.memory_by_rows`.

Prints, in a new process for each number of rows, the seconds and the peak of the resident memory above that of the
imports, in all and without the pages of mapped files, in MiB. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WORDS = "the film was a good story and plot of it very what is one two write explain describe history science however"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument(
        "--streaming", action="store_true", help="train batches of one pass instead of a prepared table"
    )
    parser.add_argument("--tokenizer", default="demo:smollm2")
    parser.add_argument("--in_folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_folder:
        measure(options.in_folder, options.tokenizer, options.streaming)
        return
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "rows.jsonl", rows)
            more = ["--streaming"] if options.streaming else []
            command = [sys.executable, "-m", "tests.data.memory_by_rows", "--in_folder", folder, *more]
            done = subprocess.run(
                [*command, "--tokenizer", options.tokenizer], capture_output=True, text=True, check=True
            )
            print(f"{rows:>9,} rows: {done.stdout.strip()}", flush=True)


def write(path: Path, rows: int) -> None:
    """Write instructions of different lengths as JSON lines."""
    draw, words = random.Random(0), WORDS.split()
    with path.open("w") as file:
        for number in range(rows):
            parts = {"instruction": (5, 25), "input": (0, 20 * (number % 3 == 0)), "output": (5, 60)}
            texts = {name: " ".join(draw.choices(words, k=draw.randint(*length))) for name, length in parts.items()}
            file.write(json.dumps(texts) + "\n")


def measure(folder: Path, tokenizer: str, streaming: bool) -> None:
    """Prepare or stream the rows in the folder, and print seconds and memory."""
    from litpeft.data import Alpaca

    before, peaks, running = resident(), [0, 0], True

    def watch() -> None:
        while running:
            peaks[:] = map(max, peaks, resident())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started, more = time.monotonic(), {"streaming": True, "val_samples": 100} if streaming else {}
    data = Alpaca(tokenizer=tokenizer, train_file=str(folder / "rows.jsonl"), cache_dir=str(folder / "cache"), **more)
    data.setup("fit")
    data.highest_token()
    loader = data.train_dataloader()
    for number, _ in enumerate(loader):
        if (number == 50 and not streaming) or (streaming and loader.measured()["passes"]):
            break
    running = False
    watcher.join()
    above = [peak - first for peak, first in zip(peaks, before, strict=True)]
    print(f"{time.monotonic() - started:.0f} s, peak {above[0]} MiB, without mapped files {above[1]} MiB")


def resident() -> tuple[int, int]:
    """Return the resident memory of this process, in all and without mapped files, in MiB."""
    status = Path("/proc/self/status").read_text()
    total, own = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) // 1024 for name in ("VmRSS", "RssAnon"))
    return total, own


if __name__ == "__main__":
    main()

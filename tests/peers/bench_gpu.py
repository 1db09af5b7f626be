"""`make bench-gpu`: litpeft against Hugging Face Trainer + PEFT on a GPU, in two parts of at most seven minutes.

    profile  three steps of each side and strategy: kernel launches, synchronisations, CPU time
    rates    tokens per second and peak memory: all sides of a case live in one process and take turns of ten steps, so
             that changes of the machine's speed affect all; the first turn is warm-up

Results are appended to a file of JSON lines; a case that is in the file is not run again, so that a later call goes on
where the time was up. `--tiny` tries everything on a CPU. To compare with an older version, run its files with this
folder's tests: PYTHONPATH=OLD_CHECKOUT.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import logging
import statistics
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from litpeft.runs.environment import packages
from tests.peers.gpu_sides import SIDES, Case

TURN, TURNS = 10, 6  # steps, measured turns of each side
PROFILED = 3  # steps, after as many of warm-up
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
WAITS_BY_FRAMEWORK = "aten::_local_scalar_dense"  # reads of one number


def cases(tiny: bool) -> Iterator[Case]:
    """Yield the cases, the most telling ones first."""
    batches = [(16, 128, False), (4, 2048, True), (16, 512, False)]
    for targets in ("q,v", "all-linear"):
        for shape in ("1.1b", "7b"):
            for rows, tokens, packed in batches if not tiny else [(2, 16, False), (2, 32, True)]:
                for strategy in ("lora", "dora", "qlora"):
                    if not tiny or shape == "1.1b":
                        yield Case("tiny" if tiny else shape, rows, tokens, packed, targets, strategy)


def sides(tiny: bool) -> list[str]:
    """Return the sides that this machine can run."""
    has_liger = importlib.util.find_spec("liger_kernel") is not None and torch.cuda.is_available()
    return [name for name in SIDES if (has_liger or "liger" not in name) and not (tiny and "compiled" in name)]


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def profiled(case: Case, side: str) -> dict[str, Any]:
    """Return launches, synchronisations and CPU milliseconds of a step of one side."""
    recorder = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * torch.cuda.is_available())])
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        if done == PROFILED:
            settle()
            recorder.start()
        elif done == 2 * PROFILED:
            recorder.stop()

    kernels = SIDES[side](case, 2 * PROFILED, on_step)
    events = recorder.key_averages()

    def count(*names: str) -> float:
        return sum(event.count for event in events if event.key in names) / PROFILED

    return {
        "kernels": kernels,
        "launches_per_step": count(*LAUNCHES),
        "synchronisations_per_step": count(*WAITS),
        "numbers_read_per_step": count(WAITS_BY_FRAMEWORK),
        "operations_per_step": sum(event.count for event in events if event.key.startswith("aten::")) / PROFILED,
        "cpu_ms_per_step": sum(event.self_cpu_time_total for event in events) / PROFILED / 1e3,
    }


class Turns:
    """Let the threads of several sides run one at a time, each for a turn of steps."""

    def __init__(self, names: list[str]) -> None:
        self.waiting = {name: threading.Semaphore(0) for name in names}
        self.running = list(names)
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.peaks: dict[str, int] = dict.fromkeys(names, 0)
        self.held: dict[str, int] = dict.fromkeys(names, 0)  # bytes that a side holds between its turns
        self.errors: dict[str, str] = {}
        self.steps: dict[str, int] = dict.fromkeys(names, 0)
        self.finished = threading.Event()

    def begin(self, name: str) -> None:
        """Wait for the turn of this side."""
        self.waiting[name].acquire()
        settle()
        self._others = allocated() - self.held[name]
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()

    def step(self, name: str) -> None:
        """Count a step; after the last one of a turn, record the turn and let the next side run."""
        self.steps[name] += 1
        if self.steps[name] % TURN:
            return
        settle()
        self.seconds[name].append(time.perf_counter() - self._start)
        if torch.cuda.is_available():
            self.peaks[name] = max(self.peaks[name], torch.cuda.max_memory_allocated() - self._others)
        self.held[name] = allocated() - self._others
        if self.steps[name] < TURN * (TURNS + 1):
            self._next(name)
            self.begin(name)

    def end(self, name: str) -> None:
        """Leave: this side has finished or failed."""
        following = self._after(name)
        self.running.remove(name)
        if following == name:
            self.finished.set()
        else:
            self.waiting[following].release()

    def _after(self, name: str) -> str:
        return self.running[(self.running.index(name) + 1) % len(self.running)]

    def _next(self, name: str) -> None:
        self.waiting[self._after(name)].release()


def rates(case: Case, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return tokens per second and peak memory of each side, and the ratio to Trainer + PEFT of the same turns."""
    turns, kernels = Turns(names), {}

    def run(name: str) -> None:
        turns.begin(name)
        try:
            kernels[name] = SIDES[name](case, TURN * (TURNS + 1), lambda: turns.step(name))
        except Exception as error:
            turns.errors[name] = "".join(traceback.format_exception_only(error)).strip()[-300:]
        turns.end(name)

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    turns.waiting[names[0]].release()
    for thread in threads:
        thread.join()
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        seconds, reference = turns.seconds[name][1:], turns.seconds["trainer+peft"][1:]
        if name in turns.errors or len(seconds) < TURNS:
            found[name] = {"error": turns.errors.get(name, "stopped early")}
            continue
        ratios = [r / s for r, s in zip(reference, seconds, strict=False)]
        found[name] = {
            "kernels": kernels[name],
            "tokens_per_second": case.rows * case.tokens * TURN / statistics.median(seconds),
            "ratio_to_trainer_peft": statistics.median(ratios) if ratios else None,
            "peak_allocated_bytes": turns.peaks[name] if torch.cuda.is_available() else None,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["profile", "rates"])
    parser.add_argument("--minutes", type=float, default=7.0, help="no case starts after this time")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.jsonl"), help="file of results")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script on a CPU")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("bench-gpu needs a GPU; try it on a CPU with --tiny.")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    end = time.monotonic() + 60 * options.minutes
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["part"], line["case"], line["card"]) for line in done}
    names = sides(options.tiny)
    print(f"{card}; {packages()}\nsides: {', '.join(names)}", flush=True)
    wanted = [case for case in cases(options.tiny) if options.part == "rates" or case.shape in ("1.1b", "tiny")]
    if options.part == "profile":
        wanted = [case for case in wanted if (case.rows, case.tokens) in ((16, 128), (2, 16))]
    for number, case in enumerate(wanted):
        if (options.part, str(case), card) in done:
            continue
        if time.monotonic() > end:
            print(f"time is up: {len(wanted) - number} cases are left, from {case}; the same command goes on with them")
            break
        if options.part == "rates":
            found = rates(case, names)
        else:
            found = {}
            for name in names:
                try:
                    found[name] = profiled(case, name)
                except Exception as error:
                    found[name] = {"error": "".join(traceback.format_exception_only(error)).strip()[-300:]}
                free_memory()
        free_memory()
        line = {"part": options.part, "case": str(case), "card": card, "sides": found, "packages": packages()}
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"\n{case}")
        for name, figures in found.items():
            told = ", ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
            print(f"  {name:20} {told}", flush=True)


if __name__ == "__main__":
    main()

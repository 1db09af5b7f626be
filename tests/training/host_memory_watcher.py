"""Count the pages that the system gives for tensors that were allocated and freed before.

Within a run as a callback; without one as a process: python -m tests.training.host_memory_watcher DEVICE.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback

BYTES = 96 << 20  # of one tensor


@dataclass(frozen=True)
class Pages:
    """The pages for four tensors, one after another, before, inside and after the with block of a run; and
    the resident bytes that leaving it returns."""

    before: int
    inside: int
    after: int
    returned_bytes: int

    @classmethod
    def read(cls, text: str) -> Pages:
        return cls(**json.loads(text))


class Watcher(Callback):
    """Writes the number of pages for four tensors."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, *_: Any) -> None:
        faults(1)
        self.file.write_text(str(faults(4)))


def faults(times: int) -> int:
    """Allocate, fill and free a tensor some times; return the number of pages that the system had to give."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(BYTES, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def watch(device: str) -> Pages:
    from litpeft.training.host_memory import kept_from_step_to_step

    before = faults(4)
    with kept_from_step_to_step(device):
        faults(1)
        inside = faults(4)
        held = resident_bytes()
    returned = held - resident_bytes()
    return Pages(before, inside, faults(4), returned)


if __name__ == "__main__":
    print(json.dumps(asdict(watch(sys.argv[1]))))

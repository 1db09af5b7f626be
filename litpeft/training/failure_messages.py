"""How processes that train together end when one of them fails: the first says why, in one sentence, and ends first."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from torch import distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from litpeft.training import processes

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo of a process that has ended
FIRST_TELLS = 10.0  # seconds within; it has to write its record
FIRST_ENDS = 3.0  # seconds after that; Lightning and torchrun kill it as soon as they miss one of the others
WORD, HEARD = "litpeft/last_word/{}", "litpeft/heard/{}"


def leave(word: str) -> None:
    """Let the others know why this process ends."""
    if processes.count() > 1:
        _get_default_store().set(WORD.format(processes.rank()), word)


def of_others(error: BaseException) -> str | None:
    """Why another process has ended, if `error` is what this one sees of that."""
    if processes.count() == 1:
        return None
    store = _get_default_store()
    for other in range(processes.count()):
        if other != processes.rank() and store.check([WORD.format(other)]):
            return f"process {other}: {store.get(WORD.format(other)).decode()}"
    return "another process has ended without a word" if any(sign in str(error) for sign in LOST) else None


def tell_as_first(word: str) -> None:
    """For the first process, when it fails: let the others know, and keep the store for as long as they may ask."""
    leave(word)
    if (others := range(1, processes.count())) and dist.get_backend() == "gloo":
        store = _get_default_store()
        dist.destroy_process_group()  # which the others see where they wait
        _asked(store, [HEARD.format(other) for other in others], FIRST_ENDS)


def first_has_told() -> bool:
    """For the other processes, when they fail: whether the first one, which sees it and ends, has said it already."""
    if processes.count() == 1:  # they have not met: what is wrong with the options, all of them find
        time.sleep(FIRST_ENDS)
        placed = "RANK" in os.environ or "SLURM_PROCID" in os.environ  # started beside the first, and not by it
        return placed and os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) != "0"
    store, own = _get_default_store(), HEARD.format(processes.rank())
    if dist.get_backend() == "gloo":  # NCCL might wait for what never ends
        dist.destroy_process_group()  # which the first one sees where it waits
    told = _asked(store, [WORD.format(0)], FIRST_TELLS)
    if told:
        with suppress(RuntimeError):
            store.set(own, "yes")
        time.sleep(FIRST_ENDS)
    return told


def _asked(store: dist.Store, keys: list[str], seconds: float) -> bool:
    """Whether the keys are there within so many seconds, or the store has gone with the first process."""
    end = time.monotonic() + seconds
    try:
        while not (there := store.check(keys)) and time.monotonic() < end:
            time.sleep(0.05)
    except RuntimeError:
        return True
    return there

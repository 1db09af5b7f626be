"""How processes that train together end when one of them fails: the first says why, in one sentence, and ends first."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from torch import distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from litpeft import processes

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo of a process that has ended
FIRST_TELLS = timedelta(seconds=10)  # within; it has to write its record
FIRST_ENDS = 3  # seconds after that; Lightning and torchrun kill it as soon as they miss one of the others
WORD = "litpeft/last_word/{}"


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


def first_has_told() -> bool:
    """For the other processes, when they fail: whether the first one, which sees it and ends, has said it already."""
    if processes.count() == 1:  # they have not met: what is wrong with the options, all of them find
        time.sleep(FIRST_ENDS)
        placed = "RANK" in os.environ or "SLURM_PROCID" in os.environ  # started beside the first, and not by it
        return placed and os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) != "0"
    store, first = _get_default_store(), WORD.format(0)
    dist.destroy_process_group()  # which the first one sees where it waits
    try:
        store.wait([first], FIRST_TELLS)
    except dist.DistStoreError:
        return False
    except RuntimeError:  # the store has gone with the first process
        return True
    time.sleep(FIRST_ENDS)
    return True

"""Exchange of error messages between processes, so that a failed run prints one sentence and names its cause.

A process that fails publishes its message in the process group's key-value store. Rank 0 prints the message and exits
first; the other processes wait for rank 0 and print nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from torch import distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from litpeft.training import processes
from litpeft.training.meeting import fail_early

PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo, when another rank exits
REPORT_SECONDS = 10.0  # time for rank 0 to publish its message; rank 0 writes the run record first
EXIT_SECONDS = 3.0  # time for rank 0 to exit after that; Lightning and torchrun kill rank 0 when another rank exits
MESSAGE_KEY, RECEIVED_KEY = "litpeft/last_word/{}", "litpeft/heard/{}"  # keys in the store, by rank


def publish(message: str) -> None:
    """Publish why this process fails, for the other processes."""
    if processes.world_size() > 1:
        _get_default_store().set(MESSAGE_KEY.format(processes.rank()), message)


def from_other_ranks(error: BaseException) -> str | None:
    """Return why another process failed, if that failure caused this process's `error`; else None."""
    if processes.world_size() == 1:
        return None
    store = _get_default_store()
    for other in range(processes.world_size()):
        if other != processes.rank() and store.check([MESSAGE_KEY.format(other)]):
            return f"process {other}: {store.get(MESSAGE_KEY.format(other)).decode()}"
    return "another process ended without a message" if any(sign in str(error) for sign in PEER_LOST) else None


def publish_from_rank_zero(message: str) -> None:
    """Publish rank 0's message, and keep the store alive until the other processes have read the message."""
    fail_early(message)
    publish(message)
    if (others := range(1, processes.world_size())) and dist.get_backend() == "gloo":
        store = _get_default_store()
        dist.destroy_process_group()  # ends the collective in which the other processes wait
        _wait_for_keys(store, [RECEIVED_KEY.format(other) for other in others], EXIT_SECONDS)


def rank_zero_reported(message: str) -> bool:
    """Wait in another process than rank 0 for rank 0's message; return whether rank 0 has reported the failure.

    Args:
        message: why this process fails, for rank 0 if it has not failed itself.
    """
    if (reported := fail_early(message)) is not None:
        return reported
    if processes.world_size() == 1:  # no process group yet: every process finds the same error in the options
        time.sleep(EXIT_SECONDS)
        started_by_launcher = "RANK" in os.environ or "SLURM_PROCID" in os.environ  # torchrun or srun, not Lightning
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        return started_by_launcher and local_rank != "0"
    store, received = _get_default_store(), RECEIVED_KEY.format(processes.rank())
    if dist.get_backend() == "gloo":  # NCCL could block here for ever
        dist.destroy_process_group()  # ends the collective in which rank 0 waits
    reported = _wait_for_keys(store, [MESSAGE_KEY.format(0)], REPORT_SECONDS)
    if reported:
        with suppress(RuntimeError):
            store.set(received, "yes")
        time.sleep(EXIT_SECONDS)
    return reported


def _wait_for_keys(store: dist.Store, keys: list[str], seconds: float) -> bool:
    """Return whether the keys appear in time; true as well if the store is gone, since rank 0 has then exited."""
    end = time.monotonic() + seconds
    try:
        while not (found := store.check(keys)) and time.monotonic() < end:
            time.sleep(0.05)
    except RuntimeError:
        return True
    return found

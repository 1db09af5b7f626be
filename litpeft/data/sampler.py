"""Batches in an order that depends only on seed and epoch, and a data loader that can resume within an epoch."""

from __future__ import annotations

import math
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from litpeft.errors import UserError

WINDOW = 50  # batches whose rows are sorted together: similar lengths per batch, yet new batches in every epoch


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of rows of similar length.

    Shuffled batches are drawn with a separate generator seeded by (seed, epoch), so every run with this seed sees the
    same batches, whatever the adapter or dropout draw. The batch with the longest row comes first: if it does not fit
    into memory, the run fails at once. Without shuffling, rows go from longest to shortest.

    Two processes with batch size 8 see the same batches as one with 16: each batch of `world_size * batch_size` rows is
    split over the processes. A batch with fewer rows than processes is merged with its neighbour.

    Args:
        lengths: tokens of each row, (rows,).
        batch_size: batch size per device, in rows; the last batch may be smaller.
        seed: random seed of the shuffle.
        shuffle: whether to shuffle the rows.
        rank: rank of this process.
        world_size: number of processes.

    Attributes:
        mean_rows: rows of a batch of all processes, on average; None if all batches but the last have as many.
    """

    mean_rows: float | None = None

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if world_size > 1 and len(lengths) < world_size:
            rows = len(lengths)
            raise UserError(
                f"trainer.devices: {rows} rows are too few for {world_size} processes; give at most {rows}."
            )
        self.lengths, self.batch_size, self.seed, self.shuffle = lengths, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0  # batches of this epoch to skip after a resume

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, left = divmod(len(self.lengths), self.batch_size * self.world_size)
        return full + (left >= self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches()
        start, self.start = self.start, 0
        for batch in batches[start:]:
            yield batch[self.rank :: self.world_size]

    def longest_later(self, batches: int, steps: float, accumulated: int, start: int = 0) -> int | None:
        """Return which of the batches left in this epoch has the longest row after the first optimizer step.

        Args:
            batches: batches left in this epoch, counted from `start`.
            steps: optimizer steps left in the run; may be infinite.
            accumulated: batches per optimizer step.
            start: batches of this epoch that were trained on before a resume.

        Returns:
            Number of the batch, counted from `start`; None if the first step is the only one.
        """
        end, all_batches = int(min(batches, steps * accumulated)), self._batches()[start:]
        return max(range(accumulated, end), key=lambda i: self._cost(all_batches[i]), default=None)

    def _batches(self) -> list[list[int]]:
        """Return the batches of this epoch, each with the rows of all processes."""
        size = self.batch_size * self.world_size
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return self._as_lists([order[i : i + size] for i in range(0, len(order), size)])
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        batches: list[np.ndarray] = []
        for i in range(0, len(order), WINDOW * size):
            window = order[i : i + WINDOW * size]
            window = window[np.argsort(-self.lengths[window], kind="stable")]
            batches += [window[j : j + size] for j in range(0, len(window), size)]
        return self._as_lists(self._costliest_first([batches[i] for i in generator.permutation(len(batches))]))

    def _cost(self, batch: Any) -> Any:
        """Return what the memory of a batch grows with: its longest row."""
        return self.lengths[batch].max()

    def _costliest_first(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Exchange the first batch and the one that needs the most memory."""
        most = max(range(len(batches)), key=lambda i: self._cost(batches[i]), default=0)
        batches[:1], batches[most : most + 1] = batches[most : most + 1], batches[:1]
        return batches

    def _as_lists(self, batches: list[np.ndarray]) -> list[list[int]]:
        """Return the batches as lists; one with fewer rows than processes is merged into its neighbour."""
        small = next((i for i, batch in enumerate(batches) if len(batch) < self.world_size), None)
        if small is not None and len(batches) > 1:
            end = max(small, 1) + 1
            batches[end - 2 : end] = [np.concatenate(batches[end - 2 : end])]
        return [batch.tolist() for batch in batches]


class ResumableLoader:
    """Data loader whose position Lightning saves in checkpoints, so that a resumed run continues at the next batch.

    It is not a sub-class of DataLoader, because Lightning would rebuild a DataLoader from its parts (for `predict`).

    Args:
        dataset: returns a batch when indexed with a list of rows.
        sampler: yields the lists of rows.
        options: further arguments of the DataLoader.

    Attributes:
        on_request: called when a batch is requested, to time the wait for data.
        served: batches of this epoch that were given, before a resume too.
        epoch_limit: batches of an epoch that a run takes (`trainer.limit_train_batches`), infinite without a limit.
    """

    batch_sampler = None  # Lightning reads this attribute; `sampler` yields the batches

    def __init__(self, dataset: Dataset, sampler: LengthGroupedBatches, **options: Any) -> None:
        self.dataset, self.sampler = dataset, sampler
        # a separate generator: by default each epoch draws a seed from the global one, which would change dropout
        options["generator"] = torch.Generator().manual_seed(0)
        options["worker_init_fn"] = ignore_ctrl_c
        self._loader = DataLoader(dataset, batch_size=None, sampler=sampler, **options)
        weakref.finalize(self, end_workers, self._loader).atexit = False  # at the exit of Python torch does it
        self.on_request: Callable[[], None] = lambda: None
        self.served = 0
        self.epoch_limit = math.inf
        self._saved_length: int | None = None  # batches per epoch of the run that is resumed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self.served = self.sampler.start
        batches = iter(self._loader)
        if self._loader.num_workers:
            report_dead_worker_once()
        return self._counting(batches)

    def _counting(self, batches: Iterator[Any]) -> Iterator[Any]:
        if self._saved_length not in (None, len(self)):  # the merge of a small batch depends on the world size
            raise UserError("--resume: this number of trainer.devices gives other batches; give as many as before.")
        while True:
            self.on_request()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batches": self.served, "of": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        epoch, batches, self._saved_length = state["epoch"], state["batches"], state["of"]
        if batches >= min(len(self.sampler), self.epoch_limit):  # saved after an epoch: continue with the next one
            epoch, batches = epoch + 1, 0
        self.sampler.epoch, self.sampler.start, self.served = epoch, batches, batches


def ignore_ctrl_c(worker: int) -> None:
    """Ignore SIGINT in workers: Ctrl-C reaches them too, but their batches are needed to finish and save the step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_workers(loader: DataLoader) -> None:
    """End the workers of a loader that nothing uses any more.

    The garbage collector, which finds the loader of a run with its trainer, would close their queues before it asks
    them to end, and torch then waits five seconds for each of them.
    """
    if loader._iterator is not None:  # kept between epochs
        loader._iterator._shutdown_workers()


def report_dead_worker_once() -> None:
    """Make torch's SIGCHLD handler raise for a dead worker once; a second error would stop the run record's update."""
    torch_handler = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or getattr(torch_handler, "raises_once", False):
        return

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            if callable(torch_handler):
                torch_handler(number, frame)
        except RuntimeError:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise

    handler.raises_once = True
    signal.signal(signal.SIGCHLD, handler)

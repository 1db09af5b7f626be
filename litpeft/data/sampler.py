"""Which rows make a batch, in an order that depends on the seed and the epoch alone, and that can be taken up again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from litpeft.errors import UserError

WINDOW = 50  # batches whose rows are sorted together: near-equal lengths in a batch, and still a new mix every epoch


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of rows of similar length.

    Shuffled, the order comes from a generator of its own, seeded by (seed, epoch): whatever else draws random numbers
    (an adapter's initial values, dropout), every run with this seed sees the same batches. The batch with the longest
    row comes first, so that one that does not fit into memory fails at once. Not shuffled, rows go from longest to
    shortest.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch; the last may be smaller.
        seed: of the shuffle.
        shuffle: whether to.
        rank, world_size: this process and how many there are. They share each batch of `world_size * batch_size` rows,
            the very batch that one process would have of that size, and so have equally many. A batch that is too
            small for each to get a row joins the one before it.
    """

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
            raise UserError(f"trainer.devices: {len(lengths)} rows cannot be shared by {world_size} processes.")
        self.lengths, self.batch_size, self.seed, self.shuffle = lengths, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0  # batches of this epoch to skip, after a resume

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, left = divmod(len(self.lengths), self.batch_size * self.world_size)
        return whole + (left >= self.world_size or (left > 0 and whole == 0))

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches()
        start, self.start = self.start, 0
        for batch in batches[start:]:
            yield batch[self.rank :: self.world_size]

    def longest(self, first: int, end: int) -> int:
        """The place in this epoch, from `first` to before `end`, of the batch with the longest row."""
        batches = self._batches()
        return max(range(first, end), key=lambda place: self.lengths[batches[place]].max())

    def _batches(self) -> list[list[int]]:
        """Of all processes together."""
        size = self.batch_size * self.world_size
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return [batch.tolist() for batch in self._joined([order[i : i + size] for i in range(0, len(order), size)])]
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        batches: list[np.ndarray] = []
        for i in range(0, len(order), WINDOW * size):
            window = order[i : i + WINDOW * size]
            window = window[np.argsort(-self.lengths[window], kind="stable")]
            batches += [window[j : j + size] for j in range(0, len(window), size)]
        batches = [batches[i] for i in generator.permutation(len(batches))]
        longest = max(range(len(batches)), key=lambda i: self.lengths[batches[i]].max(), default=0)
        batches[:1], batches[longest : longest + 1] = batches[longest : longest + 1], batches[:1]
        return [batch.tolist() for batch in self._joined(batches)]

    def _joined(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """A batch that would leave a process without a row goes to the one before it; all others stay as they are."""
        small = next((place for place, batch in enumerate(batches) if len(batch) < self.world_size), None)
        if small is not None and len(batches) > 1:
            end = max(small, 1) + 1
            batches[end - 2 : end] = [np.concatenate(batches[end - 2 : end])]
        return batches


class ResumableLoader:
    """Whole batches from a DataLoader, that Lightning can save and take up again at the batch where it was.

    It is no DataLoader itself, so that Lightning does not make another one out of its parts (as it does for `predict`).

    Args:
        dataset: indexed with a list of rows, gives a batch.
        sampler: makes the lists.
        options: of the DataLoader.

    Attributes:
        requested_at: `time.perf_counter()` when the last batch was asked for, so that waiting for data can be timed.
    """

    batch_sampler = None  # Lightning asks for it beside `sampler`, which makes the batches

    def __init__(self, dataset: Dataset, sampler: LengthGroupedBatches, **options: Any) -> None:
        self.dataset, self.sampler = dataset, sampler
        # a generator of its own: each epoch would draw a seed from the global one, and dropout would depend on it
        options["generator"] = torch.Generator().manual_seed(0)
        options["worker_init_fn"] = _ignore_ctrl_c
        self._loader = DataLoader(dataset, batch_size=None, sampler=sampler, **options)
        self.requested_at = 0.0
        self._served = 0
        self._of: int | None = None  # batches of an epoch of the run that is resumed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self._served = self.sampler.start
        batches = iter(self._loader)
        if self._loader.num_workers:
            _tell_once()
        return self._counting(batches)

    def _counting(self, batches: Iterator[Any]) -> Iterator[Any]:
        if self._of not in (None, len(self)):  # a small batch has joined another one, or has not
            raise UserError("--resume: with other trainer.devices the rows make other batches; give as many as before.")
        while True:
            self.requested_at = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batches": self._served, "of": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        epoch, batches, self._of = state["epoch"], state["batches"], state["of"]
        if batches >= len(self.sampler):  # saved after the last batch of an epoch: the next one is due, from its start
            epoch, batches = epoch + 1, 0
        self.sampler.epoch, self.sampler.start = epoch, batches


def _ignore_ctrl_c(worker: int) -> None:
    """A terminal sends it to workers too, and their batches are needed until the step is done and saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _tell_once() -> None:
    """Let torch tell of a dead worker once: again while the run is ended for it, and its record would not be closed."""
    torchs = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or getattr(torchs, "tells_once", False):
        return

    def hear(number: int, frame: FrameType | None) -> None:
        try:
            if callable(torchs):
                torchs(number, frame)
        except RuntimeError:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise

    hear.tells_once = True
    signal.signal(signal.SIGCHLD, hear)

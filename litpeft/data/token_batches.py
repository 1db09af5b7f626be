"""Batches of as many rows as fit into a number of tokens: many short rows, or few long ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from litpeft.data.sampler import LengthGroupedBatches
from litpeft.errors import UserError


class TokenBatches(LengthGroupedBatches):
    """Batches of rows of similar length, with at most `batch_tokens` tokens per process, padding included.

    Rows whose lengths differ by less than an eighth are exchanged at random in every epoch. Batches are filled as if
    each row had the longest of these lengths, so every epoch has the same number of batches, with the same numbers of
    rows. The batch with the most tokens comes first. No batch has fewer rows than processes: if too few are left, they
    are merged with a batch of one row per process, which alone may then have more tokens.

    Args:
        lengths: tokens of each row, (rows,).
        batch_tokens: most tokens of a batch per device: its rows, times the tokens of its longest row.
        seed: random seed of the shuffle.
        shuffle: whether to shuffle the rows.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        UserError: a row alone has more tokens.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_tokens: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        longest = int(lengths.max(initial=0))
        if longest > batch_tokens:
            raise UserError(
                f"data.batch_tokens {batch_tokens} is less than the longest row, {longest} tokens; give at least "
                f"{longest}, or a smaller data.max_length."
            )
        super().__init__(lengths, batch_tokens, seed, shuffle, rank, world_size)
        self._widths = np.minimum(_rounded_up(lengths), longest) if shuffle else lengths
        self._sizes = list(self._fill(np.sort(self._widths)[::-1], batch_tokens))
        self.mean_rows = len(lengths) / len(self._sizes) if self._sizes else None

    def _fill(self, widths: np.ndarray, tokens: int) -> Iterator[int]:
        """Yield the rows of each batch of all processes, for rows from the longest to the shortest."""
        start, rows = 0, len(widths)
        while start < rows:
            end = start + self.world_size * (tokens // max(1, int(widths[start])))
            missing = self.world_size - (rows - end)  # rows that the processes lack for one more batch
            if missing >= self.world_size:
                end = rows
            elif missing > 0:  # from this batch, unless it has only one row per process
                end = rows if end - start == self.world_size else end - missing
            yield end - start
            start = end

    def __len__(self) -> int:
        return len(self._sizes)

    def _cost(self, batch: Any) -> Any:
        longest = self.lengths[batch].max()
        return longest * len(batch), longest

    def _batches(self) -> list[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths)) if self.shuffle else np.arange(len(self.lengths))
        order = order[np.argsort(-self._widths[order], kind="stable")]
        batches = np.split(order, np.cumsum(self._sizes)[:-1]) if self._sizes else []
        if self.shuffle:
            batches = self._costliest_first([batches[i] for i in generator.permutation(len(batches))])
        return [batch.tolist() for batch in batches]


def kind_of_batches(kind: type[LengthGroupedBatches], batch_tokens: int | None) -> type[LengthGroupedBatches]:
    """Return the class of the batches of a data set whose own is `kind`.

    Raises:
        UserError: rows without tokens are to be batched by tokens.
    """
    if batch_tokens is not None and kind is not LengthGroupedBatches:
        raise UserError("data.batch_tokens counts tokens, which images do not have; give data.batch_size.")
    return kind if batch_tokens is None else TokenBatches


def _rounded_up(lengths: np.ndarray) -> np.ndarray:
    """Return each length rounded up to a multiple of an eighth of the power of two below it."""
    step = 2 ** np.maximum(np.log2(np.maximum(lengths, 1)).astype(np.int64) - 3, 0)
    return -(-lengths // step) * step

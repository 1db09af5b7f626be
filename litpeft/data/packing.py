"""Pack rows of different lengths into few rows of a fixed length."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[np.ndarray]:
    """Assign rows to bins of `capacity` tokens by best fit decreasing; the result depends only on the lengths.

    Starting with the longest row, each row goes into the fullest bin with enough space. This needs at most 11/9 of the
    minimum number of bins (Johnson et al. 1974, https://doi.org/10.1137/0203025), and on texts about 1 % more.

    Args:
        lengths: tokens of each row, (rows,), none above the capacity.
        capacity: tokens per bin.

    Returns:
        The row numbers of each bin.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, bin number), ascending
    for row in np.argsort(-np.asarray(lengths), kind="stable"):
        length = int(lengths[row])
        i = bisect.bisect_left(free, (length, -1))
        left, number = free.pop(i) if i < len(free) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(int(row))
        bisect.insort(free, (left - length, number))
    return [np.array(rows) for rows in bins]

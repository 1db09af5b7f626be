"""A few rows of large tensors at a time, so that what is made of them in fp32 stays in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK = 1 << 17  # numbers that are held in fp32 at once on a CPU: 512 KiB; on a GPU, whose launches cost more, 32 MiB


def by_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of each at a time. The first tells how many numbers a row has."""
    first = tensors[0]
    most = CHUNK if first.device.type == "cpu" else 64 * CHUNK
    rows = max(1, most * len(first) // max(1, first.numel()))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)

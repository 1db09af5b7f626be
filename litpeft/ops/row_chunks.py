"""Split large tensors into chunks of rows, so that their fp32 copies stay in a core's cache; rows into equal shares."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK = 1 << 17  # fp32 numbers per chunk on a CPU: 512 KiB; 64 times as many on a GPU, because of kernel launches


def split_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of each tensor; a chunk of the first tensor has at most CHUNK numbers."""
    first = tensors[0]
    chunk = CHUNK if first.device.type == "cpu" else 64 * CHUNK
    rows = max(1, chunk * len(first) // max(1, first.numel()))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def equal_shares(rows: int, groups: int) -> list[int]:
    """Return the rows of each group if they differ by at most one; memory estimates assume it of experts."""
    return [rows // groups + (number < rows % groups) for number in range(groups)]

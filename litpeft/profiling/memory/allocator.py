"""What CUDA's caching allocator of torch makes of requests: rounded blocks, cut from segments that are kept.

As in c10/cuda/CUDACachingAllocator.cpp of torch 2.13 with its default settings: requests are rounded up to 512 bytes;
those of up to 1 MiB come from segments of 2 MiB, those below 10 MiB from segments of 20 MiB, larger ones have segments
of their own in multiples of 2 MiB. The smallest free block that is large enough is taken; it is split if enough would
be left, and what is not split counts as allocated.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MIB = 2**20
LEAST = 512  # bytes that requests are multiples of
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
MEDIUM, MEDIUM_SEGMENT = 10 * MIB, 20 * MIB
LARGE_UNIT = 2 * MIB


@dataclass(eq=False)
class _Block:
    address: int
    bytes: int
    pool: list[tuple[int, int, _Block]]  # of the free blocks like it: (bytes, address, block)
    free: bool = False
    before: _Block | None = None  # its neighbours in the segment
    after: _Block | None = None


@dataclass
class Levels:
    """Bytes that are allocated and reserved, the most within each operation: (operations + 1)."""

    allocated: np.ndarray
    reserved: np.ndarray


class CachingAllocator:
    """The allocator of one device without a limit.

    Attributes:
        allocated: bytes of the blocks that are handed out.
        reserved: bytes of all segments.
    """

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self._pools: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}  # by whether small

    def take(self, size: int) -> _Block:
        """A block for a request of so many bytes."""
        size = max(LEAST, -(-size // LEAST) * LEAST)
        small = size <= SMALL
        pool = self._pools[small]
        place = bisect_left(pool, size, key=lambda entry: entry[0])
        if place < len(pool):
            block = pool.pop(place)[2]
            block.free = False
        else:
            segment = (
                SMALL_SEGMENT if small else MEDIUM_SEGMENT if size < MEDIUM else -(-size // LARGE_UNIT) * LARGE_UNIT
            )
            block = _Block(self.reserved, segment, pool)  # segments lie one after the other
            self.reserved += segment
        left = block.bytes - size
        if left >= LEAST if small else left > SMALL:
            rest = _Block(block.address + size, left, pool, True, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.bytes, block.after = size, rest
            insort(pool, (rest.bytes, rest.address, rest))
        self.allocated += block.bytes
        return block

    def give_back(self, block: _Block) -> None:
        """The block is free, and one with free neighbours."""
        self.allocated -= block.bytes
        for other in (block.before, block.after):
            if other is None or not other.free:
                continue
            del block.pool[bisect_left(block.pool, (other.bytes, other.address), key=lambda entry: entry[:2])]
            block.bytes += other.bytes
            if other is block.before:
                block.address, block.before = other.address, other.before
                if block.before is not None:
                    block.before.after = block
            else:
                block.after = other.after
                if block.after is not None:
                    block.after.before = block
        block.free = True
        insort(block.pool, (block.bytes, block.address, block))


def replay(events: Iterable[tuple[int, int, int]], held: Iterable[int] = ()) -> Levels:
    """What is allocated and reserved while tensors come and go.

    Args:
        events: (operation, tensor, bytes) in order; a tensor that was there before goes.
        held: bytes of what is there from the start to the end.
    """
    allocator = CachingAllocator()
    for size in held:
        allocator.take(size)
    blocks: dict[int, _Block] = {}
    allocated, reserved = [allocator.allocated], [allocator.reserved]
    for operation, tensor, size in events:
        while len(allocated) <= operation:
            allocated.append(allocator.allocated)
            reserved.append(allocator.reserved)
        if tensor in blocks:
            allocator.give_back(blocks.pop(tensor))
        elif size:
            blocks[tensor] = allocator.take(size)
            allocated[operation] = max(allocated[operation], allocator.allocated)
            reserved[operation] = allocator.reserved
    return Levels(np.array(allocated), np.array(reserved))

"""A model of torch's CUDA caching allocator.

It follows c10/cuda/CUDACachingAllocator.cpp of torch 2.13 with default settings. Requests are rounded up to 512 bytes.
Requests of up to 1 MiB come from segments of 2 MiB, requests below 10 MiB from segments of 20 MiB; larger requests get
a segment each, in multiples of 2 MiB. The smallest sufficient free block is used and split if enough of it is left;
otherwise the whole block counts as allocated.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MIB = 2**20
UNIT = 512  # bytes; requests are rounded up to a multiple
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
MEDIUM, MEDIUM_SEGMENT = 10 * MIB, 20 * MIB
LARGE_UNIT = 2 * MIB


@dataclass(eq=False)
class _Block:
    address: int
    bytes: int
    pool: list[tuple[int, int, _Block]]  # the free blocks of its kind: (bytes, address, block)
    free: bool = False
    before: _Block | None = None  # neighbours in the segment
    after: _Block | None = None


@dataclass
class Levels:
    """Peak allocated and reserved bytes per operation, each (operations + 1,) int64."""

    allocated: np.ndarray
    reserved: np.ndarray


class CachingAllocator:
    """The allocator of one device with unlimited memory.

    Attributes:
        allocated: bytes of the blocks in use.
        reserved: bytes of all segments.
    """

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        # (small requests or not, stream) -> free blocks
        self._pools: dict[tuple[bool, int], list[tuple[int, int, _Block]]] = defaultdict(list)

    def allocate(self, size: int, stream: int = 0) -> _Block:
        """Return a block for a request of `size` bytes in a stream; a block never changes to another stream."""
        size = max(UNIT, -(-size // UNIT) * UNIT)
        small = size <= SMALL
        pool = self._pools[small, stream]
        place = bisect_left(pool, size, key=lambda entry: entry[0])
        if place < len(pool):
            block = pool.pop(place)[2]
            block.free = False
        else:
            segment = (
                SMALL_SEGMENT if small else MEDIUM_SEGMENT if size < MEDIUM else -(-size // LARGE_UNIT) * LARGE_UNIT
            )
            block = _Block(self.reserved, segment, pool)  # segments follow each other
            self.reserved += segment
        left = block.bytes - size
        if left >= UNIT if small else left > SMALL:
            rest = _Block(block.address + size, left, pool, True, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.bytes, block.after = size, rest
            insort(pool, (rest.bytes, rest.address, rest))
        self.allocated += block.bytes
        return block

    def free(self, block: _Block) -> None:
        """Free a block and merge it with free neighbours."""
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


def replay(events: Iterable[tuple[int, int, int]], held: Iterable[int] = (), streams: Sequence[int] = ()) -> Levels:
    """Return allocated and reserved bytes while tensors are created and freed.

    Args:
        events: (operation, tensor number, bytes) in order; the second event of a tensor frees it.
        held: bytes of allocations that exist from start to end.
        streams: number of the stream by tensor number; without, all tensors are in one.
    """
    allocator = CachingAllocator()
    for size in held:
        allocator.allocate(size)
    blocks: dict[int, _Block] = {}
    allocated, reserved = [allocator.allocated], [allocator.reserved]
    for operation, tensor, size in events:
        while len(allocated) <= operation:
            allocated.append(allocator.allocated)
            reserved.append(allocator.reserved)
        if tensor in blocks:
            allocator.free(blocks.pop(tensor))
        elif size:
            blocks[tensor] = allocator.allocate(size, streams[tensor] if streams else 0)
            allocated[operation] = max(allocated[operation], allocator.allocated)
            reserved[operation] = allocator.reserved
    return Levels(np.array(allocated), np.array(reserved))

"""The simulated caching allocator, compared with values computed by hand from its rules."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from litpeft.profiling.memory.allocator import CachingAllocator, replay
from litpeft.profiling.memory.tracker import MemoryTracker

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("requested", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),  # rounded up to 512
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small block
        (MIB + 1, MIB + 512, 20 * MIB),  # the smallest block in a shared segment of 20 MiB
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # in its own segment
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # segments are multiples of 2 MiB; the rest is split off
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of exactly 1 MiB is not split off
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # a rest of 1 MiB + 512 is split off
    ],
)
def test_bytes_allocated_and_reserved_by_one_request(requested: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(requested)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_small_and_large_blocks_use_different_segments() -> None:
    allocator = CachingAllocator()
    big = allocator.allocate(2 * MIB)
    allocator.allocate(KIB)
    assert allocator.reserved == 22 * MIB
    allocator.free(big)  # 20 MiB are free
    for _ in range(2047):  # together 2 MiB, in the existing segment
        allocator.allocate(KIB)
    assert allocator.reserved == 22 * MIB
    allocator.allocate(KIB)
    assert allocator.reserved == 24 * MIB


def test_segments_are_filled_before_new_ones_and_kept_when_free() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(9 * MIB) for _ in range(2)]  # 2 MiB are left
    assert allocator.reserved == 20 * MIB
    blocks.append(allocator.allocate(2 * MIB))
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)
    blocks.append(allocator.allocate(2 * MIB))
    assert (allocator.allocated, allocator.reserved) == (22 * MIB, 40 * MIB)
    for block in blocks:
        allocator.free(block)
    assert (allocator.allocated, allocator.reserved) == (0, 40 * MIB)


def test_the_smallest_sufficient_block_is_used() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size * MIB) for size in (40, 16, 24)]
    for block in blocks:
        allocator.free(block)
    allocator.allocate(31 * MIB // 2)  # takes all of the 16: the rest of half a MiB is not split off
    assert allocator.allocated == 16 * MIB
    allocator.allocate(16 * MIB)  # leaves 8 of the 24
    allocator.allocate(8 * MIB)
    allocator.allocate(40 * MIB)
    assert (allocator.allocated, allocator.reserved) == (80 * MIB, 80 * MIB)


def test_of_equal_blocks_the_first_is_used() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(12 * MIB) for _ in range(3)]
    for place in (2, 0, 1):
        allocator.free(blocks[place])
    assert [allocator.allocate(12 * MIB).address for _ in range(3)] == [0, 12 * MIB, 24 * MIB]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_free_neighbours_merge_in_any_order(order: tuple[int, ...]) -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size * MIB) for size in (5, 6, 7)]  # 2 of 20 MiB are left
    for place in order:
        allocator.free(blocks[place])
    allocator.allocate(20 * MIB)
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)


def test_segments_do_not_merge() -> None:
    allocator = CachingAllocator()
    for block in [allocator.allocate(10 * MIB) for _ in range(2)]:
        allocator.free(block)
    allocator.allocate(20 * MIB)
    assert allocator.reserved == 40 * MIB


def test_a_small_tensor_in_a_large_free_block_forces_a_new_segment() -> None:
    """This fragmentation is why a run reserves more than it allocates."""
    events = [
        (1, 0, 100 * MIB),
        (2, 0, 100 * MIB),  # freed
        (3, 1, 2 * MIB),  # split from that block
        (4, 2, 100 * MIB),  # the remaining 98 MiB are too small
        (5, 1, 2 * MIB),
        (6, 3, 100 * MIB),  # fits in the merged block
    ]
    levels = replay(events)
    assert (levels.allocated / MIB).tolist() == [0, 100, 100, 2, 102, 102, 200]
    assert (levels.reserved / MIB).tolist() == [0, 100, 100, 100, 200, 200, 200]


def test_tensors_of_the_main_stream_use_what_the_workspaces_leave_free() -> None:
    tracker = MemoryTracker(torch.device("meta"))
    with tracker:
        kept = torch.empty(2 * MIB, dtype=torch.uint8, device="meta")
    levels = replay(tracker.events(), [8 * MIB, 8 * MIB], tracker.streams())
    assert levels.allocated[-1] == 16 * MIB + kept.nbytes
    assert levels.reserved[-1] == 20 * MIB


def test_a_level_is_the_highest_of_its_operation_and_held_bytes_count_from_the_start() -> None:
    events = [(2, 0, 4 * MIB), (2, 1, 6 * MIB), (2, 0, 4 * MIB), (5, 2, 0), (5, 3, 100)]
    levels = replay(events, held=[8 * MIB, 100])
    held = 8 * MIB + 512
    # the first segment of 20 MiB holds 8 + 4 + 6 and a rest of 2
    assert levels.allocated.tolist() == [
        held,
        held,
        held + 10 * MIB,
        held + 6 * MIB,
        held + 6 * MIB,
        held + 6 * MIB + 512,
    ]
    assert levels.reserved.tolist() == [22 * MIB] * 6


def test_random_allocations_never_overlap_and_are_fully_freed() -> None:
    draw = random.Random(0)
    allocator = CachingAllocator()
    alive: list = []
    for _ in range(3000):
        if alive and draw.random() < 0.48:
            allocator.free(alive.pop(draw.randrange(len(alive))))
        else:
            alive.append(allocator.allocate(int(2 ** draw.uniform(4, 26))))
        if draw.random() < 0.05:
            spans = sorted((block.address, block.address + block.bytes) for block in alive)
            assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
            assert allocator.allocated == sum(end - begin for begin, end in spans)
    reserved = allocator.reserved
    for block in alive:
        allocator.free(block)
    assert (allocator.allocated, allocator.reserved) == (0, reserved)
    free = [entry for pool in allocator._pools.values() for entry in pool]
    assert sum(size for size, *_ in free) == reserved
    assert all(block.before is None and block.after is None for *_, block in free)  # complete segments


def test_a_free_block_of_another_stream_is_not_used() -> None:
    allocator = CachingAllocator()
    for stream, reserved in ((0, 64), (0, 64), (1, 128), (1, 128), (0, 128)):
        allocator.free(allocator.allocate(64 * 2**20, stream))
        assert allocator.reserved == reserved * 2**20
    sizes = [(1, 0, 64 * 2**20), (2, 0, 64 * 2**20), (3, 1, 64 * 2**20)]
    assert replay(sizes).reserved[-1] == 64 * 2**20
    assert replay(sizes, streams=[0, 1]).reserved[-1] == 128 * 2**20


def test_a_request_larger_than_each_of_many_free_blocks_gets_a_new_segment() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(12 * MIB) for _ in range(300)]
    for block in blocks:
        allocator.free(block)
    assert allocator.allocate(14 * MIB).address == 300 * 12 * MIB
    assert (allocator.allocated, allocator.reserved) == (14 * MIB, (300 * 12 + 14) * MIB)

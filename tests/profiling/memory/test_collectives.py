"""Bytes that a process sends in a collective, by the formulas of a ring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from litpeft.profiling.memory import collectives
from litpeft.profiling.memory.collectives import filled_buffers, sent_bytes, whole_gradients
from litpeft.profiling.memory.devices import buckets

PROCESSES = 4
c10d, functional = torch.ops.c10d, torch.ops._c10d_functional
WHOLE, SHARD = torch.empty(PROCESSES * 6, device="meta"), torch.empty(6, device="meta")
ONCE = 3 * 6 * 4  # each process sends the other three shards' worth of bytes: fp32


@pytest.mark.parametrize(
    ("operation", "arguments", "expected"),
    [
        (c10d.allreduce_.default, ([WHOLE],), 2 * ONCE),
        (functional.all_reduce.default, (WHOLE,), 2 * ONCE),
        (functional.all_reduce_.default, (WHOLE,), 2 * ONCE),
        (c10d._allgather_base_.default, (WHOLE, SHARD), ONCE),
        (functional.all_gather_into_tensor.default, (SHARD, PROCESSES, "0"), ONCE),
        (c10d._reduce_scatter_base_.default, (SHARD, WHOLE), ONCE),
        (functional.reduce_scatter_tensor.default, (WHOLE, "sum", PROCESSES, "0"), ONCE),
        (torch.ops.aten.mm.default, (WHOLE, WHOLE), None),
        (c10d.barrier.default, (WHOLE,), None),
    ],
)
def test_a_ring_sends_all_shards_but_its_own(
    operation: Any, arguments: tuple[Any, ...], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda: PROCESSES)
    assert sent_bytes(operation, arguments) == expected


def test_a_tensor_that_three_processes_cannot_share_evenly_is_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda: 3)
    odd = torch.empty(7, dtype=torch.uint8)
    assert sent_bytes(c10d.allreduce_.default, ([odd],)) == pytest.approx(2 * 7 * 2 / 3)


def test_one_process_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda: 1)
    assert sent_bytes(c10d.allreduce_.default, ([WHOLE],)) == 0


def test_what_collectives_and_the_copies_of_fsdp2_fill() -> None:
    inside, shards, out = torch.empty(3), torch.empty(4), [torch.empty(5), torch.empty(6)]
    fsdp = torch.ops.fsdp
    cases = [
        (fsdp.all_gather_copy_in.default, ([inside], shards, WHOLE, [3], 3, 0), {}, [shards]),
        (fsdp.split_with_sizes_copy.default, (inside, [1, 2]), {"out": out}, out),
        (fsdp.chunk_cat.default, ([inside], 0, 2), {"out": shards}, [shards]),
        (c10d.allreduce_.default, ([inside, shards], "group"), {}, [inside, shards]),
        (torch.ops.aten.add.Tensor, (inside, shards), {}, []),
        (fsdp.copy_.default, (inside, torch.empty(3)), {}, []),
    ]
    for operation, arguments, named, expected in cases:
        filled = list(filled_buffers(operation, arguments, named))
        assert [id(tensor) for tensor in filled] == [id(tensor) for tensor in expected], operation
        whole = [id(tensor) for tensor in whole_gradients(operation, arguments)]
        assert whole == ([id(inside)] if operation is fsdp.chunk_cat.default else []), operation


def test_buckets_are_filled_in_the_order_of_backward() -> None:
    """The first one is small: 1 MiB or a parameter more (Li et al. 2020, section 4.2, arxiv.org/abs/2006.15704)."""
    model = nn.Module()
    for name, kilobytes, trains in (("a", 2048, True), ("b", 512, True), ("c", 4096, False), ("d", 768, True)):
        setattr(model, name, nn.Parameter(torch.empty(kilobytes * 256), requires_grad=trains))
    assert [bucket.nbytes // 1024 for bucket in buckets(model)] == [768 + 512, 2048]

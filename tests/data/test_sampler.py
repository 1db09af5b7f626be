"""The order of batches depends only on seed and epoch, and each epoch has every row once."""

from __future__ import annotations

import gc
import signal
from itertools import chain
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from litpeft.data.sampler import WINDOW, LengthGroupedBatches, ResumableLoader, report_dead_worker_once
from litpeft.errors import UserError

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=700).map(np.array)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths, size=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_every_row_comes_once_and_the_longest_first(lengths, size, seed, epoch, shuffle) -> None:
    sampler = LengthGroupedBatches(lengths, size, seed, shuffle)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == -(-len(lengths) // size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert max(lengths[batches[0]]) == max(lengths)
    assert sum(len(batch) < size for batch in batches) <= -(-len(lengths) // (WINDOW * size))


def test_the_order_depends_only_on_the_seed() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 300)

    def order(seed: int, epoch: int) -> list[list[int]]:
        torch.rand(seed + epoch), np.random.rand(3)
        sampler = LengthGroupedBatches(lengths, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)


def test_making_batches_draws_nothing_from_the_global_generator() -> None:
    rows = list(range(40))
    loader = ResumableLoader(_Same(rows), LengthGroupedBatches(np.ones(40, int), 4))
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_grouping_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 4000)
    grouped = sum(len(batch) * lengths[batch].max() for batch in LengthGroupedBatches(lengths, 32))
    mixed = sum(len(batch) * lengths[batch].max() for batch in np.array_split(np.arange(4000), 125))
    assert grouped < 1.05 * lengths.sum()
    assert mixed > 1.8 * lengths.sum()


@settings(max_examples=60, deadline=None)
@given(lengths=lengths, size=st.integers(1, 9), world=st.integers(2, 4), shuffle=st.booleans(), epoch=st.integers(0, 2))
def test_processes_share_the_batches_of_one_process(lengths, size, world, shuffle, epoch) -> None:
    assume(len(lengths) >= world)

    def batches(size: int, *ranks: int) -> list[list[int]]:
        sampler = LengthGroupedBatches(lengths, size, 0, shuffle, *ranks)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    shares = [batches(size, rank, world) for rank in range(world)]
    together = [
        sorted(chain(*parts)) for parts in zip(*shares, strict=True)
    ]  # strict: with unequal counts, a rank would wait for ever
    alone = [sorted(batch) for batch in batches(size * world)]
    assert all(part for share in shares for part in share)
    assert sorted(chain(*together)) == list(range(len(lengths)))
    for parts in zip(*shares, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if 0 < len(lengths) % (size * world) < world and len(alone) > 1:  # too few rows for all ranks: merged
        assert len(together) == len(alone) - 1
        assert sum(batch not in alone for batch in together) == 1
        assert max(map(len, together)) < (size + 1) * world
    else:
        assert together == alone


@pytest.mark.parametrize("world", [2, 3])
def test_a_batch_of_too_few_rows_is_merged_wherever_it_stands(world: int) -> None:
    """All rows are equally long, so that the last rows may come first."""
    merged = set()
    for epoch in range(12):
        shares = []
        for rank in range(world):
            sampler = LengthGroupedBatches(np.ones(3 * world + 1, int), 1, rank=rank, world_size=world)
            sampler.set_epoch(epoch)
            shares.append(list(sampler))
        together = [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]
        assert sorted(chain(*together)) == list(range(3 * world + 1))
        assert sorted(map(len, together)) == [world, world, world + 1]
        merged.add([len(batch) for batch in together].index(world + 1))
    assert merged == {0, 1, 2}


def test_fewer_rows_than_processes_are_refused() -> None:
    with pytest.raises(UserError, match="2 rows are too few for 3 processes; give at most 2"):
        LengthGroupedBatches(np.ones(2, int), 4, rank=0, world_size=3)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 60), served=st.integers(0, 20), epoch=st.integers(0, 2))
def test_a_loader_resumes_where_another_one_stopped(rows, served, epoch) -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(_Same(list(range(rows))), LengthGroupedBatches(np.arange(rows) % 7 + 1, 3))

    first, second = loader(), loader()
    first.sampler.set_epoch(epoch)
    batches = list(loader_at(loader(), epoch))
    iterator = iter(first)
    for _ in range(min(served, len(batches))):
        next(iterator)
    second.load_state_dict(first.state_dict())
    if served >= len(batches):
        assert list(second) == list(loader_at(loader(), epoch + 1))
    else:
        assert list(second) == batches[served:]
        assert len(second) == len(batches)


def loader_at(loader: ResumableLoader, epoch: int) -> ResumableLoader:
    loader.sampler.set_epoch(epoch)
    return loader


class _Same(torch.utils.data.Dataset):
    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def __getitem__(self, indices: list[int]) -> list[int]:
        return [self.rows[i] for i in indices]


def test_after_a_resume_only_the_epoch_that_was_interrupted_is_shorter() -> None:
    rows = list(range(40))
    loader = ResumableLoader(_Same(rows), LengthGroupedBatches(np.ones(40, int), 4))
    loader.load_state_dict({"epoch": 2, "batches": 7, "of": 10})
    next(iter(loader))
    assert loader.state_dict() == {"epoch": 2, "batches": 8, "of": 10}
    loader.load_state_dict({"epoch": 2, "batches": 7, "of": 10})
    sizes = []
    for epoch in (2, 3, 4):
        loader.sampler.set_epoch(epoch)
        sizes.append(len(list(loader)))
    assert sizes == [3, 10, 10]


def test_a_dead_worker_is_reported_once_however_many_epochs_there_were() -> None:
    """torch's handler of SIGCHLD raises for each signal; a second error would stop the update of the run's record."""
    calls = []

    def handler_of_torch(number: int, frame: object) -> None:
        calls.append(number)
        raise RuntimeError("a worker is dead")

    before = signal.signal(signal.SIGCHLD, handler_of_torch)
    try:
        report_dead_worker_once()
        installed = signal.getsignal(signal.SIGCHLD)
        report_dead_worker_once()  # of the next epoch
        assert signal.getsignal(signal.SIGCHLD) is installed is not handler_of_torch
        with pytest.raises(RuntimeError, match="a worker is dead"):
            installed(signal.SIGCHLD, None)
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
        assert calls == [signal.SIGCHLD]
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_with_workers_reports_a_dead_one_once(workers: int) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        rows = LengthGroupedBatches(np.ones(4, int), 4)
        assert len(list(ResumableLoader(_Same(list(range(4))), rows, num_workers=workers))) == 1
        assert getattr(signal.getsignal(signal.SIGCHLD), "raises_once", False) == (workers > 0)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_workers_end_when_they_are_asked_to_if_the_garbage_collector_finds_their_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise torch waits five seconds for each."""
    waited, join = [], BaseProcess.join

    def noted(process: BaseProcess, timeout: float | None = None) -> None:
        join(process, timeout)
        waited.append(process.exitcode)

    rows = LengthGroupedBatches(np.ones(8, int), 4)
    loader = ResumableLoader(_Same(list(range(8))), rows, num_workers=2, persistent_workers=True)
    next(iter(loader))
    loader.cycle = loader  # as a trainer, a task and the data of a run
    monkeypatch.setattr(BaseProcess, "join", noted)
    del loader
    gc.collect()
    assert waited == [0, 0]


@pytest.mark.parametrize(("epoch", "batches", "then"), [(0, 0, (0, 0)), (2, 7, (2, 7)), (2, 10, (3, 0))])
def test_before_its_first_batch_a_loader_stands_where_it_will_continue(
    epoch: int, batches: int, then: tuple[int, int]
) -> None:
    """A run that is resumed and saved at once has neither lost its place nor trained on a batch."""
    loader = ResumableLoader(_Same(list(range(40))), LengthGroupedBatches(np.ones(40, int), 4))
    assert loader.state_dict() == {"epoch": 0, "batches": 0, "of": 10}
    loader.load_state_dict({"epoch": epoch, "batches": batches, "of": 10})
    assert loader.state_dict() == {"epoch": then[0], "batches": then[1], "of": 10}


def test_a_position_among_another_number_of_batches_is_refused() -> None:
    loader = ResumableLoader(_Same(list(range(40))), LengthGroupedBatches(np.ones(40, int), 4))
    loader.load_state_dict({"epoch": 0, "batches": 3, "of": 9})
    with pytest.raises(UserError, match="--resume: this number of trainer.devices gives other batches"):
        list(loader)


@pytest.mark.parametrize(("batches", "then"), [(6, (2, 6)), (7, (3, 0))])
def test_an_epoch_with_a_limit_of_batches_ends_there(batches: int, then: tuple[int, int]) -> None:
    loader = ResumableLoader(_Same(list(range(40))), LengthGroupedBatches(np.ones(40, int), 4))
    loader.epoch_limit = 7
    loader.load_state_dict({"epoch": 2, "batches": batches, "of": 10})
    assert loader.state_dict() == {"epoch": then[0], "batches": then[1], "of": 10}

"""Batches of a number of tokens: never more, each row once an epoch, equally many batches in every epoch."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from litpeft.data import Alpaca, ImageFolder, TextClassification
from litpeft.data.sampler import LengthGroupedBatches
from litpeft.data.token_batches import TokenBatches, _rounded_up
from litpeft.errors import UserError

lengths = st.lists(st.integers(0, 300), min_size=1, max_size=400).map(np.array)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths, tokens=st.integers(300, 2000), seed=st.integers(0, 9), epoch=st.integers(0, 3), shuffle=...)
def test_no_batch_has_more_tokens_and_every_row_comes_once(
    lengths: np.ndarray, tokens: int, seed: int, epoch: int, shuffle: bool
) -> None:
    sampler = TokenBatches(lengths, tokens, seed, shuffle)
    first = [len(batch) for batch in sampler]
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(chain(*batches)) == list(range(len(lengths)))
    costs = [len(batch) * max(lengths[batch]) for batch in batches]
    assert max(costs) <= tokens
    if shuffle:
        assert costs[0] == max(costs)
    else:
        assert [max(lengths[batch]) for batch in batches] == sorted((max(lengths[b]) for b in batches), reverse=True)
    assert sorted(map(len, batches)) == sorted(first)  # so schedules and resumes know the number of steps
    assert sampler.mean_rows == pytest.approx(np.mean([len(batch) for batch in batches]))


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths,
    tokens=st.sampled_from([300, 600]),
    world=st.integers(2, 4),
    epoch=st.integers(0, 2),
    shuffle=...,
)
@example(lengths=np.full(5, 300), tokens=300, world=2, epoch=0, shuffle=True)  # 2 rows, and 3: none is left alone
@example(lengths=np.full(7, 300), tokens=600, world=2, epoch=0, shuffle=False)  # 4 rows, and 3
@example(lengths=np.full(9, 300), tokens=600, world=2, epoch=0, shuffle=False)  # 4 rows, 3, and 2
def test_all_processes_have_as_many_batches_and_rows_in_each(
    lengths: np.ndarray, tokens: int, world: int, epoch: int, shuffle: bool
) -> None:
    assume(len(lengths) >= world)
    shares = []
    for rank in range(world):
        sampler = TokenBatches(lengths, tokens, 1, shuffle, rank, world)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert sorted(chain(*chain(*shares))) == list(range(len(lengths)))
    for parts in zip(*shares, strict=True):  # with unequal counts, a rank would wait for ever
        assert min(map(len, parts)) >= 1
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        alone = max(map(len, parts)) == 2 and sum(map(len, parts)) < 2 * world  # merged: too few were left
        assert max(len(part) * max(lengths[part]) for part in parts) <= tokens * (2 if alone else 1)


def test_other_rows_meet_in_every_epoch_and_little_is_padding() -> None:
    draw = np.random.default_rng(0).integers(1, 200, 4000)
    sampler = TokenBatches(draw, 2048)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sum(len(batch) * draw[batch].max() for batch in epochs[-1]) < 1.06 * draw.sum()
    assert {frozenset(batch) for batch in epochs[0]}.isdisjoint(frozenset(batch) for batch in epochs[1])
    assert 1.06 * draw.sum() / len(sampler) > 0.85 * 2048
    again = TokenBatches(draw, 2048)
    assert list(again) == epochs[0]
    assert list(TokenBatches(draw, 2048, seed=1)) != epochs[0]


def test_the_costliest_batch_after_the_first_step_is_found() -> None:
    draw = np.random.default_rng(0).integers(1, 200, 500)
    sampler = TokenBatches(draw, 1024)
    costs = [(len(batch) * draw[batch].max(), draw[batch].max()) for batch in sampler]
    later = sampler.longest_later(len(sampler), float("inf"), 2)
    assert later >= 2
    assert costs[later] == max(costs[2:])


def test_a_row_that_alone_has_more_tokens_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^data.batch_tokens 64 is less than the longest row, 65 tokens; give at least"
    ):
        TokenBatches(np.array([3, 65]), 64)
    assert list(TokenBatches(np.array([64, 3]), 64)) in ([[0], [1]], [[1], [0]])
    assert list(TokenBatches(np.array([], dtype=np.int64), 64)) == []


def test_data_sets_take_the_option_where_it_has_a_meaning(tiny_model: str, sentences: dict[str, str]) -> None:
    files = {"train_file": sentences["train"], "val_file": sentences["val"], "text_column": "sentence"}
    data = TextClassification(tokenizer=tiny_model, batch_tokens=64, **files)
    data.prepare_data()
    data.setup("fit")
    for split in ("train", "val"):
        loader = data._loader(split)
        shapes = [batch["input_ids"].shape for batch in loader]
        assert len(shapes) == len(loader)
        assert sum(rows for rows, _ in shapes) == len(data.rows[split])
        assert max(shape.numel() for shape in shapes) <= 64
        assert len({rows for rows, _ in shapes}) > 2
    with pytest.raises(UserError, match=r"^data.batch_tokens must be at least 1, got 0\.$"):
        TextClassification(tokenizer=tiny_model, batch_tokens=0, **files)
    with pytest.raises(UserError, match="which images do not have; give data.batch_size"):
        ImageFolder(train_file="images", batch_tokens=64)
    with pytest.raises(UserError, match="packed rows all have data.max_length tokens; give data.batch_size"):
        Alpaca(train_file="rows.json", packing=True, batch_tokens=64)
    streamed = TextClassification(tokenizer=tiny_model, batch_tokens=64, streaming=True, **files)
    with pytest.raises(UserError, match="does not work with data.streaming; give data.batch_size"):
        streamed.setup("fit")


def test_without_the_option_batches_have_batch_size_rows() -> None:
    assert LengthGroupedBatches(np.arange(40), 8).mean_rows is None


def test_lengths_are_rounded_up_by_less_than_an_eighth() -> None:
    lengths = np.arange(5000)
    found = _rounded_up(lengths)
    assert found[:16].tolist() == list(range(16))
    assert found[[16, 17, 31, 32, 33, 63, 64, 65, 1000, 1024, 1025]].tolist() == [
        *(16, 18, 32, 32, 36, 64, 64, 72, 1024, 1024, 1152)
    ]
    assert (found >= lengths).all()
    assert (found[16:] < lengths[16:] * 9 / 8).all()
    for power in range(4, 12):  # from one power of two to the next there are eight lengths
        assert len(set(found[2**power + 1 : 2 ** (power + 1) + 1])) == 8

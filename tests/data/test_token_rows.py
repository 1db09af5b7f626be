"""Properties of the rows of language models: which tokens a batch has, which have loss, and how rows are packed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litpeft.data.cache import dataset_of
from litpeft.data.packing import pack
from litpeft.data.token_rows import ANSWER, IGNORED, LAST_ANSWER, NO_LOSS, PairRows, TokenRows

PAD = 0
few = settings(max_examples=40, deadline=None, derandomize=True)
TRAIN_ON = st.sampled_from(["assistant", "last", "all"])


@dataclass(frozen=True)
class Row:
    """A tokenised conversation: token ids, values of `loss`, and the places of the first and the last answer."""

    ids: list[int]
    loss: list[int]
    first: int
    last: int


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Draw a conversation: a prompt, then answers with text between them, and perhaps text after the last one."""
    loss: list[int] = [NO_LOSS] * draw(st.integers(1, 6))
    starts = []
    answers = draw(st.integers(1, 3))
    for number in range(answers):
        starts.append(len(loss))
        loss += [LAST_ANSWER if number == answers - 1 else ANSWER] * draw(st.integers(1, 5))
        loss += [NO_LOSS] * draw(st.integers(0, 2))
    ids = draw(st.lists(st.integers(1, 99), min_size=len(loss), max_size=len(loss)))
    return Row(ids, loss, starts[0], starts[-1])


TABLES = st.lists(rows(), min_size=1, max_size=8)


def table_of(given: list[Row]) -> datasets.Dataset:
    return dataset_of(
        pa.table(
            {
                "ids": pa.array([row.ids for row in given], pa.list_(pa.int32())),
                "loss": pa.array([row.loss for row in given], pa.list_(pa.int8())),
                "first": pa.array([row.first for row in given], pa.int32()),
                "last": pa.array([row.last for row in given], pa.int32()),
            }
        )
    )


def expected(row: Row, max_length: int, train_on: str) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a row, written down independently."""
    counts = {"assistant": (ANSWER, LAST_ANSWER), "last": (LAST_ANSWER,), "all": (NO_LOSS, ANSWER, LAST_ANSWER)}[
        train_on
    ]
    pairs = list(zip(row.ids, row.loss, strict=True))[:max_length]
    return [token for token, _ in pairs], [token if loss in counts else IGNORED for token, loss in pairs]


def learns(labels: list[int]) -> bool:
    """Return whether a token is predicted from the tokens before it."""
    return any(label != IGNORED for label in labels[1:])


@few
@given(given_rows=TABLES, max_length=st.integers(2, 20), train_on=TRAIN_ON, size=st.integers(1, 5))
def test_a_batch_has_the_tokens_and_the_loss_of_its_rows(
    given_rows: list[Row], max_length: int, train_on: Any, size: int
) -> None:
    whole = [expected(row, max_length, train_on) for row in given_rows]
    found = TokenRows(table_of(given_rows), np.arange(len(given_rows)), PAD, max_length, train_on)
    kept = [number for number, (_, labels) in enumerate(whole) if learns(labels)]
    assert found.rows.tolist() == kept
    assert found.lengths.tolist() == [len(whole[number][0]) for number in kept]
    assert found.truncated == sum(len(given_rows[number].ids) > max_length for number in kept)
    for start in range(0, len(kept), size):
        places = list(range(start, min(start + size, len(kept))))
        batch = found[places]
        assert batch["row"].tolist() == [kept[place] for place in places]
        for place, ids, labels, mask in zip(
            places, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            tokens, with_loss = whole[kept[place]]
            left = len(ids) - len(tokens)
            assert ids.tolist() == tokens + [PAD] * left
            assert labels.tolist() == with_loss + [IGNORED] * left
            assert mask.tolist() == [1] * len(tokens) + [0] * left


@few
@given(given_rows=TABLES, max_length=st.integers(2, 20), train_on=TRAIN_ON)
def test_packed_rows_hold_each_row_once_and_predict_no_token_from_another_row(
    given_rows: list[Row], max_length: int, train_on: Any
) -> None:
    whole = [expected(row, max_length, train_on) for row in given_rows]
    kept = [(ids, labels) for ids, labels in whole if learns(labels)]
    found = TokenRows(table_of(given_rows), np.arange(len(given_rows)), PAD, max_length, train_on)
    if not kept:
        assert len(found) == 0
        return
    found.bins = pack(found.lengths, max_length)
    batch = found[range(len(found))]
    height, width = batch["input_ids"].shape
    assert width <= max_length
    assert found.lengths.max() == width
    assert int(batch["samples"]) == len(kept)
    assert int(batch["real_tokens"]) == sum(len(ids) for ids, _ in kept)
    offsets = batch["cu_seqlens"].tolist()
    assert (offsets[0], offsets[-1]) == (0, height * width)
    ids, labels, positions = (batch[name].flatten().tolist() for name in ("input_ids", "labels", "position_ids"))
    documents, longest = [], 0
    for start, end in pairwise(offsets):
        assert positions[start:end] == list(range(end - start))
        assert labels[start] == IGNORED  # the token before belongs to another document
        assert start // width == (end - 1) // width
        longest = max(longest, end - start)
        if ids[start] != PAD:  # else the padding of a row, which has no loss
            documents.append((ids[start:end], labels[start + 1 : end]))
        else:
            assert set(ids[start:end]) == {PAD}
            assert set(labels[start:end]) == {IGNORED}
    assert batch["max_seqlen"].shape[0] == longest
    assert sorted(documents) == sorted((ids, labels[1:]) for ids, labels in kept)


@few
@given(given_rows=TABLES, max_length=st.integers(1, 12), opening=st.lists(st.integers(1, 99), max_size=2))
def test_a_prompt_to_answer_keeps_its_end_and_is_padded_on_the_left(
    given_rows: list[Row], max_length: int, opening: list[int]
) -> None:
    found = TokenRows(table_of(given_rows), np.arange(len(given_rows)), PAD, max_length, prompts=True)
    found.opening = np.array(opening, dtype=np.int64)
    batch = found[range(len(given_rows))]
    prompts = [(row.ids[: row.last] + opening)[-max_length:] for row in given_rows]
    width = max(map(len, prompts))
    assert batch["input_ids"].tolist() == [[PAD] * (width - len(ids)) + ids for ids in prompts]
    assert batch["attention_mask"].tolist() == [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    assert "labels" not in batch


PAIRS = st.lists(
    st.tuples(*[st.lists(st.integers(2, 99), min_size=1, max_size=9)] * 2, st.booleans()), min_size=1, max_size=6
)
END = 1


@few
@given(pairs=PAIRS, max_length=st.integers(2, 9))
def test_pairs_are_truncated_by_themselves_and_a_prompt_keeps_its_end_token(
    pairs: list[tuple[list[int], list[int], bool]], max_length: int
) -> None:
    prompts = [ids + [END] * ended for ids, _, ended in pairs]
    responses = [ids for _, ids, _ in pairs]
    table = dataset_of(
        pa.table(
            {"prompt": pa.array(prompts, pa.list_(pa.int32())), "response": pa.array(responses, pa.list_(pa.int32()))}
        )
    )
    found = PairRows(table, np.arange(len(pairs)), PAD, max_length, end_id=END)
    batch = found[range(len(pairs))]
    cut = [
        ids if len(ids) <= max_length else ids[: max_length - 1] + [END if ids[-1] == END else ids[max_length - 1]]
        for ids in prompts
    ]
    said = [ids[:max_length] for ids in responses]
    for name, lists, fill in (("input_ids", cut, PAD), ("labels", said, IGNORED)):
        width = max(map(len, lists))
        assert batch[name].tolist() == [ids + [fill] * (width - len(ids)) for ids in lists]
    assert batch["attention_mask"].sum(1).tolist() == list(map(len, cut))
    assert found.lengths.tolist() == [len(a) + len(b) for a, b in zip(cut, said, strict=True)]
    assert found.cut_prompts == sum(len(ids) > max_length for ids in prompts)
    assert found.truncated == sum(max(len(a), len(b)) > max_length for a, b in zip(prompts, responses, strict=True))


def test_of_a_pair_the_response_has_loss() -> None:
    table = dataset_of(pa.table({"prompt": [[1, 2, 3], [4]], "response": [[5, 6], [7, 8, 9]]}))
    found = PairRows(table, np.array([1, 0]), PAD, 2, False, 99)
    assert [[(ids.tolist(), has_loss) for ids, has_loss in found.marked(index)] for index in (0, 1)] == [
        [([4], False), ([7, 8], True)],
        [([1, 2], False), ([5, 6], True)],
    ]


@few
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=60), spare=st.integers(0, 8))
def test_packing_loses_no_row_overfills_no_bin_and_wastes_little(lengths: list[int], spare: int) -> None:
    capacity = max(lengths) + spare
    bins = pack(lengths, capacity)
    assert sorted(row for rows in bins for row in rows.tolist()) == list(range(len(lengths)))
    filled = [sum(lengths[row] for row in rows) for rows in bins]
    assert max(filled) <= capacity
    # no row fits into a bin that was open when it was placed: at most one bin is half empty
    assert sum(2 * amount <= capacity for amount in filled) <= 1
    assert all(
        lengths[first] >= lengths[second] for rows in bins for first, second in pairwise(rows.tolist())
    )  # the longest rows first


@pytest.mark.parametrize("max_length", [4, 5])
def test_a_row_whose_prompt_fills_max_length_has_nothing_to_learn(max_length: int) -> None:
    row = Row([5, 6, 7, 8, 9], [NO_LOSS] * 4 + [LAST_ANSWER], 4, 4)
    assert len(TokenRows(table_of([row]), np.arange(1), PAD, max_length)) == (max_length == 5)


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@pytest.mark.parametrize("length", [1, 2])
def test_a_first_token_alone_is_not_learnt(length: int, train_on: Any) -> None:
    """No token stands before it, from which it could be predicted."""
    row = Row([5, 6][:length], [LAST_ANSWER] * length, 0, 0)
    assert len(TokenRows(table_of([row]), np.arange(1), PAD, 8, train_on)) == (length == 2)

"""Generated questions: answers are right, questions differ, and the pairs of training are never asked again."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from litpeft.data import ArithmeticInstructions
from litpeft.data.arithmetic import held_out
from litpeft.errors import UserError

RESULTS = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
ALL = ["add", "subtract", "multiply"]


def read(question: str) -> tuple[int, str, int]:
    """Return the numbers of a question and the word between them."""
    found = re.fullmatch(r"What is (\d+) (plus|minus|times) (\d+)\?", question)
    return int(found[1]), found[2], int(found[3])


@pytest.mark.parametrize("digits", [1, 2, 3, 5])
def test_questions_differ_have_numbers_of_so_many_digits_and_the_right_answer(digits: int) -> None:
    sizes = {"train_rows": 120, "val_rows": 25, "test_rows": 25}
    data = ArithmeticInstructions(digits=digits, operations=ALL, **sizes)
    for split, count in (("train", 120), ("val", 25), ("test", 25)):
        rows = list(data.examples(split))
        asked = [read(question) for question, _, _ in rows]
        assert len(set(asked)) == len(rows) == count
        assert {word for _, word, _ in asked} == set(RESULTS)
        assert {len(str(number)) for first, _, second in asked for number in (first, second)} == {digits}
        assert [int(answer) for _, _, answer in rows] == [RESULTS[word](one, two) for one, word, two in asked]


def test_no_pair_of_numbers_is_both_in_training_and_held_out() -> None:
    data = ArithmeticInstructions(digits=1, operations=["add"], train_rows=80, val_rows=5, test_rows=5)
    pairs = {
        split: {frozenset((one, two)) for one, _, two in (read(row[0]) for row in data.examples(split))}
        for split in ("train", "val", "test")
    }
    assert not pairs["train"] & (pairs["val"] | pairs["test"])
    assert [row[0] for row in data.examples("test")] != [row[0] for row in data.examples("val")]
    assert list(data.examples("predict")) == list(data.examples("test"))


@pytest.mark.parametrize("digits", [2, 3])
def test_a_tenth_of_the_pairs_is_held_out_in_either_order(digits: int) -> None:
    numbers = range(10 ** (digits - 1), 10**digits, 7 if digits == 3 else 1)
    found = {(one, two): held_out(one, two) for one in numbers for two in numbers}
    assert 0.08 < sum(found.values()) / len(found) < 0.12
    assert all(found[one, two] == found[two, one] for one, two in found)


def test_questions_are_the_same_in_every_version() -> None:
    """Results of one version are compared with those of another: both must have asked the same."""
    data = ArithmeticInstructions(digits=2, operations=["add", "subtract"])
    first = {split: [row[0] for row in islice(data.examples(split), 2)] for split in ("train", "val", "test")}
    assert first == {
        "train": ["What is 98 plus 17?", "What is 90 plus 23?"],
        "val": ["What is 83 plus 10?", "What is 39 plus 17?"],
        "test": ["What is 39 plus 36?", "What is 79 minus 59?"],
    }
    held = [pair for pair in ((one, two) for one in range(10, 20) for two in range(one, 20)) if held_out(*pair)]
    assert held == [(10, 18), (10, 19), (13, 13), (13, 15), (13, 16), (13, 18), (19, 19)]


@pytest.mark.parametrize(("split", "most"), [("train", 160), ("val", 40), ("test", 40)])
def test_no_more_questions_are_asked_for_than_there_are(split: str, most: int) -> None:
    sizes = {"train_rows": 10, "val_rows": 5, "test_rows": 5}
    data = ArithmeticInstructions(digits=1, operations=["add", "multiply"], **sizes | {f"{split}_rows": most})
    assert len(list(data.examples(split))) == most
    with pytest.raises(UserError, match=rf"^data\.{split}_rows {most + 1} is more than the {most} different questions"):
        ArithmeticInstructions(digits=1, operations=["add", "multiply"], **sizes | {f"{split}_rows": most + 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits": 0}, "data.digits must be from 1 to 5, got 0"),
        ({"digits": 6}, "data.digits must be from 1 to 5, got 6"),
        ({"operations": []}, "data.operations must name one or more operations, each once"),
        ({"operations": ["add", "add"]}, "data.operations must name one or more operations, each once"),
        ({"val_rows": 0}, "data.val_rows must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ArithmeticInstructions(**options)


@pytest.mark.parametrize(
    ("digits", "rows", "said"),
    [
        (3, {"test_rows": 95_193}, "data.test_rows 95193 is more than the 95192 different questions"),
        (4, {"train_rows": 10**8}, "data.train_rows 100000000 is more than the 64800000 different questions"),
        (5, {"val_rows": 10**9}, "data.val_rows 1000000000 is more than the 405000000 different questions"),
    ],
)
def test_more_rows_than_long_numbers_have_questions_are_refused(digits: int, rows: dict[str, int], said: str) -> None:
    few = {"train_rows": 5, "val_rows": 1, "test_rows": 1}
    with pytest.raises(UserError, match=said):
        ArithmeticInstructions(digits=digits, operations=["add"], **few | rows)
    ArithmeticInstructions(digits=digits, operations=["add"], **few | {"test_rows": 40_000})


@pytest.mark.parametrize("digits", [4, 5])
def test_enough_pairs_of_long_numbers_are_held_out(digits: int) -> None:
    """The share that the check assumes, on a sample: the pairs are too many to go through."""
    numbers = range(10 ** (digits - 1), 10**digits, 10 ** (digits - 3) + 7)
    held = [held_out(one, two) for one in numbers for two in numbers]
    assert 0.05 < sum(held) / len(held) < 0.2

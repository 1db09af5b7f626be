"""The files of the benchmarks on arithmetic are found by their names, and their questions are in lm-eval's wording."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litpeft.benchmarks.sources import arithmetic, generated


@pytest.mark.parametrize(
    ("digits", "operation", "name"),
    [
        (2, "addition", "two_digit_addition.jsonl"),
        (2, "subtraction", "two_digit_subtraction.jsonl"),
        (3, "addition", "three_digit_addition.jsonl"),
        (4, "subtraction", "four_digit_subtraction.jsonl"),
        (5, "addition", "five_digit_addition.jsonl"),
    ],
)
def test_the_questions_of_a_file(digits: int, operation: str, name: str, tmp_path: Path) -> None:
    row = {"context": "Q: What is 98 plus 45?\n\nA:", "completion": " 143"}
    (tmp_path / name).write_text(json.dumps(row) + "\n")
    found = arithmetic(digits, operation, str(tmp_path))["validation"]
    assert list(found) == [{"context": "Question: What is 98 plus 45?\nAnswer:", "completion": " 143"}]


@pytest.mark.parametrize(
    ("digits", "operation", "sign"), [(1, "addition", "+"), (2, "subtraction", "-"), (4, "addition", "+")]
)
def test_generated_questions_have_right_answers(digits: int, operation: str, sign: str) -> None:
    rows = list(generated(digits, operation)["validation"])
    assert 15 < len(rows) <= 2000
    assert len({row["context"] for row in rows}) == len(rows)
    for row in rows[:50]:
        words = row["context"].removeprefix("Question: What is ").removesuffix("?\nAnswer:").split()
        assert [len(word) for word in (words[0], words[2])] == [digits, digits]
        assert words[1] == {"+": "plus", "-": "minus"}[sign]
        assert int(row["completion"]) == int(words[0]) + (1 if sign == "+" else -1) * int(words[2])

"""Generated arithmetic questions: no download, learnable in minutes, with exact answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from litpeft.data.base import Split
from litpeft.data.instructions import Instructions
from litpeft.errors import UserError

SIGNS = {"add": "plus", "subtract": "minus", "multiply": "times"}
SEEDS = {"train": 0, "val": 1, "test": 2, "predict": 2}  # the questions do not depend on the random seed of a run
HELD_OUT = 10  # one in ten pairs of numbers is held out from training


class ArithmeticInstructions(Instructions):
    """Questions such as "What is 59 minus 38?", as in GPT-3's arithmetic tasks (https://arxiv.org/abs/2005.14165).

    A tenth of the pairs of numbers is held out: validation and test use only these pairs, training uses none of them.

    Args:
        digits: number of digits of both numbers, 1 to 5.
        operations: the operations to ask for.
        train_rows: number of training questions, all different.
        val_rows: number of validation questions.
        test_rows: number of test questions.
        options: template, packing and the other options of `Instructions` and `FineTuneData`.
    """

    def __init__(
        self,
        digits: int = 2,
        operations: list[Literal["add", "subtract", "multiply"]] = ["add", "subtract"],  # noqa: B006
        train_rows: int = 4000,
        val_rows: int = 200,
        test_rows: int = 500,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 1 <= digits <= 5:
            raise UserError(f"data.digits must be from 1 to 5, got {digits}.")
        if not operations or len(set(operations)) < len(operations):
            raise UserError(f"data.operations must name one or more operations, each once, got {operations}.")
        for name, rows in {"train_rows": train_rows, "val_rows": val_rows, "test_rows": test_rows}.items():
            if rows < 1:
                raise UserError(f"data.{name} must be at least 1, got {rows}.")
        self.digits, self.operations = digits, operations
        self.counts = {"train": train_rows, "val": val_rows, "test": test_rows, "predict": test_rows}
        self._check_enough()

    def source_of_examples(self, split: Split) -> dict[str, Any]:
        return {"arithmetic": 1, "digits": self.digits, "operations": self.operations, "rows": self.counts[split]} | {
            "split": "test" if split == "predict" else split
        }

    def examples(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """Generate the questions of a split, all different, in an order that its seed fixes."""
        draw = np.random.default_rng([SEEDS[split], self.digits])
        low, high = (0 if self.digits == 1 else 10 ** (self.digits - 1)), 10**self.digits
        seen: set[tuple[int, int, str]] = set()
        while len(seen) < self.counts[split]:
            first, second = (int(number) for number in draw.integers(low, high, size=2))
            question = first, second, self.operations[int(draw.integers(len(self.operations)))]
            if held_out(first, second) == (split == "train") or question in seen:
                continue
            seen.add(question)
            yield f"What is {first} {SIGNS[question[2]]} {second}?", "", str(answer(*question))

    def _check_enough(self) -> None:
        """Check that there are as many different questions as rows; without them, `examples` would never end."""
        low, high = (0 if self.digits == 1 else 10 ** (self.digits - 1)), 10**self.digits
        pairs, held = (high - low) ** 2, None
        for split, share in (("train", 0.8), ("val", 0.05), ("test", 0.05)):
            questions = int(share * pairs) * len(self.operations)  # there are more, but to count them takes long
            if self.counts[split] <= questions:
                continue
            if self.digits <= 3:
                if held is None:
                    held = sum(held_out(first, second) for first in range(low, high) for second in range(low, high))
                questions = (pairs - held if split == "train" else held) * len(self.operations)
            if self.counts[split] > questions:
                raise UserError(
                    f"data.{split}_rows {self.counts[split]} is more than the {questions} different questions."
                )


def answer(first: int, second: int, operation: str) -> int:
    """Return the result of the operation."""
    return {"add": first + second, "subtract": first - second, "multiply": first * second}[operation]


def held_out(first: int, second: int) -> bool:
    """Return whether a pair is held out, by a hash that is equal for (a, b) and (b, a): a + b does not reveal b + a."""
    small, large = sorted((first, second))
    return (small * 2654435761 + large * 40503 + (small ^ large) * 97) % 2**32 // 7 % HELD_OUT == 0

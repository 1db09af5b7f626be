"""Generated arithmetic: a set that needs no file, shows learning within minutes, and can be checked exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from litpeft.data.base import Split
from litpeft.data.instructions import Instructions
from litpeft.errors import UserError

SIGNS = {"add": "plus", "subtract": "minus", "multiply": "times"}
SEEDS = {"train": 0, "val": 1, "test": 2, "predict": 2}  # which questions there are is part of the data, not of a run
HELD_OUT = 10  # of the pairs of numbers, one in so many is never trained on


class ArithmeticInstructions(Instructions):
    """Questions such as "What is 59 minus 38?", in the form of GPT-3's arithmetic tasks (https://arxiv.org/abs/2005.14165).

    Every tenth pair of numbers is held out: validation and test ask of these alone, training never.

    Args:
        digits: of both numbers, 1 to 5; each has just so many.
        operations: what is asked for.
        train_rows: how many questions to generate; no question stands twice.
        val_rows: likewise.
        test_rows: likewise.
        options: template, packing and the rest, as in `Instructions` and `FineTuneData`.
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
            raise UserError(f"data.operations must name one or more, each once, got {operations}.")
        for name, rows in {"train_rows": train_rows, "val_rows": val_rows, "test_rows": test_rows}.items():
            if rows < 1:
                raise UserError(f"data.{name} must be at least 1, got {rows}.")
        self.digits, self.operations = digits, operations
        self.counts = {"train": train_rows, "val": val_rows, "test": test_rows, "predict": test_rows}
        if self.digits < 3:
            self._check_enough()

    def source_of_examples(self, split: Split) -> dict[str, Any]:
        return {"arithmetic": 1, "digits": self.digits, "operations": self.operations, "rows": self.counts[split]} | {
            "split": "test" if split == "predict" else split
        }

    def examples(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """In an order that the split's seed fixes; a question stands once."""
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
        low, high = (0 if self.digits == 1 else 10 ** (self.digits - 1)), 10**self.digits
        held = sum(held_out(first, second) for first in range(low, high) for second in range(low, high))
        there = {"train": (high - low) ** 2 - held, "val": held, "test": held}
        for split, pairs in there.items():
            most = pairs * len(self.operations)
            if self.counts[split] > most:
                raise UserError(
                    f"data.{split}_rows {self.counts[split]} is more than the {most} questions that there are."
                )


def answer(first: int, second: int, operation: str) -> int:
    """What comes out."""
    return {"add": first + second, "subtract": first - second, "multiply": first * second}[operation]


def held_out(first: int, second: int) -> bool:
    """Whether a pair is never trained on: by its hash, the same for (b, a), so that no sum is known from its mirror."""
    small, large = sorted((first, second))
    return (small * 2654435761 + large * 40503 + (small ^ large) * 97) % 2**32 // 7 % HELD_OUT == 0

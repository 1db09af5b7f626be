"""Alpaca: 52,002 instructions with inputs and responses (Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litpeft.data.base import Split
from litpeft.data.instructions import Instructions
from litpeft.data.tabular import TabularData
from litpeft.errors import UserError


class Alpaca(Instructions, TabularData):
    """Alpaca from the hub, or any table of instructions, inputs and responses; its licence is CC BY-NC 4.0.

    It has no validation split: one is cut from the training rows by a fixed seed.

    Args:
        dataset: hub id, used where no file is given.
        instruction_column: name of the column with what is asked.
        input_column: name of the column with what it is asked about; it may be missing or empty.
        output_column: name of the column with the response; `predict_file` may lack it.
        options: files, template, packing and the rest, as in `Instructions`, `TabularData` and `FineTuneData`.
    """

    def __init__(
        self,
        dataset: str | None = "tatsu-lab/alpaca",
        instruction_column: str = "instruction",
        input_column: str = "input",
        output_column: str = "output",
        **options: Any,
    ) -> None:
        super().__init__(dataset=dataset, **options)
        self.names = instruction_column, input_column, output_column

    def source_of_examples(self, split: Split) -> dict[str, Any] | None:
        where = self.where(self.origin(split))
        return where and {"names": self.names, "answered": split != "predict"} | where

    def examples(self, split: Split) -> Iterator[tuple[str, str, str]]:
        instruction, given, response = self.names
        required = {instruction: "data.instruction_column"}
        if split != "predict":
            required[response] = "data.output_column"
        for place, row in self.read(self.origin(split), required):
            texts = [row.get(name) for name in (instruction, given, response)]
            for name, text in zip(self.names, texts, strict=True):
                if text is not None and not isinstance(text, str):
                    raise UserError(f"{place}: column {name!r} holds {type(text).__name__}, not text.")
            asked, about, answer = (text or "" for text in texts)
            if not asked.strip():
                raise UserError(f"{place}: the instruction is empty; remove the row, or see data.instruction_column.")
            yield asked, about, answer

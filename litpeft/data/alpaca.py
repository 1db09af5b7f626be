"""Alpaca: 52,002 instructions with responses (Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litpeft.data.base import Split
from litpeft.data.instructions import Instructions
from litpeft.data.tabular import TabularData


class Alpaca(Instructions, TabularData):
    """Alpaca from the hub (licence: CC BY-NC 4.0), or any local table of instructions, inputs and responses.

    There is no validation split, so validation rows are cut from the training rows with a fixed seed.

    Args:
        dataset: hub id, used if no file is given.
        instruction_column: name of the column with the instruction.
        input_column: name of the column with the input of the instruction; it may be missing or empty.
        output_column: name of the column with the response; `predict_file` does not need it.
        options: files, template, packing and the other options of `Instructions`, `TabularData` and `FineTuneData`.
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
        source = self.source_of_rows(self.split_to_read(split))
        return source and {"names": self.names, "answered": split != "predict"} | source

    def examples(self, split: Split) -> Iterator[tuple[str, str, str]]:
        instruction, given, response = self.names
        required = {instruction: "data.instruction_column"}
        if split != "predict":
            required[response] = "data.output_column"
        bad, rows = self.bad_rows(split), 0
        for place, row in self.read(self.split_to_read(split), required, optional=self.names):
            rows += 1
            texts = [row.get(name) for name in (instruction, given, response)]
            for name, text in zip(self.names, texts, strict=True):
                if text is not None and not isinstance(text, str):
                    bad.add(place, f"column {name!r} holds {type(text).__name__}, not text")
            prompt, context, answer = (text if isinstance(text, str) else "" for text in texts)
            if not prompt.strip():
                bad.add(place, "the instruction is empty (see data.instruction_column)")
            if place not in bad.reasons:
                yield prompt, context, answer
        bad.check(rows)
        self.facts_of_reading[split] = {"unused_columns": self.unused_columns[self.split_to_read(split)]}
        self.facts_of_reading[split] |= {"skipped_rows": len(bad.reasons)} if bad.reasons else {}

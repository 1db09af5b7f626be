"""Alpaca: 52,002 instructions with responses (Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca)."""

from __future__ import annotations

from typing import Any

from litpeft.data.conversations import Conversations


class Alpaca(Conversations):
    """Alpaca from the hub (licence: CC BY-NC 4.0), or any local table of instructions, inputs and responses.

    There is no validation split, so validation rows are cut from the training rows with a fixed seed.

    Args:
        dataset: hub id, used if no file is given.
        instruction_column: name of the column with the instruction.
        input_column: name of the column with the input of the instruction; it may be missing or empty.
        output_column: name of the column with the response; `predict_file` does not need it.
        template: as for `Chats`.
        options: files, packing and the other options of `Conversations`, `TabularData` and `FineTuneData`.
    """

    column_options = Conversations.column_options | {"prompt": "instruction_column", "response": "output_column"}

    def __init__(
        self,
        dataset: str | None = "tatsu-lab/alpaca",
        instruction_column: str = "instruction",
        input_column: str = "input",
        output_column: str = "output",
        template: str = "alpaca",
        **options: Any,
    ) -> None:
        super().__init__(
            dataset=dataset,
            prompt_column=instruction_column,
            input_column=input_column,
            response_column=output_column,
            template=template,
            **options,
        )

"""Conversations from local files or the hub; Alpaca is a preset of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from litpeft.data.bad_rows import BadRows
from litpeft.data.base import Split
from litpeft.data.chats import Chats, Conversation
from litpeft.data.files import check_columns
from litpeft.data.messages import LISTS, PROMPTS, RESPONSES, Columns, Unusable, conversation, find_columns
from litpeft.data.raw_files import expand
from litpeft.data.tabular import TabularData
from litpeft.errors import UserError

NEEDED = ("messages", "prompt", "response", "system", "history", "tools")  # columns that rows must have, if given


class Conversations(Chats, TabularData):
    """Conversations from local files or the hub, of one or several turns.

    The columns are recognised by their names, unless options name them: a list of turns (`messages`, or
    `conversations` as ShareGPT writes them), or a question (`prompt`, `instruction`, `question` or `query`, with
    `input`) and its answer (`completion`, `response`, `output` or `answer`). `system`, `history` (pairs of question and
    answer) and `tools` are used where they exist. Which columns are used is printed before training.

    Args:
        template: as for `Chats`: `auto` (the tokenizer's chat template, or `plain` if it has none), `chat`, `alpaca`,
            `plain`, `none`, `chatml`, `llama2`, `llama3`, `mistral`, `gemma`, `phi3`, `qwen`, `zephyr`, a file, or
            Jinja text.
        messages_column: name of the column with a list of turns, each with `role` and `content` (or `from`, `value`).
        prompt_column: name of the column with the question, or with a list of turns.
        input_column: name of the column with text that belongs to the question; it may be missing or empty.
        response_column: name of the column with the answer, or with a list of turns; `predict_file` does not need it.
        system_column: name of the column with the system text.
        history_column: name of the column with earlier questions and answers.
        tools_column: name of the column with the tools of the conversation.
        options: files, packing, batch size and the other options of `Chats`, `TabularData` and `FineTuneData`.
    """

    column_options = {part: f"{part}_column" for part in vars(Columns())}

    def __init__(
        self,
        template: str = "auto",
        messages_column: str | None = None,
        prompt_column: str | None = None,
        input_column: str | None = None,
        response_column: str | None = None,
        system_column: str | None = None,
        history_column: str | None = None,
        tools_column: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(template=template, **options)
        self.columns_given = {
            **{"messages": messages_column, "prompt": prompt_column, "input": input_column},
            **{"response": response_column, "system": system_column, "history": history_column, "tools": tools_column},
        }
        self._bad: dict[str, BadRows] = {}
        self.columns_found: dict[Split, Columns] = {}

    def source_of_conversations(self, split: Split) -> dict[str, Any] | None:
        source = self.source_of_rows(self.split_to_read(split))
        return source and {"names": self.columns_given, "answered": split != "predict"} | source

    def conversations(self, split: Split) -> Iterator[Conversation]:
        read_split, rows = self.split_to_read(split), 0
        bad = self._bad[split] = self.bad_rows(split)
        asked = self.columns_given["prompt"] or self.columns_given["response"]
        unread = ("messages",) if asked else ("history",) if self.columns_given["messages"] else ()
        named = [part for part in NEEDED if self.columns_given[part] and part not in unread]
        given = self._options_of(named, self.columns_given, split)
        placed = self._rows(read_split, given)
        first = next(placed, None)
        if first is None:
            return
        if split not in self.columns_found:
            self.columns_found[split] = self._columns(*first, answered=split != "predict")
        columns = self.columns_found[split]
        required = given | self._options_of(NEEDED[:3], vars(columns), split)
        optional = [name for name in columns.names if name not in required]
        for place, row in self.read(read_split, required, optional, itertools.chain([first], placed)):
            rows += 1
            check_columns(place, row, required)
            try:
                turns, tools = conversation(row, columns)
            except Unusable as error:
                bad.add(place, str(error))
                continue
            if columns.messages is None and split != "predict" and turns[-1]["role"] != "assistant":
                turns = [turn for turn in turns if turn["role"] != "assistant"]  # no response: the row is dropped
            yield place, turns, tools
        bad.check(rows)
        context = self.columns_given["input"]
        missing = columns.input and context not in self.used_columns[read_split] and not self.streaming
        if context not in (None, "input") and missing:
            raise UserError(f"data.{self.column_options['input']} {context}: no row has this column.")
        self.facts_of_reading[split] = {"total_rows": rows, "columns": self.used_columns[read_split]}
        self.facts_of_reading[split] |= {"unused_columns": self.unused_columns[read_split]}
        if self.files[read_split]:
            self.facts_of_reading[split]["files"] = len(expand(self.files[read_split]))
        self.facts_of_reading[split] |= {"skipped_rows": len(bad.reasons)} if bad.reasons else {}

    def cannot_render(self, split: Split, place: str, reason: str) -> None:
        self._bad[split].add(place, reason)

    def _columns(self, place: str, row: dict[str, Any], answered: bool) -> Columns:
        """Return the columns with conversations, by the names in a row."""
        columns = find_columns(row, self.columns_given, answered)
        if columns is None:
            usual = f"{', '.join(LISTS[:2])}, or {PROMPTS[0]} with {RESPONSES[0]}"
            raise UserError(
                f"{place}: no column has conversations; it has: {', '.join(map(str, row))}; give one of {usual} "
                f"(see data.{self.column_options['messages']} and data.{self.column_options['prompt']})."
            )
        return columns

    def _options_of(self, parts: Sequence[str], names: Mapping[str, str | None], split: Split) -> dict[str, str]:
        """Return the columns of these parts, with the options that name them; rows to predict need no response."""
        needed = [part for part in parts if names[part] is not None and (part != "response" or split != "predict")]
        return {names[part]: f"data.{self.column_options[part]}" for part in needed}

"""Base class of instruction data sets that need no files: a question, its input and the response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litpeft.data.base import Split
from litpeft.data.chats import Chats, Conversation


class Instructions(Chats):
    """Prompts and responses for causal and encoder-decoder models.

    Args:
        options: template, packing, batch size, limits and the other options of `Chats` and `FineTuneData`.
    """

    def examples(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """Yield (instruction, input, response) of each row; the input may be empty, and for `predict` the response."""
        raise NotImplementedError

    def source_of_examples(self, split: Split) -> dict[str, Any] | None:
        """Return everything that `examples` depends on, for the cache key; None if there is no such split."""
        raise NotImplementedError

    def source_of_conversations(self, split: Split) -> dict[str, Any] | None:
        return self.source_of_examples(split)

    def conversations(self, split: Split) -> Iterator[Conversation]:
        for number, (instruction, given, response) in enumerate(self.examples(split), 1):
            content = f"{instruction}\n\n{given}" if given else instruction
            turns = [{"role": "user", "content": content, "instruction": instruction, "input": given}]
            if response.strip():
                turns.append({"role": "assistant", "content": response})
            yield f"{split} row {number}", turns, None

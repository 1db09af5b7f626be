"""The text of an answer while its tokens are generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from litpeft.tasks.language_modelling import up_to

INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


class TextStream(BaseStreamer):
    """Passes on the text of one answer, piece by piece; the pieces together are the whole answer.

    Spaces at both ends are left out. Text that may be the beginning of what ends an answer is held back, and so are
    spaces and incomplete characters, until the next token shows what they are.

    Args:
        tokenizer: the tokenizer.
        ends: texts that end an answer and are more than one token.
        write: called with each piece of text.

    Attributes:
        text: the text that has been passed on.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[str], write: Callable[[str], None]) -> None:
        self._tokenizer, self._ends, self._write = tokenizer, ends, write
        self._ids: list[int] | None = None  # None before the prompt
        self.text = ""

    def put(self, value: Tensor) -> None:
        """Receive the tokens of the prompt, in the first call, and then each generated token."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = self._decoded()
        held = max((n for end in self._ends for n in range(len(end)) if text.endswith(end[:n])), default=0)
        self._pass_on(text[: len(text) - held].rstrip(INCOMPLETE).rstrip())

    def end(self) -> None:
        """Pass on what was held back."""
        self._pass_on(self._decoded().rstrip())

    def _decoded(self) -> str:
        return up_to(self._ends, self._tokenizer.decode(self._ids or [], skip_special_tokens=True)).lstrip()

    def _pass_on(self, text: str) -> None:
        if text.startswith(self.text) and len(text) > len(self.text):
            new, self.text = text[len(self.text) :], text
            self._write(new)

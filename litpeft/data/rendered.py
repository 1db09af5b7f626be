"""A conversation, and its text as a template renders it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]  # start and end in a text, in characters
Message = dict[str, Any]  # `role`, `content`, and what the template reads besides, such as `tool_calls`


class CannotRender(Exception):
    """A template cannot render a conversation; the message says why."""


@dataclass
class Rendered:
    """A rendered conversation.

    Attributes:
        text: the conversation, up to the end of its last answer.
        answers: start and end of each answer in the text, in characters, with what ends the answer. An answer that
            generation blocks divide has several parts.
        last: number in `answers` of the first part of the last answer.
    """

    text: str
    answers: list[Span]
    last: int = -1

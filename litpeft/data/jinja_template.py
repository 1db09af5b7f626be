"""Text of conversations as a chat template in Jinja renders it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from litpeft.data.rendered import CannotRender, Message, Span
from litpeft.errors import first_sentence
from litpeft.runs.record_schema import is_utf8

Out = TypeVar("Out")
MARK = "\ue000\ue001"  # private characters of Unicode, in place of a text


class JinjaTemplate:
    """Renders turns with a Jinja template.

    Args:
        tokenizer: the tokenizer, for its special tokens.
        template: the Jinja text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.source = template
        self._tokens = {
            name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
        } | {name: "" for name in ("bos_token", "eos_token") if not tokenizer.special_tokens_map.get(name)}

    def text(self, messages: list[Message], tools: Any = None, prompt: bool = False) -> str:
        return self.text_and_blocks(messages, tools, prompt, blocks=False)[0]

    def text_and_blocks(
        self, messages: list[Message], tools: Any = None, prompt: bool = False, blocks: bool = True
    ) -> tuple[str, list[Span]]:
        """Return the rendered text, and where its generation blocks are; without `blocks` an empty list."""
        options = {"add_generation_prompt": prompt, "return_assistant_tokens_mask": blocks}
        try:
            (text,), found = render_jinja_template(
                [messages], tools, chat_template=self.source, **options, **self._tokens
            )
        except TemplateError as error:
            raise CannotRender(f"the template says: {first_sentence(error).rstrip('.')}") from error
        except Exception as error:  # a template is a program, with any error of its own
            raise CannotRender(f"the template fails: {first_sentence(error).rstrip('.')}") from error
        if not is_utf8(text):
            raise CannotRender("an escape such as \\ud800 is half a character; remove the escape")
        return text, [(int(start), int(end)) for start, end in (found[0] if blocks else ())]

    def check(self, text: str, messages: list[Message], tools: Any, prompt: bool = False) -> None:
        """Raise CannotRender if a rendered text lacks tools, their calls or what they return."""
        renamed = [_renamed(tool) for tool in tools or ()]
        if tools and self._unchanged(text, messages, renamed, prompt):
            raise CannotRender("the template leaves out tools; give a data.template that has them")
        for number, turn in enumerate(messages):
            before, after = messages[:number], messages[number + 1 :]
            calls = {name: value for name, value in turn.items() if name != "tool_calls"}
            if turn.get("tool_calls") and self._unchanged(text, [*before, calls, *after], tools, prompt):
                raise CannotRender("the template leaves out tools; give a data.template that has them")
            other = turn | {"content": f"{turn['content']}{MARK}"}
            if turn["role"] == "tool" and self._unchanged(text, [*before, other, *after], tools, prompt):
                raise CannotRender(
                    "the template leaves out what tools return; give a data.template that has tool turns"
                )

    def _unchanged(self, text: str, messages: list[Message], tools: Any, prompt: bool) -> bool:
        """Return whether the template gives the same text for other messages or tools."""
        try:
            return self.text(messages, tools, prompt) == text
        except CannotRender:
            return False

    def with_arguments(self, turns: list[Message], use: Callable[[list[Message]], Out]) -> Out:
        """Return what `use` makes of the turns; templates take arguments of calls as objects or as JSON text."""
        try:
            return use(turns)
        except CannotRender as error:
            if not any(turn.get("tool_calls") for turn in turns):
                raise
            try:
                return use([_with_json_arguments(turn) for turn in turns])
            except CannotRender:
                raise error from None


def _with_json_arguments(turn: Message) -> Message:
    """Return a turn whose tool calls have their arguments as JSON text."""
    if not turn.get("tool_calls"):
        return turn
    calls = [call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
             for call in turn["tool_calls"]]  # fmt: skip
    return turn | {"tool_calls": calls}


def _renamed(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool with another name."""
    return tool | {"function": tool["function"] | {"name": f"{tool['function'].get('name')}{MARK}"}}

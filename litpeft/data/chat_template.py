"""Chat templates in Jinja, and the parts of a rendered conversation that the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from litpeft.errors import UserError, first_sentence

Message = dict[str, Any]  # `role`, `content`, and what the template reads besides, such as `tool_calls`
MARK = "\ue000\ue001"  # private characters of Unicode, in place of a text
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class CannotRender(Exception):
    """A template cannot render a conversation; the message says why."""


@dataclass
class Rendered:
    """A rendered conversation.

    Attributes:
        text: the conversation, up to the end of its last answer.
        answers: start and end of each answer in the text, in characters, with what ends the answer.
    """

    text: str
    answers: list[tuple[int, int]]


class ChatTemplate:
    """Renders conversations with a Jinja template, and finds the answers in the text.

    The answers are what the template's `{% generation %}` blocks contain. In a template without them, an answer starts
    where the prompt for generation ends, and it ends with the first added token of the tokenizer that the template
    writes after the content, such as `<|im_end|>`; if there is none, with the text after it, or with the end-of-text
    token.

    Args:
        tokenizer: the tokenizer, for its special tokens.
        template: the Jinja text.

    Attributes:
        end: what ends an answer.
        folds_system: whether the template has no system turn, so that a system text goes before the first user turn.

    Raises:
        UserError: the template cannot render a question with its answer.
    """

    adds_specials = False  # the template has written them

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.source = template
        self._tokenizer = tokenizer
        self._tokens = {
            name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
        } | {name: "" for name in ("bos_token", "eos_token") if not tokenizer.special_tokens_map.get(name)}
        self._marks_answers = GENERATION.search(template) is not None
        question = {"role": "user", "content": "A"}
        try:
            whole = self._jinja([question, {"role": "assistant", "content": MARK}])
            prompt, without = self._jinja([question], prompt=True), self._jinja([question])
        except CannotRender as error:
            raise UserError(f"data.template: it cannot render a question with its answer: {error}.") from error
        if MARK not in whole:
            raise UserError("data.template: it leaves out what the assistant says; give another template.")
        self._header = prompt[_length_in_common(prompt, without) :]
        self.end = self._end_in(whole.partition(MARK)[2])
        self.appends_end = not self.end
        if self.appends_end:
            self.end = tokenizer.eos_token or ""

    @cached_property
    def folds_system(self) -> bool:
        turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
        try:
            return MARK not in self._jinja([{"role": "system", "content": MARK}, *turns])
        except CannotRender:
            return True

    def prompt(self, messages: Sequence[Message], tools: Any = None) -> str:
        """Return the text that the next answer follows.

        Raises:
            CannotRender: the template refuses the conversation or leaves out its tools.
        """
        return self._checked(self._prepared(messages), tools, prompt=True)

    def render(self, messages: Sequence[Message], tools: Any = None) -> Rendered:
        """Return the text of a conversation whose last turn is an answer, and where its answers are.

        Raises:
            CannotRender: the template refuses the conversation or leaves out its tools, or the answers cannot be found.
        """
        prepared = self._prepared(messages)
        if self._marks_answers:
            text, answers = self._generated(prepared, tools)
        else:
            text = self._checked(prepared, tools)
            answers = self._found_by_marks(prepared, tools, text) or self._found_by_prompts(prepared, tools, text)
        if len(answers) != sum(turn["role"] == "assistant" for turn in prepared):
            raise CannotRender("the template does not show where each answer is; give one with {% generation %} blocks")
        text = text[: answers[-1][1]]
        if self.appends_end and not text.endswith(self.end):
            text += self.end
            answers[-1] = answers[-1][0], len(text)
        return Rendered(text, answers)

    def _prepared(self, messages: Sequence[Message]) -> list[Message]:
        """Return the turns as the template takes them: answers without their end, no system turn if it has none."""
        turns = [dict(turn) for turn in messages]
        for turn in turns:
            if turn["role"] == "assistant":
                for end in {self.end, self._tokens["eos_token"]} - {""}:
                    turn["content"] = turn["content"].removesuffix(end)
        if turns[0]["role"] == "system" and self.folds_system and len(turns) > 1 and turns[1]["role"] == "user":
            system = turns.pop(0)["content"]
            turns[0]["content"] = f"{system}\n\n{turns[0]['content']}" if system else turns[0]["content"]
        return turns

    def _jinja(self, messages: list[Message], tools: Any = None, prompt: bool = False) -> str:
        try:
            rendered, _ = render_jinja_template(
                [messages], tools, chat_template=self.source, add_generation_prompt=prompt, **self._tokens
            )
        except TemplateError as error:
            raise CannotRender(f"the template says: {first_sentence(error).rstrip('.')}") from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:  # what the template does with the values
            raise CannotRender(f"the template fails: {first_sentence(error).rstrip('.')}") from error
        return rendered[0]

    def _checked(self, messages: list[Message], tools: Any, prompt: bool = False) -> str:
        """Return the rendered text; raise CannotRender if the template leaves out tools, calls or roles."""
        text = self._jinja(messages, tools, prompt)
        calls = [call["function"]["name"] for turn in messages for call in turn.get("tool_calls") or ()]
        offered = [str(tool.get("function", tool).get("name")) for tool in tools or ()]
        if any(name not in text for name in [*calls, *offered]):
            raise CannotRender("the template leaves out tools; give a data.template that has them")
        if any(turn["role"] == "tool" and turn["content"].strip() not in text for turn in messages):
            raise CannotRender("the template leaves out what tools return; give a data.template that has tool turns")
        return text

    def _generated(self, messages: list[Message], tools: Any) -> tuple[str, list[tuple[int, int]]]:
        """Return the text and its answers as the template's generation blocks mark them."""
        self._checked(messages, tools)
        rendered, blocks = render_jinja_template(
            [messages], tools, chat_template=self.source, return_assistant_tokens_mask=True, **self._tokens
        )
        return rendered[0], [(int(start), int(end)) for start, end in blocks[0]]

    def _found_by_marks(self, messages: list[Message], tools: Any, text: str) -> list[tuple[int, int]]:
        """Find the answers by rendering marks in their place; [] if the rest of the text depends on the answers."""
        marked, contents = [], []
        for turn in messages:
            if turn["role"] == "assistant":
                marked.append(turn | {"content": MARK})
                contents.append(turn["content"])
            else:
                marked.append(turn)
        pieces = self._jinja(marked, tools).split(MARK)
        if len(pieces) != len(contents) + 1:
            return []
        answers, at = [], 0
        for number, content in enumerate(contents):
            piece, following = pieces[number], pieces[number + 1]
            if not text.startswith(piece, at):
                return []
            start = at + self._start_in(piece)
            at += len(piece)
            for shown in (content, content.strip(), content.rstrip(), content.lstrip()):  # templates may strip
                if text.startswith(shown + following, at):
                    at += len(shown)
                    break
            else:
                return []
            place = following.find(self.end) if not self.appends_end else -1
            answers.append((start, at + (place + len(self.end) if place >= 0 else 0)))
        return answers

    def _found_by_prompts(self, messages: list[Message], tools: Any, text: str) -> list[tuple[int, int]]:
        """Find each answer between the prompt for generation and the next end; [] if that is impossible."""
        answers = []
        for number, turn in enumerate(messages):
            if turn["role"] != "assistant":
                continue
            prompt = self._jinja(messages[:number], tools, prompt=True)
            end = text.find(self.end, len(prompt)) if self.end and not self.appends_end else -1
            if not text.startswith(prompt) or end < 0:
                return []
            answers.append((len(prompt), end + len(self.end)))
        return answers

    def _start_in(self, piece: str) -> int:
        """Return where the answer starts in the text before its content: after the prompt for generation."""
        place = piece.rfind(self._header) if self._header else -1
        return place + len(self._header) if place >= 0 else len(piece.rstrip())

    def _end_in(self, tail: str) -> str:
        """Return what ends an answer in the text after its content: up to the first added token, or all of it."""
        tokens = [token for token in self._tokenizer.get_added_vocab() if token.strip() and token in tail]
        if not tokens:
            return tail.strip()
        first = min(tokens, key=lambda token: (tail.find(token), -len(token)))
        return tail[: tail.find(first) + len(first)].strip()


def _length_in_common(one: str, other: str) -> int:
    """Return the number of characters that two texts share at their start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

"""Chat templates in Jinja, and the parts of a rendered conversation that the assistant wrote."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from litpeft.data.jinja_template import MARK, JinjaTemplate
from litpeft.data.rendered import CannotRender, Message, Rendered, Span
from litpeft.errors import UserError

QUESTION = {"role": "user", "content": "A"}
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
LOST_BLOCKS = "some answer is in none of the template's {% generation %} blocks"


class ChatTemplate(JinjaTemplate):
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
        with_tools: the template of conversations with tools, if the tokenizer has one for them; else None.

    Raises:
        UserError: the template cannot render a question with its answer.
    """

    adds_specials = False  # the template has written them

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        super().__init__(tokenizer, template)
        self._tokenizer = tokenizer
        self._marks_answers = GENERATION.search(template) is not None
        self.with_tools: ChatTemplate | None = None
        try:
            whole = self.text([QUESTION, {"role": "assistant", "content": MARK}])
            prompt, without = self.text([QUESTION], prompt=True), self.text([QUESTION])
        except CannotRender as error:
            raise UserError(f"data.template: it cannot render a question with its answer: {error}.") from error
        if MARK not in whole:
            raise UserError("data.template: it leaves out what the assistant says; give another template.")
        self._header = prompt[_length_in_common(prompt, without) :]
        self.end = self._end_in(whole.partition(MARK)[2])
        self.appends_end = not self.end
        if self.appends_end:
            self.end = tokenizer.eos_token or ""
        self._end_within = self._end_of_earlier_answers()

    @cached_property
    def learns_end(self) -> bool:
        """Whether what ends an answer has loss; generation blocks may leave it out."""
        if not self._marks_answers:
            return True
        text, blocks = self.text_and_blocks([QUESTION, {"role": "assistant", "content": "B"}])
        return bool(blocks) and text[: blocks[-1][1]].endswith(self.end)

    @cached_property
    def opening(self) -> str:
        """What a prompt has after the place where an answer starts, such as `<think>`; mostly nothing."""
        prompt, turns = self.text([QUESTION], prompt=True), [QUESTION, {"role": "assistant", "content": "B"}]
        rendered = self.render(turns)
        start = _length_in_common(prompt, rendered.text)
        return prompt[start:] if rendered.answers[0][0] == start else ""

    def jinja_text(self) -> str | dict[str, str]:
        """Return the template as Jinja, to be exported with a tokenizer; both by name if there is one for tools."""
        return self.source if self.with_tools is None else {"default": self.source, "tool_use": self.with_tools.source}

    @cached_property
    def folds_system(self) -> bool:
        turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
        try:
            return MARK not in self.text([{"role": "system", "content": MARK}, *turns])
        except CannotRender:
            return True

    def prompt(self, messages: Sequence[Message], tools: Any = None) -> str:
        """Return the text that the next answer follows.

        Raises:
            CannotRender: the template refuses the conversation or leaves out its tools.
        """
        if self._is_for_tools(messages, tools):
            return self.with_tools.prompt(messages, tools)
        return self.with_arguments(self._prepared(messages), lambda turns: self._prompt(turns, tools))

    def render(self, messages: Sequence[Message], tools: Any = None) -> Rendered:
        """Return the text of a conversation whose last turn is an answer, and where its answers are.

        Raises:
            CannotRender: the template refuses the conversation or leaves out its tools, or the answers cannot be found.
        """
        if self._is_for_tools(messages, tools):
            return self.with_tools.render(messages, tools)
        return self.with_arguments(self._prepared(messages), lambda turns: self._rendered(turns, tools))

    def _is_for_tools(self, messages: Sequence[Message], tools: Any) -> bool:
        """Return whether the template for tools renders this conversation."""
        called = any(turn["role"] == "tool" or turn.get("tool_calls") for turn in messages)
        return self.with_tools is not None and bool(tools or called)

    def _prompt(self, turns: list[Message], tools: Any) -> str:
        text = self.text(turns, tools, prompt=True)
        self.check(text, turns, tools, prompt=True)
        return text

    def _rendered(self, turns: list[Message], tools: Any) -> Rendered:
        text, blocks = self.text_and_blocks(turns, tools, blocks=self._marks_answers)
        self.check(text, turns, tools)
        if self._marks_answers:
            answers = self._parts_of_answers(turns, tools, text, blocks)
        else:
            found = self._found_by_marks(turns, tools, text) or self._found_by_prompts(turns, tools, text)
            answers = [[answer] for answer in found]
        spans = [span for parts in answers for span in parts]
        apart = all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
        if not apart or len(answers) != sum(turn["role"] == "assistant" for turn in turns):
            lost = "the template does not show where each answer is; give one with {% generation %} blocks"
            raise CannotRender(LOST_BLOCKS if self._marks_answers else lost)
        text = text[: spans[-1][1]]
        if self.appends_end and not text.endswith(self.end):
            text += self.end
            answers[-1][-1] = answers[-1][-1][0], len(text)
        learnt = [turn.get("weight", 1) for turn in turns if turn["role"] == "assistant"]
        answers = [parts for parts, weight in zip(answers, learnt, strict=True) if weight]
        spans = [span for parts in answers for span in parts]
        return Rendered(text, spans, len(spans) - len(answers[-1]) if answers else -1)

    def _parts_of_answers(self, turns: list[Message], tools: Any, text: str, blocks: list[Span]) -> list[list[Span]]:
        """Return the generation blocks of each answer; how many it has shows when the turns after it are left out."""
        numbers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
        contents = [turns[number]["content"].strip() for number in numbers]
        one_each = len(blocks) == len(numbers) and all(contents)
        if one_each and all(content in text[slice(*block)] for content, block in zip(contents, blocks, strict=True)):
            return [[block] for block in blocks]  # without rendering the conversation again
        ends = [len(self.text_and_blocks(turns[: number + 1], tools)[1]) for number in numbers]
        starts = [0, *ends[:-1]]
        if ends[-1:] != [len(blocks)] or any(end <= start for start, end in zip(starts, ends, strict=True)):
            raise CannotRender(LOST_BLOCKS)
        return [blocks[start:end] for start, end in zip(starts, ends, strict=True)]

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

    def _found_by_marks(self, messages: list[Message], tools: Any, text: str) -> list[Span]:
        """Find the answers by rendering marks in their place; [] if the rest of the text depends on the answers."""
        marked, contents = [], []
        for turn in messages:
            if turn["role"] == "assistant":
                marked.append(turn | {"content": MARK})
                contents.append(turn["content"])
            else:
                marked.append(turn)
        pieces = self.text(marked, tools).split(MARK)
        thoughts = any(turn.get("reasoning_content") or turn.get("thinking") for turn in messages)
        # a thought before an answer may repeat the header
        several = thoughts and self._header and any(piece.count(self._header) > 1 for piece in pieces[:-1])
        calls = self.appends_end and any(turn.get("tool_calls") for turn in messages)  # they follow the content
        if len(pieces) != len(contents) + 1 or several or calls:
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
            end = self._end_within if number + 1 < len(contents) else "" if self.appends_end else self.end
            place = following.find(end) if end else -1
            answers.append((start, at + (place + len(end) if place >= 0 else 0)))
        return answers

    def _found_by_prompts(self, messages: list[Message], tools: Any, text: str) -> list[Span]:
        """Find each answer between the prompt for generation and the next end; [] if that is impossible."""
        answers = []
        last = max(number for number, turn in enumerate(messages) if turn["role"] == "assistant")
        for number, turn in enumerate(messages):
            if turn["role"] != "assistant":
                continue
            prompt, before = self.text(messages[:number], tools, prompt=True), self.text(messages[:number], tools)
            start = _length_in_common(prompt, text)  # a prompt may open a thought that the answer does not have
            if start <= _length_in_common(prompt, before) and start < len(prompt):
                return []
            if self.appends_end:  # what the template writes up to the next turn
                whole = self.text(messages[: number + 1], tools).rstrip()
                end = len(whole) if text.startswith(whole) else -1
            else:
                written = self.end if number == last else self._end_within
                place = text.find(written, start)
                end = place + len(written) if place >= 0 else -1
            if end < start:
                return []
            answers.append((start, end))
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
        end = tail.find(first) + len(first)
        end += len(self._tokens["eos_token"]) if tail[end:].startswith(self._tokens["eos_token"]) else 0
        return tail[:end].strip()

    def _end_of_earlier_answers(self) -> str:
        """Return what ends an answer that another turn follows; in some formats that is another token."""
        turns = [{"role": role, "content": text} for role, text in (("user", "A"), ("assistant", MARK), ("user", "B"))]
        try:
            tail = self.text(turns).partition(MARK)[2]
        except CannotRender:
            return "" if self.appends_end else self.end
        if not self.appends_end and self.end in tail:
            return self.end
        begin = self._tokens["bos_token"]
        tokens = [
            t for t in self._tokenizer.get_added_vocab() if t.strip() and t != begin and tail.lstrip().startswith(t)
        ]
        return max(tokens, key=len, default="")


def _length_in_common(one: str, other: str) -> int:
    """Return the number of characters that two texts share at their start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

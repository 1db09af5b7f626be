"""Chat templates in Jinja, and the parts of a rendered conversation that the assistant wrote."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from litpeft.data.rendered import CannotRender, Message, Rendered, Span
from litpeft.errors import UserError, first_sentence
from litpeft.runs.record_schema import is_utf8

Out = TypeVar("Out")
MARK = "\ue000\ue001"  # private characters of Unicode, in place of a text
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


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
        self._end_within = self._end_of_earlier_answers()

    @cached_property
    def learns_end(self) -> bool:
        """Whether what ends an answer has loss; generation blocks may leave it out."""
        if not self._marks_answers:
            return True
        text, ((_, end),) = self._jinja_and_blocks(
            [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
        )
        return text[:end].endswith(self.end)

    def jinja_text(self) -> str:
        """Return the template as Jinja, to be exported with a tokenizer."""
        return self.source

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
        return self._with_arguments(self._prepared(messages), lambda turns: self._prompt(turns, tools))

    def render(self, messages: Sequence[Message], tools: Any = None) -> Rendered:
        """Return the text of a conversation whose last turn is an answer, and where its answers are.

        Raises:
            CannotRender: the template refuses the conversation or leaves out its tools, or the answers cannot be found.
        """
        return self._with_arguments(self._prepared(messages), lambda turns: self._rendered(turns, tools))

    def _prompt(self, turns: list[Message], tools: Any) -> str:
        text = self._jinja(turns, tools, prompt=True)
        self._check(text, turns, tools, prompt=True)
        return text

    def _rendered(self, turns: list[Message], tools: Any) -> Rendered:
        text, answers = self._jinja_and_blocks(turns, tools, blocks=self._marks_answers)
        self._check(text, turns, tools)
        lost = "the template's {% generation %} blocks are not one for each answer"
        if not self._marks_answers:
            lost = "the template does not show where each answer is; give one with {% generation %} blocks"
            answers = self._found_by_marks(turns, tools, text) or self._found_by_prompts(turns, tools, text)
        apart = all(one[1] <= other[0] for one, other in itertools.pairwise(answers))
        if not apart or len(answers) != sum(turn["role"] == "assistant" for turn in turns):
            raise CannotRender(lost)
        text = text[: answers[-1][1]]
        if self.appends_end and not text.endswith(self.end):
            text += self.end
            answers[-1] = answers[-1][0], len(text)
        learnt = [turn.get("weight", 1) for turn in turns if turn["role"] == "assistant"]
        return Rendered(text, [answer for answer, weight in zip(answers, learnt, strict=True) if weight])

    def _with_arguments(self, turns: list[Message], use: Callable[[list[Message]], Out]) -> Out:
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
        return self._jinja_and_blocks(messages, tools, prompt, blocks=False)[0]

    def _jinja_and_blocks(
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

    def _check(self, text: str, messages: list[Message], tools: Any, prompt: bool = False) -> None:
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
            return self._jinja(messages, tools, prompt) == text
        except CannotRender:
            return False

    def _found_by_marks(self, messages: list[Message], tools: Any, text: str) -> list[Span]:
        """Find the answers by rendering marks in their place; [] if the rest of the text depends on the answers."""
        marked, contents = [], []
        for turn in messages:
            if turn["role"] == "assistant":
                marked.append(turn | {"content": MARK})
                contents.append(turn["content"])
            else:
                marked.append(turn)
        pieces = self._jinja(marked, tools).split(MARK)
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
            prompt, before = self._jinja(messages[:number], tools, prompt=True), self._jinja(messages[:number], tools)
            start = _length_in_common(prompt, text)  # a prompt may open a thought that the answer does not have
            if start <= _length_in_common(prompt, before) and start < len(prompt):
                return []
            if self.appends_end:  # what the template writes up to the next turn
                whole = self._jinja(messages[: number + 1], tools).rstrip()
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
            tail = self._jinja(turns).partition(MARK)[2]
        except CannotRender:
            return "" if self.appends_end else self.end
        if not self.appends_end and self.end in tail:
            return self.end
        begin = self._tokens["bos_token"]
        tokens = [
            t for t in self._tokenizer.get_added_vocab() if t.strip() and t != begin and tail.lstrip().startswith(t)
        ]
        return max(tokens, key=len, default="")


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


def _length_in_common(one: str, other: str) -> int:
    """Return the number of characters that two texts share at their start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

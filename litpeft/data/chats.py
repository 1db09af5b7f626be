"""Base class of conversations, rendered with a template; the answers have the loss."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from litpeft.data.base import Split
from litpeft.data.cache import dataset_of
from litpeft.data.rendered import CannotRender, Message, Rendered
from litpeft.data.sequences import BATCH, IDS, Sequences, batched
from litpeft.data.templates import Template, TextTemplate, find_template
from litpeft.data.token_rows import PairRows, TokenRows
from litpeft.errors import UserError, check_choices

RULES = 4  # increase when conversations are rendered otherwise, so that cached tables are not used
THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
TRAIN_ON = {"response": "assistant", "prompt": "all"}  # names of version 0.1.0
Conversation = tuple[str, list[Message], list[dict[str, Any]] | None]  # place for error messages, turns, tools


@dataclass
class _Row:
    """A rendered conversation, with its prompt for people and its last answer."""

    rendered: Rendered
    shown: str
    answer: str


class Chats(Sequences):
    """Conversations for causal and encoder-decoder models.

    For a causal model, a row is the conversation as the template renders it, up to the end of its last answer,
    truncated to `max_length`. For an encoder-decoder model, what comes before the last answer is the prompt; prompt and
    answer are truncated separately. Rows without an answer, or whose truncation leaves none, are dropped and counted.

    Args:
        template: `auto` (the tokenizer's chat template, or `plain` if it has none), `chat` (the tokenizer's), `alpaca`,
            `plain`, `none`, the format of a model family (`chatml`, `llama2`, `llama3`, `mistral`, `gemma`, `phi3`,
            `qwen`, `zephyr`), a file with Jinja, Jinja text, or a YAML file with `prompt_input` and `prompt_no_input`.
        train_on: the tokens with loss: each answer of the `assistant` with what ends it (also called `response`), the
            `last` answer, or `all` tokens (also called `prompt`).
        options: packing, batch size, limits and the other options of `Sequences` and `FineTuneData`.
    """

    def __init__(
        self,
        template: str = "alpaca",
        train_on: Literal["assistant", "last", "all", "response", "prompt"] = "assistant",
        **options: Any,
    ) -> None:
        check_choices("data", Chats.__init__, locals())
        super().__init__(**options)
        self.template_name = template
        self.train_on = TRAIN_ON.get(train_on, train_on)
        self.facts_of_reading: dict[str, dict[str, Any]] = {}  # split -> what `conversations` left out

    def conversations(self, split: Split) -> Iterator[Conversation]:
        """Yield the conversations of a split; for `predict`, the last turn may be a question."""
        raise NotImplementedError

    def source_of_conversations(self, split: Split) -> dict[str, Any] | None:
        """Return everything that `conversations` depends on, for the cache key; None if there is no such split."""
        raise NotImplementedError

    def cannot_render(self, split: Split, place: str, reason: str) -> None:
        """Handle a conversation that the template refuses; the default stops."""
        raise UserError(f"{place}: {reason}.")

    def source(self, split: Split) -> dict[str, Any] | None:
        source = self.source_of_conversations(split)
        # special tokens end the answers
        tokens = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        rules = {
            "kind": "chats",
            "rules": RULES,
            "template": self.template.source if isinstance(self.template, TextTemplate) else self.template.jinja_text(),
            "tokens": tokens,
            "encoder": self.encoder,
        }
        return source and source | rules

    @property
    def template(self) -> Template:
        """The template."""
        return self._template[0]

    def tokenizer_to_export(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer with the chat template that the model was trained with."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.chat_template = self.template.jinja_text()
        return tokenizer

    @cached_property
    def _template(self) -> tuple[Template, str]:
        return find_template(self.template_name, self.tokenizer)

    @property
    def stops(self) -> tuple[list[int], list[str]]:
        """What ends a generated answer: token ids, and texts that are more than one token."""
        tokenizer, end = self.tokenizer, self.template.end
        ids = {tokenizer.eos_token_id, tokenizer.get_added_vocab().get(end)} - {None}
        return sorted(ids), [] if end in tokenizer.get_added_vocab() or end == tokenizer.eos_token else [end]

    @property
    def opening(self) -> str:
        return self.template.opening

    @property
    def adds_specials(self) -> bool:
        return self.template.adds_specials

    def encoded(self, split: Split, rows: np.ndarray) -> TokenRows | PairRows:
        if not self.template.end or (self.encoder and self.tokenizer.eos_token_id is None):
            raise UserError(
                f"data.tokenizer {self.tokenizer_name} has no end-of-text token, so no response could end; name one of "
                "its tokens as eos_token in its tokenizer_config.json."
            )
        return super().encoded(split, rows)

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        counts = {"total_rows": 0, "empty_responses_dropped": 0, "turns_after_last_answer": 0, "answers": 0}
        counts |= {"answers_without_text": 0, "thoughts_left_out": 0}
        batches = (self._columns_of(batch) for batch in batched(self._rendered(split, counts), BATCH))
        table = self.stored(batches)
        return dataset_of(table), counts | self.facts_of_reading.get(split, {})

    def stored(self, batches: Iterable[dict[str, pa.Array]]) -> pa.Table:
        first = next(iterator := iter(batches), None)
        if first is None:
            raise UserError(f"data: no row of {type(self).__name__} has a response to train on.")
        return super().stored(itertools.chain([first], iterator))

    def _rendered(self, split: Split, counts: dict[str, int]) -> Iterator[_Row]:
        """Yield the rendered conversations of a split, and count rows and what is left out."""
        for place, turns, tools in self.conversations(split):
            counts["total_rows"] += 1
            answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("weight", 1)]
            silent = [i for i in answers if not (turns[i]["content"].strip() or turns[i].get("tool_calls"))]
            if split == "predict":
                before = turns[:-1] if turns[-1]["role"] == "assistant" else turns
            elif silent == answers or (self.encoder and answers[-1] in silent):
                counts["empty_responses_dropped"] += 1
                continue
            else:
                counts["turns_after_last_answer"] += len(turns) - answers[-1] - 1
                counts["answers_without_text"] += len(silent)
                before, turns = turns[: answers[-1]], turns[: answers[-1] + 1]
            try:
                if split == "predict" or self.encoder:
                    rendered = Rendered(self.template.prompt(before, tools), [])
                else:
                    rendered = self.template.render(turns, tools)
            except CannotRender as error:
                self.cannot_render(split, place, str(error))
                continue
            counts["answers"] += len(answers) if rendered.answers else 0
            counts["thoughts_left_out"] += _thoughts_left_out(turns, rendered.text)
            answer = turns[-1]["content"].removesuffix(self.template.end) if len(turns) > len(before) else ""
            yield _Row(rendered, _shown(before), answer)

    def _columns_of(self, rows: Sequence[_Row]) -> dict[str, pa.Array]:
        texts, answers = [row.rendered.text for row in rows], [row.answer for row in rows]
        if self.encoder:
            columns = self._pairs(texts, answers)
        else:
            spans, lasts = [row.rendered.answers for row in rows], [row.rendered.last for row in rows]
            columns = self.tokenised(texts, spans, self.adds_specials, lasts)
        return columns | {"text": pa.array([row.shown for row in rows]), "answer": pa.array(answers)}

    def _pairs(self, prompts: list[str], responses: list[str]) -> dict[str, pa.Array]:
        end = self.tokenizer.eos_token_id
        asked = self.prompt_tokens(prompts, encoder=True)
        said = [[*ids, end] if end is not None else ids for ids in self._call_tokenizer(responses, False)["input_ids"]]
        return {"prompt": pa.array(asked, IDS), "response": pa.array(said, IDS)}

    def describe(self) -> dict[str, Any]:
        """Return the base class's facts, and how conversations are rendered."""
        template, told = self._template
        carries = {"assistant": "each answer", "last": "the last answer", "all": "all tokens"}[self.train_on]
        carries = "the last answer" if self.encoder else carries
        told = f"conversations are rendered with {told}; loss on {carries}; {template.end!r} ends an answer"
        if template.folds_system:
            told += "; the template has no system turn, so a system text goes before the first question"
        if not template.learns_end:
            told += "; its generation blocks leave out what ends an answer, so that this is not learnt"
        return super().describe() | {"format": told}


def _thoughts_left_out(turns: list[Message], text: str) -> int:
    """Return the number of thoughts of the assistant that a rendered conversation lacks."""
    found = [turn.get("reasoning_content") or turn.get("thinking") or "" for turn in turns]
    found += [thought for turn in turns if turn["role"] == "assistant" for thought in THOUGHT.findall(turn["content"])]
    return sum(1 for thought in found if isinstance(thought, str) and thought.strip() and thought.strip() not in text)


def _shown(turns: list[Message]) -> str:
    """Return the turns before an answer for people: a single question as it is."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)

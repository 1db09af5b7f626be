"""A language model that answers prompts and conversations, rendered and tokenised as in its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from litpeft.cli.text_stream import TextStream
from litpeft.data.arrays import mask, padded, tensors
from litpeft.data.chats import Chats
from litpeft.data.rendered import CannotRender, Message
from litpeft.data.sequences import Sequences, batched
from litpeft.errors import UserError
from litpeft.tasks.language_modelling import LanguageModelling, up_to


class Speaker:
    """Answers with the model of a task, by the template of its data.

    Args:
        task: the task, whose model is built.
        data: its data module.
        options: arguments of the model's `generate`; `max_new_tokens` is required.

    Raises:
        UserError: the data module has no prompts.
    """

    def __init__(self, task: LanguageModelling, data: Any, options: Mapping[str, Any]) -> None:
        if not isinstance(data, Sequences):
            raise UserError(f"no prompts can be made for {type(data).__name__}; use litpeft predict with a file.")
        self.task, self.data, self.options = task, data, dict(options)

    @property
    def has_turns(self) -> bool:
        """Whether the model was trained on conversations, and not on plain text."""
        return isinstance(self.data, Chats)

    def prompt(self, turns: Sequence[Message], tools: Any = None) -> str:
        """Return the text that the next answer follows.

        Raises:
            UserError: the template refuses the conversation.
        """
        if not self.has_turns:
            return turns[-1]["content"]
        try:
            return self.data.template.prompt(turns, tools)
        except CannotRender as error:
            raise UserError(f"{error}.") from error

    def tokens(self, turns: Sequence[Message], tools: Any = None) -> list[int]:
        """Return the token ids of a prompt."""
        return self.data.prompt_tokens([self.prompt(turns, tools)], self.task.encoder_decoder)[0]

    def fitting(self, turns: Sequence[Message]) -> list[Message]:
        """Return a conversation without its oldest questions and answers, if the model cannot read all of it.

        Raises:
            UserError: the last question alone is too long.
        """
        turns, limit = list(turns), self._longest_prompt()
        while limit is not None and (count := len(self.tokens(turns))) > limit:
            first = int(turns[0]["role"] == "system")
            if len(turns) < first + 3:
                raise UserError(
                    f"the prompt has {count} tokens, and the model takes {limit} before an answer of "
                    f"{self.options['max_new_tokens']}; give a shorter text or a smaller --max_new_tokens."
                )
            del turns[first : first + 2]
        return turns

    def stream(self, turns: Sequence[Message], write: Callable[[str], None]) -> str:
        """Answer the last turn and return the answer; pass its text to `write` while it is generated.

        After Ctrl-C, the text so far is returned.
        """
        stream = TextStream(self.data.tokenizer, self.data.stops[1], write)
        try:
            self._generate([self.tokens(turns)], streamer=stream)
        except KeyboardInterrupt:
            write(" [stopped]")
        return stream.text

    def answers(self, prompts: Sequence[tuple[Sequence[Message], Any]], batch_size: int) -> Iterator[str]:
        """Yield the answer to each prompt.

        Args:
            prompts: conversations that end with a question, each with its tools or None.
            batch_size: number of prompts that are answered together.
        """
        for part in batched(prompts, batch_size):
            ids = [self.tokens(self.fitting(turns), tools) for turns, tools in part]
            for text in self.data.tokenizer.batch_decode(self._generate(ids), skip_special_tokens=True):
                yield up_to(self.data.stops[1], text).strip()

    def _generate(self, rows: list[list[int]], **options: Any) -> torch.Tensor:
        """Return the generated tokens, (B, U)."""
        left = not self.task.encoder_decoder
        batch = {"input_ids": padded(rows, self.data.tokenizer.pad_token_id, left=left)}
        moved = tensors(batch | {"attention_mask": mask(rows, left=left)})
        device = self.task.backbone.device
        return self.task.generate({n: t.to(device) for n, t in moved.items()}, self.data, **self.options | options)

    def _longest_prompt(self) -> int | None:
        """Return the number of tokens that a prompt may have; None if there is no limit."""
        limit = getattr(self.task.backbone.config.get_text_config(), "max_position_embeddings", None)
        if limit is None or self.task.encoder_decoder:
            return limit
        return limit - self.options["max_new_tokens"]

"""Templates by name: chat templates, and plain texts such as Alpaca's published prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from litpeft.data.chat_formats import CHAT_FORMATS
from litpeft.data.chat_template import ChatTemplate
from litpeft.data.rendered import CannotRender, Message, Rendered
from litpeft.errors import UserError
from litpeft.runs.safe_read import read_json_file, read_text, read_yaml_file

# https://github.com/tatsu-lab/stanford_alpaca#data-release
ALPACA = {
    "prompt_input": "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "prompt_no_input": "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
}
PLAIN = {
    "prompt_input": "User:\n{instruction}\n\n{input}\n\nAssistant:\n",
    "prompt_no_input": "User:\n{instruction}\n\nAssistant:\n",
}
NONE = {"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}"}
TEXTS = {"alpaca": ALPACA, "plain": PLAIN, "none": NONE}
NAMES = ("auto", "chat", *TEXTS, *CHAT_FORMATS)


class TextTemplate:
    """Renders each question with a text; the end-of-text token follows each answer.

    A system text comes first, and an empty line stands between the parts of a conversation.

    Args:
        tokenizer: the tokenizer, for its beginning-of-text and end-of-text tokens.
        texts: the texts `prompt_input` (with `{instruction}` and `{input}`) and `prompt_no_input` (with
            `{instruction}`).
    """

    adds_specials = True  # the tokenizer adds what begins a text
    appends_end = folds_system = False
    learns_end = True
    opening = ""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: dict[str, str]) -> None:
        self.source, self.end = texts, tokenizer.eos_token or ""
        self._begin = tokenizer.bos_token or ""
        self._adds_begin = bool(self._begin) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]

    def prompt(self, messages: Sequence[Message], tools: Any = None) -> str:
        """Return the text that the next answer follows."""
        return self._render(messages, tools).text

    def render(self, messages: Sequence[Message], tools: Any = None) -> Rendered:
        """Return the text of a conversation whose last turn is an answer, and where its answers are.

        Raises:
            CannotRender: the conversation has tools.
        """
        return self._render(messages, tools)

    def _render(self, messages: Sequence[Message], tools: Any) -> Rendered:
        if tools or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in messages):
            raise CannotRender("the template has no tool turns; give a data.template that has them")
        between = "\n\n" if self.source != NONE else ""
        text, answers = "", []
        for turn in messages:
            if turn["role"] == "assistant":
                start = len(text)
                text += turn["content"].removesuffix(self.end) + self.end
                if turn.get("weight", 1):
                    answers.append((start, len(text)))
                continue
            part = turn["content"] if turn["role"] == "system" else self._question(turn)
            text += between + part if text else part.removeprefix(self._begin)
        return Rendered(text, answers, len(answers) - 1)

    def jinja_text(self) -> str:
        """Return the template as Jinja, to be exported with a tokenizer; an input is part of the question."""
        before, _, after = self.source["prompt_no_input"].partition("{instruction}")
        between = "" if self.source == NONE else "\n\n"
        return (
            ("{{- bos_token -}}" if self._adds_begin else "")
            + "{%- for message in messages -%}"
            + "{%- if message['role'] == 'assistant' -%}{{- message['content'] + eos_token -}}{%- else -%}"
            + f"{{{{- {json.dumps(between)} if not loop.first else '' -}}}}"
            + "{%- if message['role'] == 'system' -%}{{- message['content'] -}}{%- else -%}"
            + f"{{{{- {json.dumps(before)} + message['content'] + {json.dumps(after)} -}}}}"
            + "{%- endif -%}{%- endif -%}{%- endfor -%}"
        )

    def _question(self, turn: Message) -> str:
        instruction, given = turn.get("instruction", turn["content"]), turn.get("input", "")
        text = self.source["prompt_input" if given else "prompt_no_input"]
        # not str.format, which fails on other braces in the template
        parts = text.split("{instruction}")
        return instruction.join(part.replace("{input}", given) for part in parts)


Template = ChatTemplate | TextTemplate


def find_template(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Template, str]:
    """Return the template that `data.template` names, and a description of it.

    Args:
        name: `auto` (the tokenizer's chat template, else `plain`), `chat` (the tokenizer's chat template), a name of
            `NAMES` or of the tokenizer's templates, a file (Jinja, or YAML as `TextTemplate` takes it), or Jinja text.
        tokenizer: the tokenizer.

    Raises:
        UserError: the file or the chat template does not exist, or it cannot be used.
    """
    own = tokenizer.chat_template
    named = own if isinstance(own, dict) else {"default": own} if own else {}
    if name in ("auto", "chat") and "default" in named:
        return _own_template(tokenizer, named)
    if name in named:
        return ChatTemplate(tokenizer, named[name]), f"the chat template {name} of the tokenizer"
    if name in ("auto", "chat") and named:
        raise UserError(
            f"data.template {name}: the tokenizer has several chat templates; give {' or '.join(sorted(named))}."
        )
    if name == "chat":
        raise UserError(
            f"data.template chat: the tokenizer {tokenizer.name_or_path} has no chat template; give one of "
            f"{', '.join(known for known in NAMES if known not in ('auto', 'chat'))}, or a file."
        )
    if name == "auto":
        return TextTemplate(tokenizer, PLAIN), "the template plain (the tokenizer has no chat template)"
    if name in TEXTS:
        return TextTemplate(tokenizer, TEXTS[name]), f"the template {name}"
    if name in CHAT_FORMATS:
        return ChatTemplate(tokenizer, CHAT_FORMATS[name]), f"the chat format {name}"
    if "{{" in name or "{%" in name:
        return ChatTemplate(tokenizer, name), "the given chat template"
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"data.template {name}: there is no such file; give a file, Jinja text, or one of {', '.join(NAMES)}."
        )
    text = read_text(path, "data.template")
    if text.lstrip().startswith("{") and '"chat_template"' in text:  # a tokenizer_config.json
        text = str(read_json_file(path, "data.template").get("chat_template"))
    if "{{" in text or "{%" in text:
        return ChatTemplate(tokenizer, text), f"the chat template {name}"
    return TextTemplate(tokenizer, _read_texts(path, name)), f"the template {name}"


def _own_template(tokenizer: PreTrainedTokenizerBase, named: dict[str, str]) -> tuple[Template, str]:
    """Return the default chat template of a tokenizer, with that for conversations with tools where it has one."""
    template, told = ChatTemplate(tokenizer, named["default"]), "the chat template of the tokenizer"
    if "tool_use" not in named:
        return template, told
    template.with_tools = ChatTemplate(tokenizer, named["tool_use"])
    if template.with_tools.end != template.end:
        raise UserError(
            f"data.template: the tokenizer's templates end an answer differently ({template.end!r}, and with tools "
            f"{template.with_tools.end!r}); give default or tool_use."
        )
    return template, f"{told} (with tools, its template tool_use)"


def _read_texts(path: Path, name: str) -> dict[str, str]:
    texts = read_yaml_file(path, "data.template")
    required = {"prompt_input": ("{instruction}", "{input}"), "prompt_no_input": ("{instruction}",)}
    for key, placeholders in required.items():
        text = texts.get(key) if isinstance(texts, dict) else None
        for placeholder in placeholders:
            if not isinstance(text, str) or placeholder not in text:
                raise UserError(f"data.template {name}: it needs {key}, a text that contains {placeholder}.")
    return texts

"""Prompt templates: Alpaca's published template, the chat template of a tokenizer, or a YAML file."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from litpeft.errors import UserError
from litpeft.runs.safe_read import read_yaml_file

# https://github.com/tatsu-lab/stanford_alpaca#data-release
ALPACA = {
    "prompt_input": "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "prompt_no_input": "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
}


class Template:
    """Formats instructions as prompts.

    Args:
        name: `alpaca`, `chat` (the tokenizer's chat template), or a YAML file with the texts `prompt_input` (with
            `{instruction}` and `{input}`) and `prompt_no_input` (with `{instruction}`).
        tokenizer: the tokenizer, for its chat template.

    Raises:
        UserError: the file or the chat template does not exist, or a text lacks a placeholder.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.texts = None if name == "chat" else ALPACA if name == "alpaca" else _read_template(name)
        if name == "chat" and not tokenizer.chat_template:
            raise UserError(f"data.template chat: the tokenizer {tokenizer.name_or_path} has no chat template.")

    def prompt(self, instruction: str, given: str) -> str:
        """Return the prompt of an instruction with its input `given`, which may be empty."""
        if self.texts is None:
            turn = [{"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}]
            return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        text = self.texts["prompt_input" if given else "prompt_no_input"]
        # not str.format, which fails on other braces in the template
        parts = text.split("{instruction}")
        return instruction.join(part.replace("{input}", given) for part in parts)

    @property
    def adds_specials(self) -> bool:
        """Whether the tokenizer must add its special tokens; a chat template contains them already."""
        return self.texts is not None

    @property
    def source(self) -> object:
        """The template's text, for the cache key."""
        return self.tokenizer.chat_template if self.texts is None else self.texts


def _read_template(name: str) -> dict[str, str]:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"data.template {name}: there is no such file; give alpaca, chat, or a YAML file.")
    texts = read_yaml_file(path, "data.template")
    required = {"prompt_input": ("{instruction}", "{input}"), "prompt_no_input": ("{instruction}",)}
    for key, placeholders in required.items():
        text = texts.get(key) if isinstance(texts, dict) else None
        for placeholder in placeholders:
            if not isinstance(text, str) or placeholder not in text:
                raise UserError(f"data.template {name}: it needs {key}, a text that contains {placeholder}.")
    return texts

"""How an instruction becomes a prompt: Alpaca's published template, a tokenizer's chat template, or one's own file."""

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
    """Makes prompts of instructions.

    Args:
        name: `alpaca`, `chat` (the tokenizer's own template), or a YAML file with `prompt_input` and `prompt_no_input`,
            each a text with `{instruction}` and, the first, `{input}`.
        tokenizer: whose chat template and tokens are used.

    Raises:
        UserError: there is no such file or template, or a text lacks a place to fill in.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.texts = None if name == "chat" else ALPACA if name == "alpaca" else _own(name)
        if name == "chat" and not tokenizer.chat_template:
            raise UserError(f"data.template chat: the tokenizer {tokenizer.name_or_path} has no chat template.")

    def prompt(self, instruction: str, given: str) -> str:
        """The text that the model is to go on from."""
        if self.texts is None:
            asked = f"{instruction}\n\n{given}" if given else instruction
            turn = [{"role": "user", "content": asked}]
            return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        text = self.texts["prompt_input" if given else "prompt_no_input"]
        # not str.format, which would trip over braces in what is filled in or around it
        parts = text.split("{instruction}")
        return instruction.join(part.replace("{input}", given) for part in parts)

    @property
    def adds_specials(self) -> bool:
        """Whether the tokenizer is to add its special tokens: a chat template has written them already."""
        return self.texts is not None

    @property
    def source(self) -> object:
        """What prompts depend on, beside the instructions."""
        return self.tokenizer.chat_template if self.texts is None else self.texts


def _own(name: str) -> dict[str, str]:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"data.template {name}: give alpaca, chat, or a YAML file; there is no such file.")
    texts = read_yaml_file(path, "data.template")
    needed = {"prompt_input": ("{instruction}", "{input}"), "prompt_no_input": ("{instruction}",)}
    for key, places in needed.items():
        text = texts.get(key) if isinstance(texts, dict) else None
        for place in places:
            if not isinstance(text, str) or place not in text:
                raise UserError(f"data.template {name}: it needs {key}, a text with {place} in it.")
    return texts

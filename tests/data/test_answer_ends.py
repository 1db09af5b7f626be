"""Where answers end: the last character has loss, one end-of-text token follows, and a prompt has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import processors

from litpeft.data import Conversations
from tests.data.test_conversations import TURNS, load, marked, tokenizer, write
from tests.data.test_odd_conversations import HIDES_THE_END
from tests.data.test_text_classification import make


@pytest.mark.parametrize("answer", ["ok x", "fine 🙂", "é", "ends in 猫"])
def test_every_token_of_an_answer_has_loss(answer: str, tmp_path: Path) -> None:
    turns = [TURNS[0], {"role": "assistant", "content": answer}]
    data = load(tmp_path, [{"messages": turns}] * 2, template=HIDES_THE_END)
    assert f"«{answer}»" in marked(data)
    labels = data.rows["train"][[0]]["labels"][0]
    assert labels[labels != -100].tolist() == data.tokenizer(answer, add_special_tokens=False)["input_ids"]


@pytest.fixture
def ending(tmp_path: Path) -> Conversations:
    """Return prompts and answers for a tokenizer that begins and ends every text with special tokens itself."""
    found = tokenizer("bytes", tmp_path / "tokenizer")
    marks = [("<s>", found.convert_tokens_to_ids("<s>")), ("</s>", found.convert_tokens_to_ids("</s>"))]
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    found.save_pretrained(tmp_path / "tokenizer")
    file = write(tmp_path / "rows.jsonl", [{"prompt": "What is one?", "response": "It is 1."}] * 2)
    return make(Conversations, tokenizer=str(tmp_path / "tokenizer"), train_file=file, val_file=file, template="plain")


def test_one_end_follows_an_answer_and_none_a_prompt(ending: Conversations) -> None:
    end = ending.tokenizer.eos_token_id
    ids = ending.rows["train"][[0]]["input_ids"][0].tolist()
    assert (ids[-1], ids.count(end)) == (end, 1)
    batch, *_ = next(ending.prompts("train", 1))
    assert end not in batch["input_ids"][0].tolist()
    assert all(end not in prompt for prompt in ending.prompt_tokens(["What is one?"]))


def test_a_row_of_exactly_max_length_is_kept(tmp_path: Path) -> None:
    rows = [{"messages": TURNS[:2]}] * 2
    length = len(load(tmp_path, rows, "llama3").rows["train"][[0]]["input_ids"][0])
    data = load(tmp_path, rows, "llama3", max_length=length, long_rows="drop")
    assert (len(data.rows["train"]), data.dropped["train"]) == (2, 0)

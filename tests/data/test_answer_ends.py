"""Where answers end: the last character has loss, one end-of-text token follows, and a prompt has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import processors
from transformers import ByT5Tokenizer

from litpeft.data import Conversations
from litpeft.data.token_rows import NO_LOSS
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


class Between(ByT5Tokenizer):
    """A tokenizer in Python, which gives no offsets, and puts every text between two special tokens."""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        assert token_ids_1 is None
        return [self.pad_token_id, *token_ids_0, self.eos_token_id]


@pytest.mark.parametrize("kind", [ByT5Tokenizer, Between])
@pytest.mark.parametrize("specials", [True, False])
@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("one 🙂 two", [(4, 5)]),
        ("one 🙂 two", [(6, 9)]),
        ("one 🙂 two", [(0, 9)]),
        ("one 🙂 two", [(0, 3), (6, 8)]),
        ("one 🙂 two", []),
        ("a", [(0, 1)]),
    ],
)
def test_a_tokenizer_without_offsets_gives_the_tokens_of_the_whole_text(
    kind: type[ByT5Tokenizer], specials: bool, text: str, answers: list[tuple[int, int]]
) -> None:
    data, found = object.__new__(Conversations), kind()
    data.tokenizer = found
    columns = {name: column.to_pylist()[0] for name, column in data.tokenised([text], [answers], specials).items()}
    whole = found(text, add_special_tokens=specials)["input_ids"]
    end = [found.eos_token_id] if specials and not answers else []  # none after a prompt
    assert columns["ids"] + end == whole
    bytes_at = [len(text[:place].encode()) for place in range(len(text) + 1)]
    first = int(specials and kind is Between)
    spans = [(first + bytes_at[start], first + bytes_at[stop]) for start, stop in answers]
    learned = [place for place, loss in enumerate(columns["loss"]) if loss != NO_LOSS]
    assert learned == [place for span in spans for place in range(*span)]
    assert (columns["first"], columns["last"]) == (
        (spans[0][0], spans[-1][0]) if spans else (len(columns["ids"]), len(columns["ids"]))
    )


def test_a_row_of_exactly_max_length_is_kept(tmp_path: Path) -> None:
    rows = [{"messages": TURNS[:2]}] * 2
    length = len(load(tmp_path, rows, "llama3").rows["train"][[0]]["input_ids"][0])
    data = load(tmp_path, rows, "llama3", max_length=length, long_rows="drop")
    assert (len(data.rows["train"]), data.dropped["train"]) == (2, 0)

"""Where answers end: the last character has loss, one end-of-text token follows, and a prompt has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from litpeft.data import Conversations
from litpeft.data.chat_template import ChatTemplate, _length_in_common
from litpeft.data.rendered import CannotRender
from litpeft.data.token_rows import NO_LOSS
from tests.data.test_conversations import MARKERS, TURNS, load, marked, tokenizer, write
from tests.data.test_odd_conversations import HIDES_THE_END
from tests.data.test_text_classification import make


@pytest.mark.parametrize("answer", ["ok x", "fine 🙂", "é", "ends in 猫", "ß", "is 語", "two ß語🙂 ß"])
def test_every_token_of_an_answer_has_loss(answer: str, tmp_path: Path) -> None:
    turns = [TURNS[0], {"role": "assistant", "content": answer}] * 2
    data = load(tmp_path, [{"messages": turns}] * 2, template=HIDES_THE_END)
    assert marked(data).count(f"«{answer}»") == 2
    labels = data.rows["train"][[0]]["labels"][0]
    assert labels[labels != -100].tolist() == data.tokenizer(answer, add_special_tokens=False)["input_ids"] * 2


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


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    found = tokenizer("bytes", tmp_path_factory.mktemp("tokenizer"))
    found.add_tokens([LONGER], special_tokens=True)
    return found


LONGER = "[/INST]]"  # begins with another token


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    before=st.sampled_from(["", " ", "\n", "\n\n", ".", " END", "\n-- ", "\n<", "}}"]),
    token=st.sampled_from(["", LONGER, *(token for token in MARKERS if token != "<s>")]),
    after=st.sampled_from(["", " ", "\n", "</s>", "</s>\n", "<|end|>", " </s>", "</", " more"]),
    contents=st.lists(st.sampled_from(["It is 1", "no", "A: x", "«é»"]), min_size=1, max_size=3),
    question=st.sampled_from(["one?", "A: one?"]),
)
def test_an_answer_ends_with_the_first_special_token_after_it(
    before: str, token: str, after: str, contents: list[str], question: str, words: PreTrainedTokenizerFast
) -> None:
    """An end-of-text token right after that one belongs to it; without a token, all that follows is the end."""
    if not token:
        after = after.replace("</s>", "").replace("<|end|>", "")
    whole = before + token + ("</s>" if after.startswith("</s>") else "") if token else before + after
    end = whole.strip() or "</s>"
    source = "{% for m in messages %}{{ 'U: ' + m.content + '\n' if m.role == 'user' else 'A: ' + m.content + tail }}"
    source += "{% endfor %}{{ 'A: ' if add_generation_prompt }}"
    template = ChatTemplate(words, "{% set tail = " + repr(before + token + after) + " %}" + source)
    assert template.end == end
    turns = []
    for content in contents:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": content}]
    found = template.render(turns)
    learned = [found.text[slice(*span)] for span in found.answers]
    shown = whole.rstrip()
    assert learned[:-1] == [content + shown for content in contents[:-1]]
    assert learned[-1] == contents[-1] + (shown or "</s>")
    assert found.text.endswith(learned[-1])
    assert found.text.startswith(template.prompt(turns[:-1]) + contents[-1])


WORD_BY_WORD = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|user|>' + m.content + '<|assistant|>' }}
{%- else -%}{%- for word in m.content.split() -%}{% generation %}{{ word }}{% endgeneration %}{{ '_' }}{%- endfor -%}
{%- endif -%}
{%- endfor -%}"""
WORDS = ["It", "is", "one", "and", "two"]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(answers=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4))
def test_each_answer_has_as_many_parts_as_the_template_has_generation_blocks(
    answers: list[tuple[int, bool]], words: PreTrainedTokenizerFast
) -> None:
    """`last` is where the parts of the last answer with loss begin; answers of weight 0 have none."""
    template, turns = ChatTemplate(words, WORD_BY_WORD), []
    for count, learnt in answers:
        answer = {"role": "assistant", "content": " ".join(WORDS[:count])} | ({} if learnt else {"weight": 0})
        turns += [{"role": "user", "content": "What?"}, answer]
    found = template.render(turns)
    learnt_words = [count for count, learnt in answers if learnt]
    assert [found.text[slice(*span)] for span in found.answers] == [
        word for count in learnt_words for word in WORDS[:count]
    ]
    if learnt_words:
        assert found.last == sum(learnt_words[:-1])
    assert found.text.endswith(WORDS[answers[-1][0] - 1])


@pytest.mark.parametrize("contents", [("It is", ""), ("", "It is"), ("It is one", "", ""), ("a b", "", "a")])
def test_an_answer_without_a_block_is_refused_if_another_has_two(
    contents: tuple[str, ...], words: PreTrainedTokenizerFast
) -> None:
    """There are as many blocks as answers, but not one for each."""
    turns = []
    for content in contents:
        turns += [{"role": "user", "content": "What?"}, {"role": "assistant", "content": content}]
    with pytest.raises(CannotRender, match="some answer is in none"):
        ChatTemplate(words, WORD_BY_WORD).render(turns)


@pytest.mark.parametrize(("answer", "learned"), [("a", "A<|endoftext|>"), ("It is one", None)])
def test_an_answer_without_the_end_that_others_have_is_refused(
    answer: str, learned: str | None, words: PreTrainedTokenizerFast
) -> None:
    """An answer that the template changes is looked for up to its end; a part of a text must not be taken for it."""
    source = "{% for m in messages %}{{ m.content + '>' if m.role == 'user' else m.content | upper + "
    source += "('' if m.content | length > 5 else '<|endoftext|>') }}{% endfor %}"
    template = ChatTemplate(words, source)
    assert template.end == "<|endoftext|>"
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]
    if learned is None:
        with pytest.raises(CannotRender, match="does not show where each answer is"):
            template.render(turns)
    else:
        found = template.render(turns)
        assert [found.text[slice(*span)] for span in found.answers] == [learned]


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [("", "", 0), ("a", "", 0), ("a", "b", 0), ("ab", "ac", 1), ("ab", "abc", 2), ("abc", "ab", 2), ("abc", "abc", 3)],
)
def test_two_texts_have_their_first_characters_in_common(one: str, other: str, length: int) -> None:
    assert _length_in_common(one, other) == length

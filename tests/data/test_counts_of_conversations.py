"""Which conversations are rendered, up to which answer, and the counts of what is left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from litpeft.data.chats import Chats
from litpeft.data.rendered import CannotRender
from litpeft.data.templates import PLAIN, TextTemplate
from litpeft.errors import UserError
from tests.data.test_cache_keys import save_tokenizer

END = "[END]"
COUNTED = ("total_rows", "empty_responses_dropped", "turns_after_last_answer", "answers", "answers_without_text")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TextTemplate:
    name = save_tokenizer(tmp_path_factory.mktemp("words"))
    return TextTemplate(PreTrainedTokenizerFast.from_pretrained(name), PLAIN)


class _Given(Chats):
    """Conversations that are given."""

    def __init__(self, turns: list[list[dict[str, Any]]], template: Any, encoder: bool = False) -> None:
        super().__init__()
        self.given, self._template = turns, (template, "the template plain")
        self.trainer = SimpleNamespace(lightning_module=SimpleNamespace(encoder_decoder=encoder))

    def conversations(self, split: str) -> Any:
        return ((f"row {number}", turns, None) for number, turns in enumerate(self.given, 1))


def rows_of(data: _Given, split: str) -> tuple[list[tuple[str, str, str]], dict[str, int]]:
    """Return text, prompt as shown, and answer of each row, and the counts."""
    counts = dict.fromkeys((*COUNTED, "thoughts_left_out"), 0)
    found = list(data._rendered(split, counts))
    return [(row.rendered.text, row.shown, row.answer) for row in found], counts


TURN = st.tuples(st.sampled_from(["user", "assistant"]), st.sampled_from(["", " ", "one", f"two{END}"]), st.booleans())


@settings(max_examples=120, deadline=None)
@given(drawn=st.lists(st.lists(TURN, min_size=1, max_size=5), min_size=1, max_size=3), encoder=...)
def test_a_row_ends_with_its_last_answer_and_all_that_is_left_out_is_counted(
    drawn: list[list[tuple[str, str, bool]]], encoder: bool, plain: TextTemplate
) -> None:
    given_turns = [
        [{"role": role, "content": text} | ({} if loss else {"weight": 0}) for role, text, loss in turns]
        for turns in drawn
    ]
    rows, counts = rows_of(_Given(given_turns, plain, encoder), "train")
    expected, totals = [], Counter(total_rows=len(drawn))
    for turns in given_turns:
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and "weight" not in turn]
        silent = [place for place in answers if not turns[place]["content"].strip()]
        if len(silent) == len(answers) or (encoder and answers[-1] in silent):
            totals["empty_responses_dropped"] += 1
            continue
        last = answers[-1]
        totals["turns_after_last_answer"] += len(turns) - 1 - last
        totals["answers_without_text"] += len(silent)
        totals["answers"] += 0 if encoder else len(answers)
        text = plain.prompt(turns[:last]) if encoder else plain.render(turns[: last + 1]).text
        before = turns[:last]
        shown = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in before)
        expected.append(
            (text, before[0]["content"] if len(before) == 1 else shown, turns[last]["content"].removesuffix(END))
        )
    assert rows == expected
    assert {name: counts[name] for name in COUNTED} == {name: totals[name] for name in COUNTED}


def test_what_is_predicted_follows_the_last_question(plain: TextTemplate) -> None:
    ask, answer = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
    prompt = plain.prompt([ask])
    rows, counts = rows_of(_Given([[ask], [ask, answer], [ask, answer, ask]], plain), "predict")
    assert rows == [(prompt, "one", ""), (prompt, "one", "two"), (plain.prompt([ask, answer, ask]),
                    "user: one\n\nassistant: two\n\nuser: one", "")]  # fmt: skip
    assert {name: count for name, count in counts.items() if count} == {"total_rows": 3}


def test_a_conversation_that_a_template_refuses_stops_with_its_place(plain: TextTemplate) -> None:
    ask, answer = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
    data = _Given([[ask, answer], [{"role": "tool", "content": "1"}, ask, answer], [ask, answer]], plain)
    with pytest.raises(UserError, match="^row 2: the template has no tool turns; give a data.template that has them"):
        rows_of(data, "train")
    told: list[str] = []
    data.cannot_render = lambda split, place, reason: told.append(place)
    rows, counts = rows_of(data, "train")
    assert (len(rows), counts["answers"], counts["total_rows"], told) == (2, 2, 3, ["row 2"])
    with pytest.raises(CannotRender):
        plain.render(data.given[1])


def test_a_template_that_no_row_has_an_answer_for_is_told(plain: TextTemplate, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data: no row of _Given has a response to train on\.$"):
        _Given([[{"role": "user", "content": "one"}]], plain).tokenise("train")

"""The turns and the tools of a row, and why a row is no conversation; without tokenizer and template."""

from __future__ import annotations

import json
from typing import Any

import pytest

from litpeft.data.chats import _shown, _thoughts_left_out
from litpeft.data.messages import Columns, Unusable, conversation, find_columns

ASK, ANSWER = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "yes"}
CALL = {"name": "add", "arguments": {"a": 1}}
PAIRS = "^column 'history' must hold pairs of a question and an answer$"
NO_CALL = "^turn 2 calls a tool, but not as JSON with a name and arguments$"


def read(row: dict[str, Any], answered: bool = True, **given: str) -> tuple[list[dict[str, Any]], Any]:
    columns = find_columns(row, given, answered)
    assert columns is not None
    return conversation(row, columns)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "why?", "response": "yes", "history": ["ab"]}, PAIRS),
        ({"prompt": "why?", "response": "yes", "history": [["a", "b", "c"]]}, PAIRS),
        ({"prompt": "why?", "response": "yes", "history": [["a", "b"], ["c"]]}, PAIRS),
        ({"prompt": "why?", "response": "yes", "history": [["a", None]]}, PAIRS),
        ({"prompt": "why?", "response": "yes", "history": [{"a": "b", "c": "d"}]}, PAIRS),
        ({"prompt": "why?", "response": "yes", "history": 3}, "^column 'history' holds int, not a list$"),
        ({"prompt": "why?", "response": "yes", "history": "[["}, "^column 'history' holds text that is no JSON list$"),
        ({"prompt": 3, "response": "yes"}, "^column 'prompt' holds int, not text$"),
        ({"prompt": "why?", "response": "yes", "input": 3}, "^column 'input' holds int, not text$"),
        ({"prompt": "why?", "response": "yes", "system": 3}, "^column 'system' holds int, not text$"),
        ({"prompt": "why?", "response": "\ud800"}, "^an escape such as "),
        ({"messages": [], "system": "Be short."}, "^column 'messages' has no question$"),
        ({"messages": [ASK, "yes"]}, "^turn 2 of column 'messages' is str, not an object with a role$"),
        ({"messages": [ASK, ANSWER | {"content": 3}]}, "^turn 2 holds int, not text$"),
        (
            {"messages": [ASK, ANSWER | {"content": [{"text": "a"}, {"type": "image"}]}]},
            "part of type image, not text$",
        ),
        ({"messages": [ASK, ANSWER | {"content": [{"text": 3}]}]}, r"^turn 2 holds a part of type \?, not text$"),
        ({"messages": [ASK, ANSWER | {"content": [3]}]}, "^turn 2 holds a part of type int, not text$"),
        ({"messages": [ASK, ANSWER | {"role": None}]}, "^turn 2 has the role None; known roles: user, human, "),
        ({"messages": [ASK, ANSWER | {"weight": 2}]}, "^turn 2 has the weight 2; known weights: 0 "),
        ({"messages": [ASK, ANSWER | {"weight": -1}]}, "^turn 2 has the weight -1; known weights: 0 "),
        (
            {"messages": [ASK, ANSWER, {"role": "developer", "content": "x"}]},
            "^a system turn stands after the first turn$",
        ),
        ({"messages": [ASK, ANSWER | {"tool_calls": [{"function": {"name": 3}}]}]}, NO_CALL),
        ({"messages": [ASK, ANSWER | {"tool_calls": [{"function": {"arguments": {}}}]}]}, NO_CALL),
        ({"messages": [ASK, ANSWER | {"tool_calls": ["add"]}]}, NO_CALL),
        ({"messages": [ASK, ANSWER | {"tool_calls": [CALL | {"arguments": "{"}]}]}, NO_CALL),
        ({"messages": [ASK, ANSWER], "tools": "{}"}, "^column 'tools' holds dict, not a list$"),
        ({"messages": [ASK, ANSWER], "tools": ["add"]}, "^column 'tools' must hold a list of tools$"),
        (
            {"messages": [ASK, ANSWER], "tools": [CALL, {"function": "add"}]},
            "^column 'tools' must hold a list of tools$",
        ),
    ],
)
def test_why_a_row_is_no_conversation_is_told(row: dict[str, Any], said: str) -> None:
    with pytest.raises(Unusable, match=said):
        read(row)


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"messages": [ASK, ANSWER]}, ["user", "assistant"]),
        ({"messages": [ASK, ANSWER], "system": "x"}, ["system", "user", "assistant"]),
        ({"messages": [ASK, ANSWER], "system": " "}, ["user", "assistant"]),
        ({"messages": [{"role": "system", "content": "y"}, ASK], "system": "x"}, ["system", "user"]),
        ({"messages": json.dumps([ASK, ANSWER])}, ["user", "assistant"]),
        ({"messages": (ASK, ANSWER)}, ["user", "assistant"]),
        ({"prompt": "why?", "response": "yes", "history": [["a", "b"], ("c", "d")]}, ["user", "assistant"] * 3),
        ({"prompt": "why?", "response": "yes", "history": "[]"}, ["user", "assistant"]),
        ({"prompt": "why?", "response": "yes", "history": ""}, ["user", "assistant"]),
        ({"prompt": "why?", "response": "yes", "history": None}, ["user", "assistant"]),
        ({"prompt": "why?", "response": " "}, ["user"]),
        ({"prompt": [ASK, ANSWER, ASK], "response": [ANSWER]}, ["user", "assistant", "user", "assistant"]),
    ],
)
def test_the_roles_of_the_turns_of_a_row(row: dict[str, Any], roles: list[str]) -> None:
    turns, tools = read(row)
    assert [turn["role"] for turn in turns] == roles
    assert tools is None


def test_an_input_follows_the_question_after_an_empty_line() -> None:
    for given, content in (("one", "why?\n\none"), ("", "why?"), (None, "why?")):
        turns, _ = read({"instruction": "why?", "input": given, "output": "yes"})
        assert turns[0] == {"role": "user", "content": content, "instruction": "why?", "input": given or ""}
    assert read({"instruction": "why?", "words": "one", "output": "yes"}, input="words")[0][0]["content"].endswith(
        "one"
    )


@pytest.mark.parametrize(
    ("mark", "kept"),
    [
        ({}, {}),
        ({"weight": 1}, {}),
        ({"train": True}, {}),
        ({"weight": 0}, {"weight": 0}),
        ({"train": 0}, {"weight": 0}),
    ]
    + [({"train": True, "weight": 0}, {}), ({"train": False, "weight": 1}, {"weight": 0}), ({"weight": None}, {})],
)
def test_a_turn_has_loss_unless_it_says_no(mark: dict[str, Any], kept: dict[str, Any]) -> None:
    assert read({"messages": [ASK, ANSWER | mark]})[0][1] == ANSWER | kept


@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        {"tool_calls": [{"id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"tool_calls": json.dumps([CALL | {"id": "1"}])},
        {"tool_calls": [{"id": "1", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}]},
    ],
)
def test_a_call_of_a_tool_has_one_form(calls: dict[str, Any]) -> None:
    expected = {"type": "function", "id": "1", "function": CALL}
    assert read({"messages": [ASK, ANSWER | calls]})[0][1]["tool_calls"] == [expected]


def test_a_call_may_lack_its_number_and_its_arguments() -> None:
    for given in ({"name": "add"}, {"name": "add", "arguments": None}, {"name": "add", "arguments": "", "id": 3}):
        (call,) = read({"messages": [ASK, {"from": "function_call", "value": json.dumps(given)}]})[0][1]["tool_calls"]
        assert call == {"type": "function", "function": {"name": "add", "arguments": {}}}


@pytest.mark.parametrize("tools", [[CALL], json.dumps([CALL]), [{"type": "function", "function": CALL | {"x": None}}]])
def test_a_tool_has_one_form(tools: Any) -> None:
    assert read({"messages": [ASK, ANSWER], "tools": tools})[1] == [{"type": "function", "function": CALL}]


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_a_row_may_have_no_tools(tools: Any) -> None:
    assert read({"messages": [ASK, ANSWER], "tools": tools})[1] is None


MORE = {"system": "system", "tools": "tools"}
ASKED = {"input": "input", "history": "history"} | MORE


@pytest.mark.parametrize(
    ("available", "given", "answered", "found"),
    [
        (["conversations", "prompt", "output"], {}, True, Columns(messages="conversations", **MORE)),
        (["conversation", "messages"], {}, True, Columns(messages="messages", **MORE)),
        (["x", "messages"], {"messages": "x"}, True, Columns(messages="x", **MORE)),
        (["messages", "a", "output"], {"prompt": "a"}, True, Columns(prompt="a", response="output", **ASKED)),
        (["messages", "prompt", "b"], {"response": "b"}, True, Columns(prompt="prompt", response="b", **ASKED)),
        (["query", "question", "answer"], {}, True, Columns(prompt="question", response="answer", **ASKED)),
        (["prompt", "response"], {"system": "s", "tools": "t"}, True,
         Columns(prompt="prompt", response="response", **ASKED | {"system": "s", "tools": "t"})),
        (["prompt"], {}, False, Columns(prompt="prompt", **ASKED)),
        (["prompt"], {}, True, None),
        (["response"], {}, True, None),
        (["response"], {}, False, None),
        ([], {}, False, None),
    ],
)  # fmt: skip
def test_columns_have_usual_names_unless_options_name_others(
    available: list[str], given: dict[str, str], answered: bool, found: Columns | None
) -> None:
    assert find_columns(available, given, answered) == found


def test_a_single_question_is_shown_as_it_is_and_several_turns_with_their_roles() -> None:
    assert _shown([ASK]) == "why?"
    assert _shown([ASK, ANSWER, ASK]) == "user: why?\n\nassistant: yes\n\nuser: why?"
    assert _shown([]) == ""


@pytest.mark.parametrize(
    ("turn", "text", "lost"),
    [
        ({"reasoning_content": "hmm"}, "yes", 1),
        ({"thinking": "hmm"}, "yes", 1),
        ({"thinking": "hmm"}, "hmm yes", 0),
        ({"thinking": " hmm\n"}, "hmm yes", 0),
        ({"thinking": " "}, "yes", 0),
        ({"thinking": ["hmm"]}, "yes", 0),
        ({"content": "<think>\nhmm\n</think>yes<think>so</think>"}, "yes", 2),
        ({"content": "<think>\nhmm\n</think>yes<think>so</think>"}, "so yes", 1),
        ({"content": "<think></think>yes"}, "yes", 0),
        ({"content": "<think>hmm</think>", "role": "user"}, "yes", 0),
        ({"content": "<think>hmm</think>", "thinking": "well"}, "yes", 2),
    ],
)
def test_thoughts_that_a_text_lacks_are_counted(turn: dict[str, Any], text: str, lost: int) -> None:
    assert _thoughts_left_out([ASK, ANSWER | turn], text) == lost

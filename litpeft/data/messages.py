"""Rows of tables as conversations: which columns hold them, and their turns in one form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from litpeft.data.rendered import Message
from litpeft.runs.record_schema import is_utf8

ROLES = {
    **{"user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant"},
    **{"function_call": "assistant", "system": "system", "developer": "system"},
    **{"tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool"},
}
LISTS = ("messages", "conversations", "conversation")  # columns with a list of turns
PROMPTS = ("instruction", "prompt", "question", "query")  # columns with a question, if there is no list
RESPONSES = ("output", "completion", "response", "answer")


class Unusable(Exception):
    """A row is no conversation; the message says why."""


@dataclass
class Columns:
    """The columns that hold the conversations of a table; None for those that it does not have.

    Attributes:
        messages: a list of turns.
        prompt: a question, or a list of turns.
        input: text that belongs to the question.
        response: the answer, or a list of turns.
        system: the system text.
        history: earlier questions and answers, a list of pairs.
        tools: the tools of a conversation, as JSON text or a list.
    """

    messages: str | None = None
    prompt: str | None = None
    input: str | None = None
    response: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None

    @property
    def names(self) -> list[str]:
        return [name for name in vars(self).values() if name is not None]


def find_columns(available: Iterable[str], given: Mapping[str, str | None], answered: bool) -> Columns | None:
    """Return the columns with conversations: those that are given, and those with usual names.

    Args:
        available: the columns of the table.
        given: attribute of `Columns` -> name of the column; None to look for a usual name.
        answered: whether the rows must have answers.

    Returns:
        The columns, with `input`, `system`, `history` and `tools` even if the table lacks them; None if it has neither
        a list of turns nor questions.
    """
    present = set(available)

    def found(part: str, usual: tuple[str, ...]) -> str | None:
        return given.get(part) or next((name for name in usual if name in present), None)

    more = {part: given.get(part) or part for part in ("system", "history", "tools")}  # later rows may have them
    asked = given.get("prompt") or given.get("response")
    if (messages := found("messages", LISTS)) and not asked:
        more.pop("history", None)
        return Columns(messages=messages, **more)
    prompt, response = found("prompt", PROMPTS), found("response", RESPONSES)
    if prompt is None or (answered and response is None):
        return None
    return Columns(prompt=prompt, input=given.get("input") or "input", response=response, **more)


def conversation(row: Mapping[str, Any], columns: Columns) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Return the turns of a row and its tools; the last turn may be a question.

    Raises:
        Unusable: the row is no conversation.
    """
    if columns.messages:
        turns = _turns(row.get(columns.messages), columns.messages)
    else:
        turns = _question_and_answer(row, columns)
    system = _text(row.get(columns.system), columns.system) if columns.system else ""
    if system.strip() and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, {"role": "system", "content": system})
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise Unusable("a system turn stands after the first turn")
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in turns):
        where = columns.messages or columns.prompt
        raise Unusable(
            f"column {where!r} has no question" if columns.messages else f"the question in column {where!r} is empty"
        )
    return turns, _tools(row.get(columns.tools), columns.tools) if columns.tools else None


def _question_and_answer(row: Mapping[str, Any], columns: Columns) -> list[Message]:
    turns: list[Message] = []
    history = row.get(columns.history) if columns.history else None
    history = _parsed(history, columns.history) if history else []
    for pair in history:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Unusable(f"column {columns.history!r} must hold pairs of a question and an answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    prompt, response = row.get(columns.prompt), row.get(columns.response) if columns.response else None
    if isinstance(prompt, list):
        turns += _turns(prompt, columns.prompt)
    else:
        question = _text(prompt, columns.prompt)
        given = _text(row.get(columns.input), columns.input) if columns.input else ""
        content = f"{question}\n\n{given}" if given else question
        if not question.strip():
            raise Unusable(f"the question in column {columns.prompt!r} is empty")
        turns.append({"role": "user", "content": content, "instruction": question, "input": given})
    if isinstance(response, list):
        turns += _turns(response, columns.response)
    elif (answer := _text(response, columns.response)).strip():
        turns.append({"role": "assistant", "content": answer})
    return turns


def _turns(value: Any, column: str | None) -> list[Message]:
    value = _parsed(value, column)
    turns = []
    for number, given in enumerate(value, 1):
        if not isinstance(given, Mapping):
            raise Unusable(f"turn {number} of column {column!r} is {type(given).__name__}, not an object with a role")
        turn = {name: item for name, item in given.items() if item is not None}
        name = turn.pop("from", None) or turn.pop("role", None)
        role = ROLES.get(str(name).lower())
        if role is None:
            raise Unusable(f"turn {number} has the role {name!r}; known roles: {', '.join(ROLES)}")
        content = _content(turn.pop("value", None) or turn.pop("content", None) or turn.pop("refusal", None), number)
        if turn.get("train", turn.get("weight", 1)) not in (0, 1):
            raise Unusable(f"turn {number} has the weight {turn.get('weight')}; known weights: 0 (no loss) and 1")
        weight = {} if turn.get("train", turn.get("weight", 1)) else {"weight": 0}
        calls = turn.pop("function_call", None) or turn.pop("tool_calls", None)
        kept = ("tool_call_id", "name", "reasoning_content", "thinking")
        turn = {"role": role, "content": content, **weight} | {key: turn[key] for key in kept if key in turn}
        if name == "function_call":
            turn |= {"content": "", "tool_calls": _calls(content, number)}
        elif calls:
            turn["tool_calls"] = _calls(calls, number)
        turns.append(turn)
    return turns


def _content(value: Any, number: int) -> str:
    """Return the text of a turn; a list of parts is joined."""
    if isinstance(value, list):
        if other := [part for part in value if not (isinstance(part, Mapping) and isinstance(part.get("text"), str))]:
            kind = other[0].get("type", "?") if isinstance(other[0], Mapping) else type(other[0]).__name__
            raise Unusable(f"turn {number} holds a part of type {kind}, not text")
        value = "".join(part["text"] for part in value)
    return _text(value, f"turn {number}")


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Return tool calls with their arguments as objects, as chat templates expect them."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
        calls = calls if isinstance(calls, list) else [calls]
        found = []
        for call in calls:
            function = call.get("function", call)
            given = function.get("arguments") or {}
            arguments = json.loads(given) if isinstance(given, str) else _without_nulls(given)
            if not isinstance(function["name"], str):
                raise ValueError
            number_of_call = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
            called = {"name": function["name"], "arguments": arguments}
            found.append({"type": "function", **number_of_call, "function": called})
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise Unusable(f"turn {number} calls a tool, but not as JSON with a name and arguments") from error
    return found


def _tools(value: Any, column: str) -> list[dict[str, Any]] | None:
    tools = _parsed(value, column) if value not in (None, "") else []
    if not all(isinstance(tool, Mapping) and isinstance(tool.get("function", tool), Mapping) for tool in tools):
        raise Unusable(f"column {column!r} must hold a list of tools")
    whole = [dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools]
    return _without_nulls(whole) or None


def _without_nulls(value: Any) -> Any:
    """Return a value without empty fields: Arrow and Parquet give each object the fields of all other objects."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _parsed(value: Any, column: str | None) -> list[Any]:
    """Return a list that a cell holds, perhaps as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"column {column!r} holds text that is no JSON list") from error
    if not isinstance(value, (list, tuple)):
        raise Unusable(f"column {column!r} holds {type(value).__name__}, not a list")
    return list(value)


def _text(value: Any, column: str | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        where = f"column {column!r}" if column and not column.startswith("turn ") else column
        raise Unusable(f"{where} holds {type(value).__name__}, not text")
    if not is_utf8(value):
        raise Unusable("an escape such as \\ud800 is half a character; remove the escape")
    return value

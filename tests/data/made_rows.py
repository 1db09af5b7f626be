"""Made-up rows, labels and files, right and wrong, and what they are read as; `test_approved` compares it."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from litpeft.data.bad_rows import BadRows
from litpeft.data.files import read_rows
from litpeft.data.labels import class_numbers, label_text
from litpeft.data.messages import Unusable, conversation, find_columns
from litpeft.errors import UserError

NAMES = ("messages", "prompt", "input", "response", "system", "history", "tools")


def outcome(make: Callable[[], Any]) -> str:
    """Return what a function returns as JSON, or its error."""
    try:
        return json.dumps(make(), ensure_ascii=False, default=str)
    except (UserError, Unusable) as error:
        return f"{type(error).__name__}: {error}"


def turns() -> list[str]:
    """Show what rows are as conversations, or why they are none."""
    call = {"name": "add", "arguments": {"a": 1, "b": None}}
    answer = {"role": "assistant", "content": "yes"}
    ask = {"role": "user", "content": "why?"}
    rows: list[dict[str, Any]] = [
        {"messages": [ask, answer]},
        {"messages": json.dumps([ask, answer]), "system": "Be short.", "tools": json.dumps([call])},
        {"messages": [{"role": "system", "content": "x"}, ask, answer], "system": "y", "tools": None},
        {"messages": [ask, {"role": "system", "content": "x"}, answer]},
        {"messages": [answer]},
        {"messages": [ask | {"content": " "}, answer]},
        {"messages": []},
        {"messages": "no list"},
        {"messages": 3},
        {"messages": ["why?"]},
        {"messages": [{"role": "boss", "content": "x"}]},
        {"messages": [{"from": "HUMAN", "value": "why?", "role": "system"}, {"from": "gpt", "value": "yes"}]},
        {"messages": [ask, answer | {"weight": 0}, ask, answer | {"train": True, "weight": 1}]},
        {"messages": [ask, answer | {"weight": 2}]},
        {"messages": [ask, answer | {"train": False, "name": "n", "thinking": "t", "x": 1, "tool_call_id": "i"}]},
        {"messages": [ask, {"role": "assistant", "content": None, "refusal": "no"}]},
        {"messages": [ask, {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}]},
        {"messages": [ask, {"role": "assistant", "content": [{"type": "image"}]}]},
        {"messages": [ask, {"role": "assistant", "content": ["a"]}]},
        {"messages": [ask, {"role": "assistant", "content": 3}]},
        {"messages": [ask | {"content": "\ud800"}, answer]},
        {"messages": [ask, answer | {"tool_calls": [{"id": "1", "function": call}]}]},
        {"messages": [ask, answer | {"tool_calls": json.dumps(call), "content": ""}]},
        {"messages": [ask, answer | {"function_call": call | {"arguments": '{"a": 2}'}}]},
        {"messages": [ask, answer | {"function_call": {"arguments": {}}}]},
        {"messages": [ask, answer | {"function_call": {"name": 3}}]},
        {"messages": [ask, answer | {"function_call": "{"}]},
        {
            "messages": [
                ask,
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": "3"},
            ]
        },
        {"messages": [ask, answer], "tools": "{}"},
        {"messages": [ask, answer], "tools": ["add"]},
        {"messages": [ask, answer], "tools": [{"type": "function", "function": call, "strict": None}]},
        {"prompt": "why?", "response": "yes"},
        {"instruction": "why?", "input": "one", "output": "yes", "history": [["a", "b"]], "system": "s"},
        {"instruction": "why?", "input": "", "output": "", "history": [], "system": " "},
        {"instruction": "", "input": "one", "output": "yes"},
        {"instruction": "why?", "output": 3},
        {"instruction": None, "output": "yes"},
        {"question": "why?", "answer": "yes", "history": [["a"]]},
        {"question": "why?", "answer": "yes", "history": [["a", 1]]},
        {"question": "why?", "answer": "yes", "history": '[["a", "b"]]'},
        {"query": [ask], "completion": [answer]},
        {"prompt": [ask, answer, ask], "completion": "yes"},
        {"prompt": "why?"},
        {"text": "why?", "label": 1},
    ]
    nothing: dict[str, str | None] = dict.fromkeys(NAMES)
    lines = []
    for given, answered in ((nothing, True), (nothing, False), (nothing | {"prompt": "messages", "tools": "x"}, False)):
        for row in rows:
            found = find_columns(row, given, answered)
            lines.append(f"{json.dumps(row)} -> {None if found is None else found.names}")
            if found is not None:
                lines.append(f"    {outcome(lambda row=row, found=found: conversation(row, found))}")
    return lines


def labels() -> list[str]:
    """Show what labels are as classes, or why they are none."""
    few: list[tuple[list[Any], list[str] | None, int]] = [
        (["b", "a", "b "], None, 0),
        ([1, 0, 2], None, 0),
        ([1, 0, 2], None, 1),
        ([1, 3, 2], None, 1),
        ([1, 3, 2], None, 0),
        ([5, 6, 7], None, 0),
        ([0, 1, 3], None, 0),
        ([2, 3, 5], None, 2),
        (["-1", "1", 1.0], None, 0),
        (["-1", "1", "2"], None, 0),
        ([True, False, True], None, 0),
        (["1.0", "+2.", "0.00"], None, 0),
        (["a", "a"], None, 0),
        (["a", None, "b"], None, 0),
        (["a", "nan", "b"], None, 0),
        (["a", "NaN", "b"], ["a", "NaN", "b"], 0),
        (["a", ["b"], {"c": 1}, "N/A"], None, 0),
        (["a", "c"], ["a", "b"], 0),
        (["1", "a", "0"], ["a", "1"], 0),
        (["1", "a", "2"], ["a", "1"], 1),
        (["2", "3", "-1"], ["a", "b"], 0),
        (["1", "2", "3", "0"], ["a", "b"], 1),
        ([f"n{n}" for n in range(20)], None, 0),
        ([f"n{n}" for n in range(21)], None, 0),
        ([f"n{n}" for n in range(21)] * 2, None, 0),
        ([f"n{n % 22}" for n in range(44)], None, 0),
        ([f"n{n % 22}" for n in range(43)], None, 0),
    ]
    lines = []
    for given, names, offset in few:
        for skip in (False, True):
            places = [f"train.csv line {n}" for n in range(2, len(given) + 2)]
            bad = BadRows(skip, may_skip=offset == 0)

            def classed(given: Any = given, names: Any = names, places: Any = places, offset: int = offset) -> Any:
                found = class_numbers(given, places, names, offset, bad)  # noqa: B023
                bad.check(len(given))  # noqa: B023
                return found, bad.reasons  # noqa: B023

            lines.append(f"{given} {names} {offset} {skip} -> {outcome(classed)}")
    odd = (1, 1.0, 1.5, True, None, float("nan"), " a ", "01", "1.0", "-3.00", "1.5", "1e3", "+4", "")
    return lines + [f"{label!r} is {label_text(label)!r}" for label in odd]


FILES: dict[str, bytes] = {
    "a.tsv": b'text\tlabel\nthe "cat\t1\n\nsat\t2\n',
    "quoted.csv": b'text,label\n"a, ""b""\nc",1\nd,2\n',
    "open.csv": b'text,label\na,1\n"b,2\nc,3\n',
    "ragged.csv": b"text,label\na,1,2\n",
    "twice.csv": b"text,text,label\na,b,1\n",
    "none.csv": b"text,label\n",
    "empty.csv": b"",
    "other.csv": b"words,label\na,1\n",
    "semicolon.csv": b"text;label\na,b;1\n",
    "bom.csv": b"\xef\xbb\xbftext,label\na,1\n",
    "latin.csv": "text,label\nb,0\né,1\n".encode("latin-1"),
    "windows.csv": "text,label\n\u201ca\u201d,1\n".encode("cp1252"),
    "sixteen.csv": "text,label\na,1\n".encode("utf-16"),
    "a.jsonl": b'{"text": "a", "label": 1, "in": {"b": "c"}}\n\n{"text": "b", "label": 2}\n',
    "bad.jsonl": b'{"text": "a", "label": 1}\n{"text"\n',
    "list.jsonl": b"[1]\n",
    "half.jsonl": b'{"text": "\\ud800", "label": 1}\n',
    "list.json": b'[{"text": "a", "label": 1}, {"text": "b", "label": 2}]',
    "inside.json": b'{"version": 1, "data": [{"text": "a", "label": 1}], "none": []}',
    "two.json": b'{"a": [{"text": "a"}], "b": [{"text": "b"}]}',
    "lines.json": b'{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n',
    "number.json": b"3",
    "broken.json": b'[{"text": "a",\n "label": }]',
    "item.json": b'[{"text": "a", "label": 1}, 3]',
    "empty.json": b" ",
    "a.txt": b"one\r\n\n  \ntwo\nthree\n",
    "a.parquet": b"no table",
    "a.xlsx": b"no table",
    "a.csv.gz": gzip.compress(b"text,label\na,1\n"),
    "bad.csv.gz": b"text,label\na,1\n",
}


OTHERS_WORDS = re.compile(r"(not a readable [\w.]+ file).*", re.IGNORECASE)  # what follows is a library's text
READ_OTHERWISE = {  # files that are read with other options too, by number
    *(("a.tsv", 1), ("a.tsv", 2), ("other.csv", 1), ("semicolon.csv", 1), ("semicolon.csv", 2), ("quoted.csv", 2)),
    *(("latin.csv", 3), ("latin.csv", 4), ("latin.csv", 5), ("windows.csv", 3), ("sixteen.csv", 3), ("sixteen.csv", 4)),
    *(("a.txt", 3), ("a.txt", 4), ("a.txt", 6), ("a.txt", 7), ("empty.csv", 1), ("ragged.csv", 1), ("bom.csv", 3)),
}


def files() -> list[str]:
    """Show the rows of files, or what is wrong with a file."""
    lines = []
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    parquet.write_table(pa.table({"text": ["a", "b"], "label": [1, 2]}), "good.parquet")
    with zipfile.ZipFile("one.csv.zip", "w") as one, zipfile.ZipFile("two.csv.zip", "w") as two:
        one.writestr("folder/a.csv", "text,label\na,1\n")
        one.writestr("__MACOSX/a.csv", "x")
        two.writestr("a.csv", "text,label\na,1\n")
        two.writestr("b.csv", "text,label\nb,1\n")
    others: list[dict[str, Any]] = [
        {},
        {"columns": ["text", "label"]},
        {"delimiter": ";"},
        {"encoding": "latin-1"},
        {"encoding": "utf-16"},
        {"encoding": "hex"},
        {"documents": "paragraph"},
        {"documents": "file"},
    ]
    for name in [*FILES, "good.parquet", "one.csv.zip", "two.csv.zip", "nowhere.csv"]:
        required = {"text": "data.text_column"} | ({} if name.endswith("txt") else {"label": "data.label_column"})
        for number, options in enumerate(others):
            if number and (name, number) not in READ_OTHERWISE:
                continue
            found = outcome(lambda name=name, options=options, need=required: list(read_rows(name, need, **options)))
            lines.append(f"{name} {options} -> {OTHERS_WORDS.sub(lambda part: part[1], found)}")
    nested = {"in.b": "data.text_column"}
    return [*lines, f"a.jsonl in.b -> {outcome(lambda: list(read_rows('a.jsonl', nested)))}"]

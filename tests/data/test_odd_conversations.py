"""Conversations in odd forms: weights, calls and thoughts, templates with several ends, and what would be lost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from litpeft.data import Alpaca, Conversations
from litpeft.data.templates import find_template
from litpeft.errors import UserError
from tests.data.test_conversations import CALL, TOOL_ROW, TURNS, WITH_TOOLS, load, marked, tokenizer, write
from tests.data.test_text_classification import make

TWO_ENDS = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|user|>' + m.content }}
{%- else -%}
{%- if m.reasoning_content -%}{{ '<|assistant|>thought ' + m.reasoning_content + '<|end|>' }}{%- endif -%}
{{ '<|assistant|>' + m.content + ('<|im_end|>' if loop.last else '<|end|>') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""
OPENS_A_THOUGHT = """\
{%- for m in messages -%}
{{ '<|user|>' + m.content if m.role == 'user' else '<|assistant|>' + m.content.split('</think>')[-1] + '</s>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|><think>\\n' }}{%- endif -%}"""
OTHER_PROMPT = """\
{%- for m in messages -%}
{{ '<|user|>' + m.content + '<|end|>' if m.role == 'user' else 'said: ' + (m.content | upper) + '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'answer: ' }}{%- endif -%}"""
HIDES_THE_END = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|user|>' + m.content }}
{%- else -%}{{ '<|assistant|>' }}{% generation %}{{ m.content }}{% endgeneration %}{{ '<|end|>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""


def test_each_answer_ends_as_the_template_ends_it_in_its_place(tmp_path: Path) -> None:
    text = marked(load(tmp_path, [{"messages": TURNS}] * 2, template=TWO_ENDS))
    assert text == (
        "<|user|>What is one?<|assistant|>«It is 1.<|end|>»<|user|>And two?<|assistant|>«It is 2.<|im_end|>»"
    )


def test_so_does_each_answer_that_the_template_changes(tmp_path: Path) -> None:
    template = TWO_ENDS.replace("m.content + ('<|im_end|>'", "(m.content | upper) + ('<|im_end|>'")
    text = marked(load(tmp_path, [{"messages": TURNS}] * 2, template=template))
    assert text == (
        "<|user|>What is one?<|assistant|>«IT IS 1.<|end|>»<|user|>And two?<|assistant|>«IT IS 2.<|im_end|>»"
    )


def test_a_thought_before_an_answer_has_loss(tmp_path: Path) -> None:
    row = {"messages": [TURNS[0], TURNS[1] | {"reasoning_content": "hmm"}]}
    text = marked(load(tmp_path, [row] * 2, template=TWO_ENDS))
    assert text == "<|user|>What is one?<|assistant|>«thought hmm<|end|><|assistant|>It is 1.<|im_end|>»"


def test_a_prompt_that_opens_a_thought_does_not_hide_the_answer(tmp_path: Path) -> None:
    row = {"messages": [TURNS[0], {"role": "assistant", "content": "<think>hmm</think>It is 1."}]}
    text = marked(load(tmp_path, [row] * 2, template=OPENS_A_THOUGHT))
    assert text == "<|user|>What is one?<|assistant|>«It is 1.</s>»"


@pytest.mark.parametrize("words", [1, 100])
def test_a_template_whose_prompt_is_not_what_stands_before_an_answer_is_refused(words: int, tmp_path: Path) -> None:
    row = {"messages": [TURNS[0] | {"content": "What is one? " * words}, TURNS[1]]}
    with pytest.raises(UserError, match="does not show where each answer is; give one with {% generation %} blocks"):
        load(tmp_path, [row] * 2, template=OTHER_PROMPT)


def test_a_system_text_before_the_only_question_reaches_a_template_without_system_turns(tmp_path: Path) -> None:
    template, _ = find_template("gemma", tokenizer("bytes", tmp_path))
    system = {"role": "system", "content": "Be short."}
    assert template.prompt([system, TURNS[0]]) == template.prompt(
        [{"role": "user", "content": "Be short.\n\nWhat is one?"}]
    )


def test_an_answer_without_an_end_in_the_template_ends_with_its_last_character(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role + ':\\n' + m.content + '\\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    text = marked(load(tmp_path, [{"messages": TURNS}] * 2, template=template))
    assert text == ("user:\nWhat is one?\nassistant:\n«It is 1.»\nuser:\nAnd two?\nassistant:\n«It is 2.</s>»")


def test_an_answer_before_the_only_question_has_loss(tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": [TURNS[1], TURNS[0]]}] * 2, "chatml")
    assert marked(data) == "<|im_start|>assistant\n«It is 1.<|im_end|>»"
    assert next(data.prompts("train", 1))[1:] == ([""], ["It is 1."])


def test_generation_blocks_without_the_end_are_told(tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": TURNS}] * 2, template=HIDES_THE_END)
    assert marked(data).endswith("«It is 2.»")
    assert "leave out what ends an answer, so that this is not learnt" in data.describe()["format"]
    inside = HIDES_THE_END.replace("{% endgeneration %}{{ '<|end|>' }}", "{{ '<|end|>' }}{% endgeneration %}")
    data = load(tmp_path, [{"messages": TURNS}] * 2, template=inside)
    assert marked(data).endswith("«It is 2.<|end|>»")
    assert "leave out" not in data.describe()["format"]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_answers_of_weight_0_have_no_loss(mark: dict[str, Any], tmp_path: Path) -> None:
    row = {"messages": [TURNS[0], TURNS[1] | mark, *TURNS[2:]]}
    for template in ("chatml", "plain"):
        text = marked(load(tmp_path, [row] * 2, template=template))
        assert text.count("«") == 1
        assert "«It is 2." in text
    data = load(tmp_path, [{"messages": [*TURNS[:3], TURNS[3] | mark]}] * 2, "chatml")
    assert marked(data).endswith("assistant\n«It is 1.<|im_end|>»")
    assert data.describe()["tables"]["train"]["turns_after_last_answer"] == 4
    assert next(data.prompts("train", 1))[1:] == (["What is one?"], ["It is 1."])
    with pytest.raises(UserError, match=r"turn 2 has the weight 0.5; known weights: 0 \(no loss\) and 1"):
        load(tmp_path, [{"messages": [TURNS[0], TURNS[1] | {"weight": 0.5}]}])


@pytest.mark.parametrize("call", [{"function_call": CALL}, {"tool_calls": [{"id": "abcdefghi", "function": CALL}]}])
def test_calls_in_the_forms_of_openai_are_read(call: dict[str, Any], tmp_path: Path) -> None:
    row = {"messages": [TURNS[0], {"role": "assistant", "content": None} | call, {"role": "tool", "content": "1"}]}
    row["messages"].append({"role": "assistant", "content": None, "refusal": "I will not."})
    text = marked(load(tmp_path, [row] * 2, template=WITH_TOOLS))
    assert '«\n<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>»' in text
    assert text.endswith("«I will not.<|im_end|>»")


@pytest.mark.parametrize(
    ("part", "without", "message"),
    [
        ("m.tool_calls or []", "[]", "leaves out tools"),
        ("(tools | tojson)", "'add'", "leaves out tools"),
        ("m.content }}", "(m.content if m.role != 'tool' else '') }}", "leaves out what tools return"),
    ],
)
def test_a_template_that_leaves_out_a_part_of_tools_is_refused(
    part: str, without: str, message: str, tmp_path: Path
) -> None:
    assert part in WITH_TOOLS
    with pytest.raises(UserError, match=message):
        load(tmp_path, [TOOL_ROW] * 2, template=WITH_TOOLS.replace(part, without))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [TURNS[0], TURNS[1]], "tools": json.dumps([{"name": "add", "parameters": {}}])},
        {"messages": [TURNS[0], {"role": "tool", "content": "1"}, TURNS[1]]},
        {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [{"function": CALL}]}]},
    ],
    ids=["offered", "answered", "called"],
)
def test_tools_need_a_template_that_has_them(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the template has no tool turns; give a data.template that has them"):
        load(tmp_path, [row] * 2)


def test_a_template_may_refuse_what_a_tool_returns_without_a_call(tmp_path: Path) -> None:
    refuses = "{%- if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls -%}{{ raise_exception('no') }}{%- endif -%}"
    loop = "{%- for m in messages -%}"
    assert loop in WITH_TOOLS
    text = marked(load(tmp_path, [TOOL_ROW] * 2, template=WITH_TOOLS.replace(loop, loop + refuses)))
    assert text == marked(load(tmp_path, [TOOL_ROW] * 2, template=WITH_TOOLS))


def test_what_tools_return_may_be_escaped_and_arguments_may_be_text(tmp_path: Path) -> None:
    row = json.loads(json.dumps(TOOL_ROW))
    row["conversations"][2]["value"] = '{"a": "b"}'
    template = WITH_TOOLS.replace("m.content }}", "(m.content | tojson if m.role == 'tool' else m.content) }}")
    template = template.replace("(call.function | tojson)", "call.function.name + '(' + call.function.arguments + ')'")
    text = marked(load(tmp_path, [row] * 2, template=template))
    assert '<|im_start|>tool\n"{\\"a\\": \\"b\\"}"<|im_end|>' in text
    assert '«\n<call>add({"a": 1})</call><|im_end|>»' in text


def test_parquet_gives_the_rows_of_json(tmp_path: Path) -> None:
    other = {"name": "look", "arguments": {"city": "Rome"}}
    rows = [
        {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}]}
        for call in (CALL, other)
    ]
    plain = load(tmp_path, rows, template=WITH_TOOLS)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    file = str(tmp_path / "rows.parquet")
    options = {"tokenizer": str(tmp_path / "tokenizer"), "max_length": 400, "template": WITH_TOOLS}
    same = make(Conversations, train_file=file, val_file=file, **options)
    assert [marked(same, row) for row in (0, 1)] == [marked(plain, row) for row in (0, 1)]


def test_a_nested_input_is_used_and_a_missing_one_is_told(tmp_path: Path) -> None:
    rows = [{"d": {"q": "What is", "a": "It is 1.", "more": "one?"}}] * 2
    columns = {"prompt_column": "d.q", "response_column": "d.a"}
    data = load(tmp_path, rows, template="plain", input_column="d.more", **columns)
    assert marked(data) == "User:\nWhat is\n\none?\n\nAssistant:\n«It is 1.</s>»"
    with pytest.raises(UserError, match=r"^data\.input_column d.less: no row has this column\.$"):
        load(tmp_path, rows, template="plain", input_column="d.less", **columns)


@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
@pytest.mark.parametrize("part", ["prompt", "response", "system", "input"])
def test_a_column_that_is_named_must_be_there_but_answers_to_predict(part: str, split: str, tmp_path: Path) -> None:
    columns = {f"{name}_column": f"my_{name}" for name in ("prompt", "response", "system", "input")}
    whole_row = dict.fromkeys(columns.values(), "text")
    without = {name: text for name, text in whole_row.items() if name != f"my_{part}"}
    lines = {True: json.dumps(whole_row), False: json.dumps(without)}
    for whole, line in lines.items():
        (tmp_path / f"{whole}.jsonl").write_text(f"{line}\n{line}\n")
    files = {f"{name}_file": str(tmp_path / f"{name != split}.jsonl") for name in ("train", "val", "test", "predict")}
    tokenizer("bytes", tmp_path / "tokenizer")
    given = {"tokenizer": str(tmp_path / "tokenizer"), "template": "plain"}

    def rows() -> int:
        return len(Conversations(**files, **columns, **given, cache_dir=str(tmp_path / "cache")).table(split)[0])

    if (part, split) == ("response", "predict"):
        assert rows() == 2
    else:
        with pytest.raises(UserError, match=rf"data\.{part}_column"):
            rows()


def test_all_bytes_of_a_last_character_have_loss(tmp_path: Path) -> None:
    template = HIDES_THE_END.replace("<|end|>", "")
    data = load(
        tmp_path, [{"messages": [TURNS[0], {"role": "assistant", "content": "fine 🙂"}]}] * 2, template=template
    )
    assert "«fine 🙂" in marked(data)


@pytest.mark.parametrize("name", ["alpaca", "plain", "none"])
def test_an_exported_text_template_gives_the_prompts_of_training(name: str, tmp_path: Path) -> None:
    ours = tokenizer("bytes", tmp_path)
    template, _ = find_template(name, ours)
    system = {"role": "system", "content": 'Say "no".'}
    ours.chat_template = template.jinja_text()
    for turns in ([TURNS[0]], TURNS[:3], [system, *TURNS[:3]]):
        assert ours.apply_chat_template(turns, tokenize=False) == template.prompt(turns)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("begin", ["first", "last", None])
def test_an_exported_text_template_gives_the_tokens_of_training(adds: bool, begin: str | None, tmp_path: Path) -> None:
    """The tokenizer begins a text in training, if it does at all; a template must do it itself."""
    words = ["[UNK]", "User", ":", "What", "is", "one", "?", "Assistant"]
    words = {"first": ["[BEGIN]", *words], "last": [*words, "[BEGIN]"], None: words}[begin]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds and begin:
        marks = [("[BEGIN]", words.index("[BEGIN]"))]
        backend.post_processor = processors.TemplateProcessing(single="[BEGIN] $A", special_tokens=marks)
    tokens = {"unk_token": "[UNK]", "bos_token": "[BEGIN]" if begin else None}
    ours = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    template, _ = find_template("plain", ours)
    ours.chat_template = template.jinja_text()
    exported = ours.apply_chat_template([TURNS[0]], return_dict=False)
    assert exported == ours(template.prompt([TURNS[0]]))["input_ids"]
    assert (words[exported[0]] == "[BEGIN]") == bool(adds and begin)


def test_one_conversation_in_a_json_file_and_odd_folders(tmp_path: Path) -> None:
    tokenizer("bytes", tmp_path / "tokenizer")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one.json").write_text(json.dumps({"messages": TURNS}))
    options = {"tokenizer": str(tmp_path / "tokenizer"), "template": "plain"}
    file = str(tmp_path / "data" / "one.json")
    data = make(Conversations, train_file=file, val_file=file, **options)
    assert len(data.rows["train"]) == 1
    (tmp_path / "data" / "README.txt").write_text("about these data")
    with pytest.raises(UserError, match=r"the folder has files of several kinds \(.json, .txt\); give a pattern"):
        make(Conversations, train_file=str(tmp_path / "data"), **options)


def test_rows_to_predict_are_not_offered_to_be_skipped(tmp_path: Path) -> None:
    tokenizer("bytes", tmp_path / "tokenizer")
    good = write(tmp_path / "good.jsonl", [{"instruction": "What is one?", "output": "It is 1."}] * 4)
    bad = write(tmp_path / "bad.jsonl", [{"instruction": "What is one?"}, {"instruction": ""}])
    data = Alpaca(tokenizer=str(tmp_path / "tokenizer"), train_file=good, predict_file=bad, on_bad_row="skip")
    with pytest.raises(UserError, match=r"line 2: .* is empty; mend the row\.$"):
        data.table("predict")


@pytest.mark.parametrize(
    ("given", "unread"),
    [
        ({"prompt_column": "q"}, "messages"),
        ({"response_column": "a"}, "messages"),
        ({"prompt_column": "q", "response_column": "a"}, "messages"),
        ({"messages_column": "turns"}, "history"),
    ],
)
def test_a_named_column_that_is_not_read_need_not_be_there(given: dict[str, str], unread: str, tmp_path: Path) -> None:
    """Questions that are named are read instead of a list of turns, and a list of turns has its history in it."""
    row = {"q": "What is one?", "question": "What is one?", "a": "It is 1.", "answer": "It is 1.", "turns": TURNS[:2]}
    data = load(tmp_path, [row] * 2, template="chatml", **given, **{f"{unread}_column": "nowhere"})
    assert "user\nWhat is one?<|im_end|>" in marked(data)
    assert marked(data).endswith("«It is 1.<|im_end|>»")
    needed = {"messages_column": "turns"} if unread == "messages" else {"prompt_column": "q", "response_column": "a"}
    with pytest.raises(UserError, match="no column 'nowhere'"):
        load(tmp_path, [row] * 2, template="chatml", **needed, system_column="nowhere")


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize(
    ("train_on", "said"), [("assistant", "each answer"), ("last", "the last answer"), ("all", "all tokens")]
)
def test_what_has_loss_is_told(train_on: str, said: str, encoder: bool, tmp_path: Path) -> None:
    tokenizer("bytes", tmp_path)
    data = Conversations(tokenizer=str(tmp_path), train_file="rows.jsonl", template="chatml", train_on=train_on)
    task = SimpleNamespace(encoder_decoder=encoder, model_name=None)
    data.trainer = SimpleNamespace(lightning_module=task, state=SimpleNamespace(fn=None))
    told = data.describe()["format"]
    assert f"; loss on {'the last answer' if encoder else said}; '<|im_end|>' ends an answer" in told
    assert "no system turn" not in told
    assert "this is not learnt" not in told

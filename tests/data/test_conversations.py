"""Conversations: which tokens have loss in the formats of model families, and the tables that people bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from litpeft.__main__ import main
from litpeft.data import Alpaca, Conversations
from litpeft.data.chat_formats import CHAT_FORMATS
from litpeft.data.chat_template import ChatTemplate
from litpeft.data.rendered import CannotRender
from litpeft.data.templates import find_template
from litpeft.errors import UserError
from tests.data.test_text_classification import make

MARKERS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|start_header_id|>", "<|end_header_id|>"]
MARKERS += ["<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
MARKERS += ["<|endoftext|>"]
ENDS = {"phi3": "<|endoftext|>"}  # the end-of-text token, if it is not </s>
SYSTEM = {"role": "system", "content": "Be short."}
TURNS = [
    {"role": "user", "content": "What is one?"},
    {"role": "assistant", "content": "It is 1."},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "It is 2."},
]
# what each format writes for SYSTEM and TURNS, with the parts that have loss between « and »
WRITTEN = {
    "chatml": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat is one?<|im_end|>\n<|im_start|>assistant\n"
    "«It is 1.<|im_end|>»\n<|im_start|>user\nAnd two?<|im_end|>\n<|im_start|>assistant\n«It is 2.<|im_end|>»",
    "llama2": "<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nWhat is one? [/INST]« It is 1. </s>»<s>[INST] And two? [/INST]"
    "« It is 2. </s>»",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nWhat is one?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«It is 1.<|eot_id|>»"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd two?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "«It is 2.<|eot_id|>»",
    "mistral": "<s>[INST] What is one?[/INST]« It is 1.</s>»[INST] Be short.\n\nAnd two?[/INST]« It is 2.</s>»",
    "gemma": "<s><start_of_turn>user\nBe short.\n\nWhat is one?<end_of_turn>\n<start_of_turn>model\n"
    "«It is 1.<end_of_turn>»\n<start_of_turn>user\nAnd two?<end_of_turn>\n<start_of_turn>model\n«It is 2.<end_of_turn>»",
    "phi3": "<|system|>\nBe short.<|end|>\n<|user|>\nWhat is one?<|end|>\n<|assistant|>\n«It is 1.<|end|>»\n<|user|>\n"
    "And two?<|end|>\n<|assistant|>\n«It is 2.<|end|>»",
    "qwen": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat is one?<|im_end|>\n<|im_start|>assistant\n"
    "«It is 1.<|im_end|>»\n<|im_start|>user\nAnd two?<|im_end|>\n<|im_start|>assistant\n«It is 2.<|im_end|>»",
    "zephyr": "<|system|>\nBe short.</s>\n<|user|>\nWhat is one?</s>\n<|assistant|>\n«It is 1.</s>»\n<|user|>\nAnd two?</s>"
    "\n<|assistant|>\n«It is 2.</s>»",
}
SAID = "What is one and two? It is 1. It is 2. Be short. system user assistant model <<SYS>> \n\n. [ ] é 猫 the cat sat"


def tokenizer(kind: str, folder: Path, end: str = "</s>", template: str | None = None) -> PreTrainedTokenizerFast:
    """Save and return a tokenizer of words in bytes (GPT-2, Llama 3) or with the sign for blanks (Llama 2, Mistral)."""
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback()])
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))], initial_alphabet=alphabet
    )
    backend.train_from_iterator([SAID] * 5, trainer)
    backend.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    found = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=end, pad_token="<unk>")
    found.chat_template = template
    found.save_pretrained(folder)
    return found


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def marked(data: Conversations, row: int = 0) -> str:
    """Return a training row as text, with what has loss between « and »."""
    parts = data.rows["train"].marked(row)
    return "".join(f"«{data.tokenizer.decode(ids)}»" if loss else data.tokenizer.decode(ids) for ids, loss in parts)


def load(
    tmp_path: Path, rows: list[Any], name: str | None = None, kind: str = "bytes", **options: Any
) -> Conversations:
    """Return `Conversations` of these rows, with a new tokenizer."""
    tokenizer(kind, tmp_path / "tokenizer", ENDS.get(name or "", "</s>"), CHAT_FORMATS.get(name or ""))
    file = write(tmp_path / "rows.jsonl", rows)
    options = {"max_length": 400} | options
    return make(Conversations, tokenizer=str(tmp_path / "tokenizer"), train_file=file, val_file=file, **options)


@pytest.mark.parametrize("kind", ["bytes", "blanks"])
@pytest.mark.parametrize("name", WRITTEN)
def test_each_answer_with_its_end_has_loss(name: str, kind: str, tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": [SYSTEM, *TURNS]}] * 2, name, kind)
    if kind == "bytes":
        assert marked(data) == WRITTEN[name]
    batch = data.rows["train"][[0]]
    whole = WRITTEN[name].replace("«", "").replace("»", "")
    assert batch["input_ids"][0].tolist() == data.tokenizer(whole, add_special_tokens=False)["input_ids"]
    loss = batch["labels"][0][batch["labels"][0] != -100].tolist()
    assert data.tokenizer.decode(loss).split() == "".join(p.split("»")[0] for p in WRITTEN[name].split("«")[1:]).split()
    ends = {data.tokenizer.convert_tokens_to_ids(data.template.end), data.tokenizer.eos_token_id}
    assert set(data.stops[0]) == ends
    assert sum(token in ends for token in loss) == 2


@pytest.mark.parametrize("name", WRITTEN)
def test_the_prompt_of_the_last_answer_is_what_inference_gives(name: str, tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": [SYSTEM, *TURNS]}] * 2, name)
    batch, texts, answers = next(data.prompts("train", 1))
    turns = [SYSTEM, *TURNS[:-1]]
    if name == "gemma":
        turns = [{"role": "user", "content": "Be short.\n\nWhat is one?"}, *TURNS[1:-1]]
    ids = data.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert batch["input_ids"][0].tolist() == ids
    assert answers == ["It is 2."]
    assert texts == ["system: Be short.\n\nuser: What is one?\n\nassistant: It is 1.\n\nuser: And two?"]


def test_generation_blocks_have_the_loss_that_transformers_gives_them(tmp_path: Path) -> None:
    template = CHAT_FORMATS["chatml"].replace(
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\\n' }}",
    )
    assert "generation" in template
    data = load(tmp_path, [{"messages": TURNS}] * 2, template=template)
    theirs = data.tokenizer.apply_chat_template(
        TURNS, chat_template=template, return_assistant_tokens_mask=True, return_dict=True
    )
    ours = data.rows["train"][[0]]
    length = ours["input_ids"].shape[1]
    assert ours["input_ids"][0].tolist() == theirs["input_ids"][:length]
    assert (ours["labels"][0] != -100).long().tolist() == theirs["assistant_masks"][:length]
    assert sum(theirs["assistant_masks"][length:]) == 0
    assert len(set(theirs["input_ids"][length:])) == 1  # only the line break after the last turn is left out


def test_train_on_chooses_the_tokens_with_loss(tmp_path: Path) -> None:
    rows = [{"messages": TURNS}] * 2
    last = load(tmp_path, rows, "llama3", train_on="last")
    assert marked(last).count("«") == 1
    assert marked(last).endswith("«It is 2.<|eot_id|>»")
    everything = load(tmp_path, rows, "llama3", train_on="all")
    assert marked(everything).startswith("«<s><|start_header_id|>user")
    assert marked(everything).endswith("It is 2.<|eot_id|>»")


SHAREGPT = [
    {"from": {"system": "system", "user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}
    for turn in [SYSTEM, *TURNS]
]
LAYOUTS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [SYSTEM, *TURNS]},
    "JSON in a cell": {"messages": json.dumps([SYSTEM, *TURNS])},
    "ShareGPT": {"conversations": SHAREGPT},
    "ShareGPT with a system column": {"conversations": SHAREGPT[1:], "system": "Be short."},
    "prompt and completion": {"prompt": [SYSTEM, *TURNS[:3]], "completion": TURNS[3:]},
    "Alpaca with system and history": {
        **{"instruction": "And two?", "input": "", "output": "It is 2.", "system": "Be short."},
        "history": [["What is one?", "It is 1."]],
    },
    "parts of text": {
        "messages": [
            turn | {"content": [{"type": "text", "text": turn["content"]}], "name": None} for turn in [SYSTEM, *TURNS]
        ]
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_columns_of_each_kind_of_table_give_the_same_row(layout: str, tmp_path: Path) -> None:
    data = load(tmp_path, [LAYOUTS[layout] | {"id": 3}] * 2, "llama3")
    assert marked(data) == WRITTEN["llama3"]
    facts = data.describe()["tables"]["train"]
    assert set(facts["columns"]) >= set(LAYOUTS[layout]) - {"input"}
    assert facts["unused_columns"] == ["id"]


@pytest.mark.parametrize("empty", ["", " ", None])
def test_earlier_answers_are_not_learned_from_a_row_without_an_answer(empty: str | None, tmp_path: Path) -> None:
    row = LAYOUTS["Alpaca with system and history"]
    data = load(tmp_path, [row | {"output": empty}, row], "llama3")
    assert data.describe()["tables"]["train"]["empty_responses_dropped"] == 1
    assert len(data.rows["train"]) == 1
    assert marked(data) == WRITTEN["llama3"]


def test_a_conversation_may_have_hundreds_of_answers(tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": TURNS * 150}] * 2, "chatml", max_length=30_000)
    assert data.describe()["tables"]["train"]["answers"] == 600
    assert marked(data).count("«It is 1.<|im_end|>»") == marked(data).count("«It is 2.<|im_end|>»") == 150


def test_columns_are_overridden_by_options(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "no"}], "ask": "What is one?", "reply": "It is 1."}
    data = load(tmp_path, [row] * 2, "chatml", prompt_column="ask", response_column="reply")
    assert marked(data) == "<|im_start|>user\nWhat is one?<|im_end|>\n<|im_start|>assistant\n«It is 1.<|im_end|>»"
    assert data.describe()["tables"]["train"]["unused_columns"] == ["messages"]


def test_the_columns_that_a_table_may_have_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, [{"text": "What is one?", "id": 3}] * 2)
    assert str(error.value).endswith(
        "line 1: no column has conversations; it has: text, id; give one of messages, conversations, or instruction with "
        "output (see data.messages_column and data.prompt_column)."
    )


CALL = {"name": "add", "arguments": {"a": 1}}
TOOL_ROW = {
    "conversations": [
        {"from": "human", "value": "What is one?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "It is 1."},
    ],
    "tools": json.dumps([{"name": "add", "description": "adds", "parameters": {}}]),
}
WITH_TOOLS = """\
{%- if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '\\n<call>' + (call.function | tojson) + '</call>' }}{% endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""


def test_tool_calls_have_loss_and_what_tools_return_has_none(tmp_path: Path) -> None:
    data = load(tmp_path, [TOOL_ROW] * 2, template=WITH_TOOLS)
    text = marked(data)
    assert '«\n<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>»' in text
    assert "<|im_start|>tool\n1<|im_end|>\n<|im_start|>assistant\n«It is 1.<|im_end|>»" in text
    assert '"description": "adds"' in text.partition("«")[0]


def test_a_template_without_tools_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"2 of 2 rows cannot be used .*leaves out tools; give a data.template that has"
    ):
        load(tmp_path, [TOOL_ROW] * 2, "zephyr")


THINKING = """\
{%- set ns = namespace(last=0) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in messages -%}
{%- set said = m.content.split('</think>')[-1].lstrip('\\n') -%}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in m.content else '' -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif -%}
{{ said + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""


def test_thinking_is_rendered_as_the_template_does(tmp_path: Path) -> None:
    thoughts = [
        turn | ({"content": f"<think>\nhmm\n</think>\n\n{turn['content']}"} if turn["role"] == "assistant" else {})
        for turn in TURNS
    ]
    text = marked(load(tmp_path, [{"messages": thoughts}] * 2, template=THINKING))
    assert "<|im_start|>assistant\n«It is 1.<|im_end|>»" in text  # the template drops the earlier thought
    assert text.endswith("<|im_start|>assistant\n«<think>\nhmm\n</think>\n\nIt is 2.<|im_end|>»")
    plain = marked(load(tmp_path, [{"messages": TURNS}] * 2, template=THINKING))
    assert plain.endswith("<|im_start|>assistant\n«<think>\n\n</think>\n\nIt is 2.<|im_end|>»")


def test_a_base_model_without_template_gets_a_plain_one_and_hears_of_it(tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": [SYSTEM, *TURNS]}] * 2)
    assert marked(data) == (
        "Be short.\n\nUser:\nWhat is one?\n\nAssistant:\n«It is 1.</s>»\n\nUser:\nAnd two?\n\nAssistant:\n«It is 2.</s>»"
    )
    assert "the template plain (the tokenizer has no chat template)" in data.describe()["format"]
    assert "leave out" not in data.describe()["format"]


def test_a_format_whose_markers_are_no_tokens_stops_at_their_text(tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": TURNS}] * 2, template=CHAT_FORMATS["chatml"].replace("<|im_end|>", "<END>"))
    assert data.stops == ([data.tokenizer.eos_token_id], ["<END>"])
    assert marked(data).endswith("«It is 2.<END>»")


def test_turns_after_the_last_answer_and_rows_without_one_are_counted(tmp_path: Path) -> None:
    rows = [{"messages": [*TURNS, TURNS[0]]}, {"messages": TURNS[:1]}, {"messages": TURNS}]
    data = load(tmp_path, rows, "chatml")
    facts = data.describe()["tables"]["train"]
    assert facts["turns_after_last_answer"] == facts["empty_responses_dropped"] == 1
    assert facts["answers"] == 4  # two in each of the rows that are left
    assert marked(data, 0) == marked(data, 1)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "narrator", "content": "x"}], r"turn 1 has the role 'narrator'; known roles: user, human"),
        ([{"role": "user", "content": [{"type": "image"}]}], "turn 1 holds a part of type image, not text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "audio"}, {"type": "image"}]}],
            "turn 1 holds a part of type audio, not text",
        ),
        ([{"role": "assistant", "content": "x"}], "column 'messages' has no question"),
        ([TURNS[0], TURNS[0]], "turns must alternate"),
        (["hello"], r"turn 1 of column 'messages' is str, not an object with a role"),
        ("hello", "holds text that is no JSON list"),
        ([TURNS[0], {"role": "assistant", "content": 3}], "turn 2 holds int, not text"),
        ([TURNS[0], {"role": "assistant", "content": "\ud800"}], "half a character"),
    ],
)
def test_what_is_no_conversation_is_told_with_its_place(turns: Any, message: str, tmp_path: Path) -> None:
    rows = [{"messages": TURNS}, {"messages": turns}]
    if turns == [TURNS[0], TURNS[0]]:
        rows[1] = {"messages": [*turns, TURNS[1]]}
    with pytest.raises(UserError, match=rf"rows.jsonl line 2: .*{message}"):
        load(tmp_path, rows, "llama2")
    data = load(tmp_path, [*rows, rows[0]], "llama2", on_bad_row="skip")
    assert data.describe()["tables"]["train"]["skipped_rows"] == 1
    assert len(data.rows["train"]) == 2


def test_long_rows_are_cut_or_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"messages": TURNS}, {"messages": TURNS[:2]}]
    cut = load(tmp_path, rows, "llama3", max_length=40)
    assert (cut.truncated["train"], cut.dropped["train"], len(cut.rows["train"])) == (1, 0, 2)
    dropped = load(tmp_path, rows, "llama3", max_length=40, long_rows="drop")
    assert (dropped.truncated["train"], dropped.dropped["train"], len(dropped.rows["train"])) == (0, 1, 1)
    assert marked(dropped) == marked(cut, 1)
    batch, whole = dropped.rows["train"][[0]], cut.rows["train"][[1]]
    assert {name: values.tolist() for name, values in batch.items()} == {
        name: values.tolist() for name, values in whole.items()
    }


def test_another_special_token_gives_another_table(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"messages": TURNS}] * 2)
    keys = []
    for number, end in enumerate(("</s>", "<|im_end|>")):
        tokenizer("bytes", tmp_path / str(number), end)
        data = make(Conversations, tokenizer=str(tmp_path / str(number)), train_file=file, val_file=file)
        keys.append(data.describe()["tables"]["train"]["fingerprint"])
        assert marked(data).endswith(f"It is 2.{end}»")
    assert keys[0] != keys[1]


def test_a_response_is_tokenised_with_its_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    ours = tokenizer("blanks", folder)
    rows = [{"instruction": "What is one?", "input": "", "output": "It is 1."}] * 2
    template = "prompt_input: 'Q {instruction} {input} A:'\nprompt_no_input: 'Q {instruction} A: '\n"
    (tmp_path / "own.yaml").write_text(template)
    file = write(tmp_path / "rows.jsonl", rows)
    data = make(Alpaca, tokenizer=str(folder), train_file=file, val_file=file, template=str(tmp_path / "own.yaml"))
    whole = ours("Q What is one? A: It is 1.</s>")["input_ids"]
    apart = ours("Q What is one? A: ")["input_ids"] + ours("It is 1.")["input_ids"] + [ours.eos_token_id]
    ids = data.rows["train"][[0]]["input_ids"][0].tolist()
    assert ids == whole != apart


def test_impossible_templates_are_refused_in_a_sentence(tmp_path: Path) -> None:
    ours = tokenizer("bytes", tmp_path)
    for template, message in {
        "{{ nothing.at.all }}": "it cannot render a question with its answer: the template says: ",
        "{% for m in messages %}{{ m.role }}{% endfor %}": "leaves out what the assistant says",
        "{{ unclosed": "cannot render",
        "{% if messages %}said{% endif %}": "leaves out what the assistant says",
        "{{ messages | length }}": "leaves out what the assistant says",
    }.items():
        (tmp_path / "template").write_text(template)
        with pytest.raises(UserError, match=rf"^data\.template: .*{message}"):
            find_template(str(tmp_path / "template"), ours)
        with pytest.raises(UserError, match=rf"^data\.template: .*{message}"):
            find_template(template, ours)


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), max_size=20) | st.sampled_from(
    [
        "",
        " a ",
        "<|im_end|>",
        "x<|im_end|>y",
        "<|im_start|>assistant\n",
        "\n\n",
        "It is 1.<|im_end|>\n",
        "[/INST]",
        "</s>",
    ]
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(turns=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS), min_size=1, max_size=5), text=TEXTS)
@pytest.mark.parametrize("name", ["chatml", "gemma", "zephyr"])
def test_all_of_an_answer_and_nothing_else_has_loss(
    name: str, turns: list[tuple[str, str]], text: str, tmp_path: Path
) -> None:
    if not (tmp_path / "tokenizer.json").exists():
        tokenizer("bytes", tmp_path)
    ours = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    template = ChatTemplate(ours, CHAT_FORMATS[name])
    messages = [{"role": role, "content": content} for role, content in [("user", "hi"), *turns, ("assistant", text)]]
    try:
        rendered = template.render(messages)
    except CannotRender:
        return
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert len(rendered.answers) == len(said)
    before = 0
    for (start, end), content in zip(rendered.answers, said, strict=True):
        answer = rendered.text[start:end]
        written = content.removesuffix(template.end).removesuffix("</s>")
        assert start >= before
        assert answer.endswith(template.end)
        assert answer.removesuffix(template.end).strip() == written.strip()
        assert rendered.text[before:start].endswith(template.prompt([{"role": "user", "content": "Q"}])[-9:])
        before = end
    assert before == len(rendered.text)


def test_an_exported_model_has_the_template_and_ends_its_answers_as_in_training(
    byte_llama: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", [{"messages": TURNS}] * 8)
    arguments = ["fit", "--model", "CausalLM", "--model.model_name", byte_llama, "--data", "Conversations"]
    arguments += ["--data.train_file", file, "--data.val_samples", "2", "--data.template", "chatml"]
    arguments += ["--data.tokenizer", str(tmp_path / "own"), "--model.resize_embeddings", "true"]
    own = AutoTokenizer.from_pretrained(byte_llama)
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    own.save_pretrained(tmp_path / "own")
    arguments += ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main([*arguments, "--run_dir", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "merged"]) == 0
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.chat_template == CHAT_FORMATS["chatml"]
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [own.eos_token_id, own.convert_tokens_to_ids("<|im_end|>")]

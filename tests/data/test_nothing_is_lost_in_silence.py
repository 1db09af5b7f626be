"""What templates leave out or divide, and what a cut takes away, is rendered right, counted or refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from litpeft.data import Alpaca, Conversations, TextClassification, files
from litpeft.errors import UserError
from tests.data.test_conversations import THINKING, TURNS, load, marked, tokenizer
from tests.data.test_odd_conversations import OPENS_A_THOUGHT
from tests.data.test_text_classification import make

DEFAULT = """\
{%- for m in messages -%}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""
WITH_TOOLS = """\
{%- if tools -%}{{ '<|system|>' + tools | tojson + '<|end|>' }}{%- endif -%}
{%- for m in messages -%}{{ '<|' + m.role + '|>' + (m.tool_calls | tojson if m.tool_calls else m.content) + '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
TWO_BLOCKS = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|user|>' + m.content }}
{%- else -%}{{ '<|assistant|>' }}{% generation %}{{ m.content }}{% endgeneration %}{{ '!' }}
{%- if not loop.first and m.content != 'It is 1.' %}{% generation %}{{ '<|end|>' }}{% endgeneration %}{% endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""


def test_the_template_for_tools_of_a_tokenizer_renders_rows_with_tools(tmp_path: Path) -> None:
    saved = tokenizer("bytes", tmp_path / "named")
    saved.chat_template = {"default": DEFAULT, "tool_use": WITH_TOOLS}
    saved.save_pretrained(tmp_path / "named")
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}  # fmt: skip
    offered = {"messages": TURNS, "tools": [TOOL]}  # and not called
    rows = [{"messages": TURNS}, offered, {"messages": [TURNS[0], call], "tools": [TOOL]}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"tokenizer": str(tmp_path / "named"), "train_file": str(file), "val_file": str(file), "max_length": 2000}
    data = make(Conversations, **given)
    for index, row in enumerate(rows):
        text = "".join(part for part, _ in data.example("train", index))
        assert text == saved.apply_chat_template(
            row["messages"], row.get("tools"), tokenize=False
        )  # transformers' choice
    assert '"name": "add"' in text
    assert "with tools, its template tool_use" in data.describe()["format"]
    exported = data.tokenizer_to_export()
    exported.save_pretrained(tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").chat_template == saved.chat_template
    assert "tool_use of the tokenizer" in make(Conversations, **given, template="tool_use").describe()["format"]
    saved.chat_template = {"rag": DEFAULT, "tool_use": WITH_TOOLS}
    saved.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="has several chat templates; give rag or tool_use"):
        make(Conversations, **given | {"tokenizer": str(tmp_path / "other")})


def test_an_answer_may_have_several_generation_blocks(tmp_path: Path) -> None:
    data = load(tmp_path, [{"messages": TURNS}] * 2, template=TWO_BLOCKS)
    assert (
        marked(data) == "<|user|>What is one?<|assistant|>«It is 1.»!<|user|>And two?<|assistant|>«It is 2.»!«<|end|>»"
    )
    found = data.tokenizer.apply_chat_template(
        TURNS, chat_template=TWO_BLOCKS, return_dict=True, return_assistant_tokens_mask=True
    )
    batch = data.rows["train"][[0]]
    assert (batch["labels"][0] != -100).int().tolist() == found["assistant_masks"]
    last = marked(load(tmp_path, [{"messages": TURNS}] * 2, template=TWO_BLOCKS, train_on="last"))
    assert last.endswith("<|user|>And two?<|assistant|>«It is 2.»!«<|end|>»")
    assert last.count("«") == 2
    prompts, _, _ = next(data.prompts("val", 1))
    assert data.tokenizer.decode(prompts["input_ids"][0]).endswith("And two?<|assistant|>")


def test_thoughts_that_a_template_drops_are_counted(tmp_path: Path) -> None:
    thoughts = [
        turn | ({"content": f"<think>\nhmm {i}\n</think>\n\n{turn['content']}"} if turn["role"] == "assistant" else {})
        for i, turn in enumerate(TURNS)
    ]
    data = load(tmp_path, [{"messages": thoughts}] * 2, template=THINKING)
    assert data.describe()["tables"]["train"]["thoughts_left_out"] == 2  # the first one of each row
    aside = [TURNS[0], TURNS[1] | {"reasoning_content": "one is 1"}]
    assert load(tmp_path, [{"messages": aside}] * 2, "plain").describe()["tables"]["train"]["thoughts_left_out"] == 2
    assert load(tmp_path, [{"messages": TURNS}] * 2, "chatml").describe()["tables"]["train"]["thoughts_left_out"] == 0


def test_generated_samples_and_predictions_have_the_same_prompts(tmp_path: Path) -> None:
    row = {"messages": [TURNS[0], {"role": "assistant", "content": "<think>hmm</think>It is 1."}]}
    for template in (OPENS_A_THOUGHT, DEFAULT, "chatml"):
        data = load(tmp_path, [row] * 2, template=template)
        ours, _, _ = next(data.prompts("val", 1))
        data.files["predict"] = data.files["val"]
        data.setup("predict")
        theirs = next(iter(data.predict_dataloader()))
        assert torch.equal(ours["input_ids"], theirs["input_ids"][:1])
    data = load(tmp_path, [row] * 2, template=OPENS_A_THOUGHT)
    ours, _, _ = next(data.prompts("val", 1))
    assert data.tokenizer.decode(ours["input_ids"][0]).endswith("<|assistant|><think>\n")


def test_long_prompts_of_an_encoder_keep_their_start_and_their_end_token_and_are_counted(tmp_path: Path) -> None:
    saved = tokenizer("bytes", tmp_path / "t5")
    saved.backend_tokenizer.post_processor = None
    from tokenizers.processors import TemplateProcessing

    end = (saved.eos_token, saved.eos_token_id)
    saved.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[end]
    )
    saved.save_pretrained(tmp_path / "t5")
    file = tmp_path / "a.jsonl"
    rows = [{"instruction": "what is one? " * n, "input": "", "output": "It is 1."} for n in (1, 9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Alpaca(
        tokenizer=str(tmp_path / "t5"), train_file=str(file), val_file=str(file), max_length=20, template="none"
    )
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(encoder_decoder=True), global_rank=0, world_size=1, is_global_zero=True
    )
    data.setup("fit")
    batch = data.rows["train"][[0, 1]]
    expected = data.tokenizer([rows[1]["instruction"]], truncation=True, max_length=20)["input_ids"][0]
    assert batch["input_ids"][1].tolist() == expected
    assert data.describe()["truncated_prompts"] == {"train": 1, "val": 1}


def test_truncated_rows_are_counted_for_each_split(tiny_model: str, tmp_path: Path) -> None:
    lines = [f"{'the film was very ' * (1 + 3 * (i < 6))}good\t{i % 2}" for i in range(20)]
    (tmp_path / "a.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    data = make(
        TextClassification, tokenizer=tiny_model, train_file=str(tmp_path / "a.tsv"), max_length=8, val_samples=8
    )
    counts = data.describe()["truncated_rows"]
    assert counts == {split: sum(int(row) < 6 for row in data.rows[split].rows) for split in ("train", "val")}
    assert sum(counts.values()) == data.table("train")[1]["truncated_rows"] == 6


def test_a_list_of_conversations_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    text_of = files.text_of
    monkeypatch.setattr(files, "text_of", lambda *given: calls.append(given) or text_of(*given))
    tokenizer("bytes", tmp_path / "words")
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"messages": TURNS[:2] * (2 if name == "val" else 1)}] * 2))
    given = {f"{name}_file": str(tmp_path / f"{name}.json") for name in ("train", "val")}
    make(Conversations, tokenizer=str(tmp_path / "words"), template="chatml", **given)
    assert len(calls) == 2


def test_a_csv_without_a_header_may_hold_questions_and_answers(tmp_path: Path) -> None:
    tokenizer("bytes", tmp_path / "words")
    (tmp_path / "a.csv").write_text("What is one?,It is 1.\nAnd two?,It is 2.\n")
    file = str(tmp_path / "a.csv")
    data = make(Conversations, tokenizer=str(tmp_path / "words"), template="none", train_file=file, val_file=file,
                columns=["prompt", "response"])  # fmt: skip
    assert [marked_row(data, index) for index in (0, 1)] == ["What is one?«It is 1.</s>»", "And two?«It is 2.</s>»"]


def marked_row(data: Conversations, index: int) -> str:
    return "".join(f"«{text}»" if has_loss else text for text, has_loss in data.example("train", index))

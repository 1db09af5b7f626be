"""Raw text: documents, blocks, perplexity, and complete runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from litpeft.__main__ import main
from litpeft.data import Text
from litpeft.data.files import read_rows
from litpeft.errors import UserError
from litpeft.runs.record import read_record
from tests.data.test_conversations import tokenizer
from tests.data.test_text_classification import make

DOCUMENTS = ["the cat sat. " * 9, "What is one and two?", "It is 1.\n\nIt is 2."]


def load(tmp_path: Path, **options: object) -> Text:
    tokenizer("bytes", tmp_path / "tokenizer")
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS))
    return make(
        Text, **{"tokenizer": str(tmp_path / "tokenizer"), "train_file": str(file), "val_file": str(file)} | options
    )


@pytest.mark.parametrize("blocks_of_first", [None, 1, 2, "most"])  # of the first document, the last of which is full
def test_each_token_of_a_document_is_predicted_once(blocks_of_first: int | str | None, tmp_path: Path) -> None:
    documents = load(tmp_path, max_length=16).tokenizer([text + "</s>" for text in DOCUMENTS])["input_ids"]
    predictions = len(documents[0]) - 1
    assert predictions % 2 == 0
    count = predictions if blocks_of_first == "most" else blocks_of_first  # a token and the next one
    max_length = predictions // count + 1 if count else 16
    data = load(tmp_path, max_length=max_length, packing=False)
    blocks = []
    for batch in data.val_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            assert ids[mask.bool()].tolist() == labels[mask.bool()].tolist()
            blocks.append(ids[mask.bool()].tolist())
    predicted = sorted(token for block in blocks for token in block[1:])
    assert predicted == sorted(token for ids in documents for token in ids[1:])
    assert max(map(len, blocks)) == max_length
    assert not data.dropped["val"]  # no block of a single token, which predicts nothing
    assert data.describe()["tables"]["val"]["documents"] == 3


def test_short_documents_are_kept_to_be_shown_and_one_end_follows_each(tmp_path: Path) -> None:
    tokenizer("bytes", tmp_path / "tokenizer")
    rows = [{"text": text, "more": 1} for text in ("the cat</s>", "the cat sat. " * 9, "", "It is 1.", None)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = str(tmp_path / "a.jsonl")
    options = {"train_file": file, "val_file": file, "max_length": 16, "on_bad_row": "skip", "packing": False}
    data = make(Text, tokenizer=str(tmp_path / "tokenizer"), **options)
    table, facts = data.table("train")
    end = data.tokenizer.eos_token_id
    documents = [
        data.tokenizer(text)["input_ids"] for text in ("the cat</s>", "the cat sat. " * 9 + "</s>", "It is 1.</s>")
    ]
    lengths = [len(range(0, len(ids) - 1, 15)) for ids in documents]
    assert lengths[0] == lengths[2] == 1 < lengths[1]
    assert table["text"][:] == ["the cat</s>", *[""] * lengths[1], "It is 1."]
    assert set(table["answer"][:]) == {""}
    assert [ids.count(end) for ids in table["ids"]] == [1, *[0] * (lengths[1] - 1), 1, 1]
    assert (facts["documents"], facts["skipped_rows"], facts["total_rows"]) == (3, 2, len(table))
    assert facts["unused_columns"] == ["more"]
    assert data.stops == ([end], [])


def test_a_document_of_one_token_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a tokenizer that has no token for the end: it predicts nothing."""
    saved = tokenizer("bytes", tmp_path / "tokenizer")
    saved.eos_token = None
    saved.save_pretrained(tmp_path / "tokenizer")
    rows = [{"text": text} for text in ("c", "the cat", "t")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = str(tmp_path / "a.jsonl")
    data = make(Text, tokenizer=str(tmp_path / "tokenizer"), train_file=file, val_file=file, packing=False)
    assert [len(ids) for ids in data.table("val")[0]["ids"]][::2] == [1, 1]
    assert data.dropped["val"] == 2


@pytest.mark.parametrize("max_length", [1, 2])
def test_a_block_has_at_least_two_tokens(max_length: int, tmp_path: Path) -> None:
    if max_length == 1:
        with pytest.raises(UserError, match=r"^data.max_length must be at least 2: one token predicts the next one\.$"):
            load(tmp_path, max_length=max_length)
    else:
        assert {len(ids) for ids in load(tmp_path, max_length=max_length).table("train")[0]["ids"]} == {2}


def test_a_prompt_of_raw_text_is_the_text_alone(tmp_path: Path) -> None:
    data = load(tmp_path, predict_file=str(tmp_path / "a.jsonl"), max_length=200)
    data.setup("predict")
    (batch, texts, answers), *more = data.prompts("predict", 2)
    assert (texts, answers, more) == (DOCUMENTS[:2], ["", ""], [])
    for ids, mask, text in zip(batch["input_ids"], batch["attention_mask"], texts, strict=True):
        assert data.tokenizer.decode(ids[mask.bool()]) == text


@pytest.mark.parametrize("stages", [("test", "predict"), ("predict", "test")])
def test_test_rows_are_whole_prompts_in_predict_and_blocks_in_test_in_either_order(
    stages: tuple[str, str], tmp_path: Path
) -> None:
    """Without a file to predict, both read the test rows; the table of one is of no use for the other."""
    found = {}
    for stage in stages:
        data = load(tmp_path, test_file=str(tmp_path / "a.jsonl"), max_length=16, cache_dir=str(tmp_path / "cache"))
        data.setup(stage)
        found[stage] = {
            tuple(row[row > 0].tolist())
            for batch in getattr(data, f"{stage}_dataloader")()
            for row in batch["input_ids"]
        }
    whole = data.tokenizer(DOCUMENTS)["input_ids"]
    assert found["predict"] == {tuple(ids[-16:]) for ids in whole}
    assert len(found["test"]) > len(found["predict"])


def test_training_rows_are_packed_and_validation_rows_are_not(tmp_path: Path) -> None:
    data = load(tmp_path, max_length=32)
    batch = next(iter(data.train_dataloader()))
    assert batch["position_ids"].shape == batch["input_ids"].shape
    assert int(batch["samples"]) > len(batch["input_ids"])
    assert "position_ids" not in next(iter(data.val_dataloader()))
    assert data.describe()["packed_rows"] == {"train": len(data.rows["train"])}
    assert "packed_rows" not in load(tmp_path, max_length=32, packing=False).describe()


def test_the_place_of_a_paragraph_is_its_first_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"the cat\nsat\n\n \nIt is 1.\r\n\r\nend")
    found = list(read_rows(file, {}, documents="paragraph"))
    assert [place for place, _ in found] == [f"{file} line {number}" for number in (1, 5, 7)]
    assert [row["text"] for _, row in found] == ["the cat\nsat", "It is 1.", "end"]


@pytest.mark.parametrize(("documents", "rows"), [("file", 1), ("paragraph", 2), ("line", 3)])
def test_a_text_file_holds_documents_paragraphs_or_lines(documents: str, rows: int, tmp_path: Path) -> None:
    tokenizer("bytes", tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text("the cat\nsat\n\n \nIt is 1.\n")
    file = str(tmp_path / "a.txt")
    data = make(
        Text, tokenizer=str(tmp_path / "tokenizer"), train_file=file, val_file=file, documents=documents, packing=False
    )
    assert len(data.rows["train"]) == rows
    assert data.example("train")[0][0].startswith("the cat" if documents == "line" else "the cat\nsat")


def test_a_run_has_the_perplexity_that_transformers_gives(tiny_llama: str, tmp_path: Path) -> None:
    words = ["say", "good", "bad", "fine", "dull"]
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, 12)) for _ in range(24)]
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    arguments = [
        "fit",
        "--model",
        "CausalLM",
        "--model.model_name",
        tiny_llama,
        "--model.dtype",
        "fp32",
        "--data",
        "Text",
    ]
    arguments += [f"--data.{name}_file={tmp_path / name}.txt" for name in ("train", "val")]
    arguments += ["--data.documents", "line", "--data.max_length", "48", "--data.batch_size", "2"]
    arguments += ["--trainer.max_steps", "3", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    run = tmp_path / "run"
    assert main([*arguments, "--model.adapter", "LoRA", "--run_dir", str(run)]) == 0
    record = read_record(run)
    assert main(["export", str(run), str(tmp_path / "merged"), "--format", "merged", "--dtype", "fp32"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").float()
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(tiny_llama)
    total, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([own(text)["input_ids"]])  # this tokenizer adds the end-of-text token itself
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert record["val_loss"] == pytest.approx(total / tokens, rel=1e-4)
    assert record["other_metrics"]["val_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_empty_documents_and_wrong_models_are_told(
    tiny_llama: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "the cat"}\n{"text": " "}\n{"text": 3}\n')
    tokenizer("bytes", tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"2 of 3 rows cannot be used .*'text' is empty; .*'text' holds int, not text"):
        make(Text, tokenizer=str(tmp_path / "tokenizer"), train_file=str(tmp_path / "a.jsonl"))
    arguments = ["data", "--model", "Seq2SeqLM", "--model.model_name", tiny_llama, "--data", "Text"]
    assert main([*arguments, "--data.train_file", str(tmp_path / "a.jsonl")]) == 2
    assert "data Text is for causal models; give --model CausalLM." in capsys.readouterr().err

"""A classification head that the model's file already has: names of labels win over their numbers."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    DistilBertConfig,
    LlamaConfig,
    RobertaConfig,
    pipeline,
)

from litpeft.__main__ import main
from litpeft.runs.record import read_record

SIZES = {"vocab_size": 25, "pad_token_id": 0}
BASE = SIZES | {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BART = SIZES | {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "eos_token_id": 3, "forced_eos_token_id": None}
BART |= {"decoder_start_token_id": 3, "bos_token_id": 2, "max_position_embeddings": 512}
CONFIGS = {
    "bert": None,
    # hidden size 2: another layer of the head has as many outputs as there are labels
    "roberta": RobertaConfig(**BASE | {"hidden_size": 2, "num_attention_heads": 1}, max_position_embeddings=600),
    "distilbert": DistilBertConfig(**SIZES, dim=32, n_layers=1, n_heads=2, hidden_dim=32),
    "llama": LlamaConfig(**BASE),
    "bart": BartConfig(**BART),
}


def write_classifier(folder: Path, tiny_model: str, labels: list[str], kind: str = "bert") -> str:
    """Write a model whose head has these labels, with a head that tells them apart."""
    config = CONFIGS[kind] or AutoConfig.from_pretrained(tiny_model)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".weight", ".bias")) and not name.startswith(model.base_model_prefix):
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model, eos_token="[SEP]").save_pretrained(folder)
    return str(folder)


def fit(model: str, files: dict[str, str], run: Path, labels: str, *more: str) -> dict:
    """Train with learning rate 0 and return the record."""
    arguments = [
        *("fit", "--model", "SequenceClassification", "--model.model_name", model, "--model.dtype", "fp32"),
        *("--data", "SST2", "--data.train_file", files["train"], "--data.val_file", files["val"]),
        *("--data.label_names", labels, "--data.batch_size", "8", "--trainer.accelerator", "cpu"),
        *("--model.adapter", "Frozen", "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0"),
        *("--trainer.enable_progress_bar", "false", "--trainer.max_steps", "1", "--run_dir", str(run), *more),
    ]
    assert main(arguments) == 0
    return read_record(run)


def expected(model: str, file: str) -> list[dict[str, float]]:
    """Return the probabilities by label name, from transformers' own pipeline."""
    texts = [line.split("\t")[0] for line in Path(file).read_text().splitlines()[1:]]
    classify = pipeline("text-classification", model=model, tokenizer=model, top_k=None, function_to_apply="softmax")
    return [{entry["label"].casefold(): entry["score"] for entry in row} for row in classify(texts)]


def predicted(run: Path, file: str) -> list[dict[str, float]]:
    out = run / "predictions.jsonl"
    assert main(["predict", "--run_dir", str(run), "--data.predict_file", file, "--predictions.file", str(out)]) == 0
    return [json.loads(line)["probabilities"] for line in out.read_text().splitlines()]


def assert_same_rows(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert {name.casefold(): value for name, value in mine.items()} == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_labels_in_another_order_keep_their_meaning(
    kind: str, tiny_model: str, sentences: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_classifier(tmp_path / "model", tiny_model, ["NEGATIVE", "POSITIVE"], kind)
    record = fit(model, sentences, tmp_path / "run", "[positive, negative]")
    assert record["head_labels"] == {
        "matched_by": "name",
        "names": {"positive": "POSITIVE", "negative": "NEGATIVE"},
    }
    assert "reordered to the labels of the data, by name: POSITIVE as positive" in capsys.readouterr().err
    theirs = expected(model, sentences["val"])
    assert_same_rows(predicted(tmp_path / "run", sentences["val"]), theirs)
    numbers = [int(line.split("\t")[1]) for line in Path(sentences["val"]).read_text().splitlines()[1:]]
    hits = [max(row, key=row.get) == ("positive", "negative")[n] for row, n in zip(theirs, numbers, strict=True)]
    assert record["val_accuracy"] == pytest.approx(sum(hits) / len(hits))


def test_exports_name_the_labels_of_the_data(
    tiny_model: str, sentences: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_classifier(tmp_path / "model", tiny_model, ["NEGATIVE", "POSITIVE"])
    fit(model, sentences, tmp_path / "run", "[positive, negative]", "--model.adapter", "LoRA")
    for kind in ("merged", "adapter"):
        assert main(["export", str(tmp_path / "run"), str(tmp_path / kind), "--format", kind]) == 0
    merged = AutoConfig.from_pretrained(tmp_path / "merged")
    assert merged.id2label == {0: "positive", 1: "negative"}
    theirs = expected(model, sentences["val"])
    assert_same_rows(expected(str(tmp_path / "merged"), sentences["val"]), theirs)
    assert "id2label={0: 'positive', 1: 'negative'}" in (tmp_path / "adapter" / "README.md").read_text()
    base = AutoModelForSequenceClassification.from_pretrained(model, id2label={0: "positive", 1: "negative"})
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    loaded.save_pretrained(tmp_path / "loaded")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "loaded")
    assert_same_rows(expected(str(tmp_path / "loaded"), sentences["val"]), theirs)


@pytest.mark.parametrize(
    ("in_file", "names", "matched_by"),
    [
        (["negative", "positive"], "[negative, positive]", None),
        (["LABEL_0", "LABEL_1"], "[positive, negative]", None),
        (["NEGATIVE", " Positive"], "[negative, positive]", None),  # the same names in the same order
        (["hate", "love"], "[negative, positive]", "number"),
        (["a", "b", "c"], "[negative, positive]", None),  # another number of labels: the head is new
    ],
)
def test_other_names_are_matched_by_number_and_told(
    in_file: list[str],
    names: str,
    matched_by: str | None,
    tiny_model: str,
    sentences: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_classifier(tmp_path / "model", tiny_model, in_file)
    record = fit(model, sentences, tmp_path / "run", names)
    assert (record["head_labels"] or {}).get("matched_by") == matched_by
    warned = "other label names than the data; its rows are kept in their order: hate as negative, love as positive."
    assert (warned in capsys.readouterr().err) == (matched_by == "number")
    if len(in_file) == 2:
        ours = [list(row.values()) for row in predicted(tmp_path / "run", sentences["val"])]
        theirs = [
            [row[label.casefold()] for label in AutoConfig.from_pretrained(model).id2label.values()]
            for row in expected(model, sentences["val"])
        ]
        assert [x for row in ours for x in row] == pytest.approx([x for row in theirs for x in row], abs=1e-4)

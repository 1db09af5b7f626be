"""`litpeft.fit`, `load_run` and what a run gives, against the command line and plain transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from litpeft import LoRA, QLoRA, Run, SequenceClassification, UserError, fit, load_run
from litpeft.__main__ import main
from litpeft.api.arguments import in_arguments, option_words
from litpeft.runs.record import read_record

TIMES = ("seconds", "_at", "bytes_by", "rss", "energy", "per_second", "wall", "p50", "p95", "clock")


@pytest.fixture(scope="module")
def options(tiny_model: str, sentences: dict[str, str]) -> dict[str, Any]:
    return {
        "model__model_name": tiny_model,
        "model__dtype": "fp32",
        "model__optimizer": torch.optim.AdamW,
        "model__optimizer__lr": 1e-2,
        "data__train_file": Path(sentences["train"]),
        "data__val_file": sentences["val"],
        "data__batch_size": 8,
        "trainer__accelerator": "cpu",
        "trainer__enable_progress_bar": False,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> Run:
    return fit("sst2", "lora", **options, run_dir=tmp_path_factory.mktemp("api") / "run")


def test_a_run_is_that_of_the_command_line(run: Run, fit_arguments: list[str], tmp_path: Path) -> None:
    words = ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
    assert main([*fit_arguments, "--config", "lora", *words, "--run_dir", str(tmp_path / "run")]) == 0
    ours, theirs = run.record, read_record(tmp_path / "run")
    for name in (
        "status",
        "adapter",
        "adapter_options",
        "data",
        "optimizer_settings",
        "train_loss",
        "val_loss",
        "val_accuracy",
        "steps",
    ):
        assert ours[name] == theirs[name], name
    assert ours["config"]["model"] == theirs["config"]["model"]


def test_record_metrics_and_curves(run: Run) -> None:
    assert run.record == json.loads((run.folder / "record.json").read_text()) | {"benchmarks": None}
    assert run.metrics["val_accuracy"] == run.record["val_accuracy"] > 0
    assert set(run.metrics) == {"train_loss", "val_loss", "val_accuracy", "val_f1"}
    curves = run.curves()
    assert curves["val_loss"][12] == run.metrics["val_loss"]
    assert len(curves["train_loss"]) >= 1
    assert repr(run).startswith(f"<Run {run.folder}: ok, train_loss ")
    assert Path(os.fspath(run)) == run.folder


def test_predictions_are_those_of_the_command_line(
    run: Run, sentences: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    assert main(["predict", "--run_dir", str(run.folder), "--data.predict_file", sentences["val"]]) == 0
    rows = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    (run.folder / "predictions.jsonl").unlink()
    texts = [row.pop("text") for row in rows]
    found = load_run(str(run.folder)).predict(texts, accelerator="cpu")
    assert [row["label"] for row in found] == [row["label"] for row in rows]
    for mine, other in zip(found, rows, strict=True):
        assert mine["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    again = run.predict(texts[0])
    assert list(again[0]) == ["label", "probabilities"]
    assert again[0]["probabilities"] == pytest.approx(found[0]["probabilities"], abs=1e-6)
    assert run.predict([]) == []
    assert not (run.folder / "predictions.jsonl").exists()


def test_the_model_and_the_exports(run: Run, tiny_model: str, tmp_path: Path) -> None:
    task = run.model("cpu")
    assert isinstance(task, SequenceClassification)
    assert not task.training
    tokens = AutoTokenizer.from_pretrained(tiny_model)(
        ["the film was superb", "a weak plot"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = task.backbone(**{name: tokens[name] for name in ("input_ids", "attention_mask")}).logits
        assert run.export(tmp_path / "merged", format="merged") == tmp_path / "merged"
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(merged(**tokens).logits, expected, rtol=1e-4, atol=1e-4)
        run.export(str(tmp_path / "adapter"))
        torch.manual_seed(1)
        base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2).eval()
        LoRA.load(tmp_path / "adapter", base)
        torch.testing.assert_close(base(**tokens).logits, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="exists already; give overwrite or another folder"):
        run.export(tmp_path / "adapter")
    run.export(tmp_path / "adapter", overwrite=True)


def test_a_run_that_is_trained_on_answers_with_its_new_weights(options: dict[str, Any], tmp_path: Path) -> None:
    run = fit("sst2", "lora", **options, run_dir=tmp_path / "run", trainer__max_steps=2)
    before = run.predict(["a lovely story"], "cpu")
    assert run.predict(["a lovely story"], "cpu") == before
    again = fit(run_dir=tmp_path / "run", resume=True, trainer__max_steps=6)
    after = run.predict(["a lovely story"], "cpu")
    assert after == again.predict(["a lovely story"], "cpu") != before
    assert run.metrics == again.metrics


def test_a_dict_and_a_file_are_configurations(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "class_path": "SequenceClassification",
            "init_args": {"adapter": {"class_path": "DoRA", "init_args": {"rank": 2}}},
        },
        "trainer": {"max_steps": 2},
        "seed_everything": 7,
    }
    (tmp_path / "small.yaml").write_text("data:\n  class_path: SST2\n  init_args:\n    train_samples: 16\n")
    run = fit(
        config, tmp_path / "small.yaml", **options, model__adapter__rank_pattern={"layer.0.attention.self.query": 3}
    )
    assert run.folder.parts[:2] == ("runs", "small")
    record = run.record
    assert (record["adapter"], record["seed"], record["steps"]) == ("dora", 7, 2)
    assert record["adapter_options"]["rank"] == 2
    assert record["adapter_options"]["rank_pattern"] == {"layer.0.attention.self.query": 3}
    assert load_run(run).metrics == run.metrics
    more = fit(
        config,
        "small.yaml",
        **options,
        run_dir=run,
        resume=True,
        trainer__max_steps=3,
        model__adapter__rank_pattern={"layer.0.attention.self.query": 3},
    )
    assert more.record["steps"] == 3


def test_classes_are_named_by_themselves(options: dict[str, Any], tmp_path: Path) -> None:
    run = fit(
        **options,
        data="SST2",
        model=SequenceClassification,
        model__adapter=QLoRA,
        run_dir=tmp_path / "run",
        trainer__max_steps=1,
    )
    assert run.record["config"]["model"]["class_path"] == "litpeft.tasks.SequenceClassification"
    assert run.record["adapter"] == "qlora-nf4"


def test_errors_name_arguments(options: dict[str, Any], run: Run, tmp_path: Path) -> None:
    given = options | {"run_dir": tmp_path / "other"}
    for arguments, sentence in (
        ({"model__adapter__rank": 0}, "^model__adapter__rank must be at least 1, got 0"),
        ({"model__adapter__rnk": 1}, "^model__adapter has no option 'rnk' .did you mean rank"),
        ({"data__batch_sise": 1}, "data has no option 'batch_sise'|unknown option"),
        ({"modle": "x"}, "unknown option modle .did you mean model"),
        ({"run_dir": run}, "give resume, overwrite, or another run_dir"),
        ({"model__model_name": "nothing/here"}, "model__model_name"),
        ({"model__adapter": LoRA(rank=2)}, "^model__adapter is an object of class LoRA; give the name of the class"),
        ({"trainer__max_steps": "many"}, "trainer__max_steps must be int"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            fit("sst2", "lora", **given | arguments)
        assert "--" not in str(caught.value)
    with pytest.raises(UserError, match="^config sst3: no such file .* .did you mean sst2"):
        fit("sst3")
    with pytest.raises(UserError, match="a configuration is a name, a path or a dict, got LoRA"):
        fit(LoRA())
    with pytest.raises(UserError, match="^data.seed|^data__seed must not be negative"):
        fit(
            {
                "data": {"class_path": "SST2", "init_args": {"seed": -1}},
                "model": {"class_path": "SequenceClassification"},
            },
            **given,
        )
    with pytest.raises(UserError, match="holds no run"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="trained on one text per row, got 2"):
        run.predict([("one", "two")])
    with pytest.raises(UserError, match="^texts.* the text is empty"):
        run.predict(["  "])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("--model.adapter.rank must be 1", "model__adapter__rank must be 1"),
        ("model.dtype fp16: give --model.dtype bf16.", "model__dtype fp16: give model__dtype bf16."),
        ("data/model.safetensors is damaged", "data/model.safetensors is damaged"),
        ("model.safetensors is damaged", "model.safetensors is damaged"),
        ("litpeft.data.SST2 and torch.optim.SGD", "litpeft.data.SST2 and torch.optim.SGD"),
        ("use litpeft.load_run(RUN_DIR).model(); a-model.x", "use litpeft.load_run(RUN_DIR).model(); a-model.x"),
        ("train.data.csv: no row", "train.data.csv: no row"),
    ],
)
def test_options_in_messages(message: str, expected: str) -> None:
    assert in_arguments(message) == expected


def test_words_of_the_command_line() -> None:
    given = {
        "a__b": None,
        "c": True,
        "resume": True,
        "overwrite": False,
        "d": [1, 2.5],
        "e": {"x": "y"},
        "f": -1e-5,
        "g": "text",
    }
    words = ["--c=true", "--resume", "--d=[1, 2.5]", '--e={"x": "y"}', "--f=-1e-05", "--g=text", "--a.b=null"]
    assert option_words(given) == words
    assert option_words({"lr": torch.tensor(2)}) == ["--lr=2"]


def test_a_language_model_answers_questions_and_conversations(tiny_llama: str, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"the film {word}", "response": "good"}) for word in ("was", "and", "of", "it") * 4]
    (tmp_path / "chats.jsonl").write_text("\n".join(rows))
    run = fit(
        model="CausalLM", model__model_name=tiny_llama, model__max_new_tokens=4, data="Conversations", data__template="plain",
        data__train_file=tmp_path / "chats.jsonl", data__max_length=64, run_dir=tmp_path / "run", trainer__max_steps=2,
        trainer__accelerator="cpu", trainer__enable_progress_bar=False,
    )  # fmt: skip
    answers = run.predict(["the film was", "a story"])
    turns = [[{"role": "user", "content": text}] for text in ("the film was", "a story")]
    assert [list(answer) for answer in answers] == [["response"]] * 2
    assert run.predict(turns) == answers
    (tmp_path / "asked.jsonl").write_text('{"prompt": "the film was"}\n{"prompt": "a story"}\n')
    assert main(["predict", "--run_dir", str(run.folder), "--data.predict_file", str(tmp_path / "asked.jsonl")]) == 0
    lines = (run.folder / "predictions.jsonl").read_text().splitlines()
    assert [{"response": json.loads(line)["response"]} for line in lines] == answers


def test_one_batch_is_one_batch_whatever_was_imported_before() -> None:
    code = (
        "import rich.console; from lightning import Trainer; from litpeft.cli.parser import OneLineParser\n"
        "parser = OneLineParser(); parser.add_class_arguments(Trainer, 'trainer')\n"
        "found = parser.parse_args(['--trainer.limit_train_batches=1', '--trainer.limit_val_batches=1.0']).trainer\n"
        "print(repr(found.limit_train_batches), repr(found.limit_val_batches))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 1.0\n"


def test_out_of_memory_is_one_sentence(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SequenceClassification, "training_step", full)
    with pytest.raises(UserError, match="out of memory; give a smaller data__batch_size"):
        fit("sst2", "lora", **options, run_dir=tmp_path / "run")
    assert load_run(tmp_path / "run").record["status"] == "oom"

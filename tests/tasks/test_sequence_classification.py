"""Sequence classification: loading, training, metrics and predictions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaModel

from litpeft.__main__ import main
from litpeft.adapters import Frozen, Full, LoRA
from litpeft.data import SST2
from litpeft.errors import UserError
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from litpeft.tasks import SequenceClassification, base
from tests.conftest import QUIET


def fit(model: str, files: dict[str, str], adapter, tmp_path: Path, callbacks=(), steps: int = 2, **options):
    L.seed_everything(options.pop("seed", 0), verbose=False)
    task = SequenceClassification(model, adapter, **options)
    data = SST2(tokenizer=model, train_file=files["train"], val_file=files["val"], batch_size=8)
    trainer = L.Trainer(max_steps=steps, default_root_dir=tmp_path, callbacks=list(callbacks), **QUIET)
    trainer.fit(task, datamodule=data)
    return task, trainer


class Initial(L.Callback):
    """Saves the head before the first step, and the modules in evaluation mode during a step."""

    def on_train_start(self, trainer, module) -> None:
        self.head = {name: p.detach().clone() for name, p in module.backbone.classifier.named_parameters()}

    def on_train_batch_start(self, trainer, module, *_) -> None:
        self.eval_modules = [name for name, m in module.backbone.named_modules() if not m.training]


def test_the_head_starts_the_same_for_every_adapter_and_dtype(tiny_model: str, sentences, tmp_path: Path) -> None:
    heads = []
    for adapter in (Full(), Frozen(), LoRA(rank=2)):
        for dtype in ("fp32", "bf16"):
            keeper = Initial()
            fit(tiny_model, sentences, adapter, tmp_path, [keeper], dtype=dtype)
            heads.append(keeper.head)
    assert all(torch.equal(head["weight"], heads[0]["weight"]) for head in heads)
    assert heads[0]["weight"].std() > 0.01
    keeper = Initial()
    fit(tiny_model, sentences, Full(), tmp_path, [keeper], seed=1, dtype="fp32")
    assert not torch.equal(keeper.head["weight"], heads[0]["weight"])


def test_every_module_is_in_training_mode_in_every_step(tiny_model: str, sentences, tmp_path: Path) -> None:
    keeper = Initial()
    task, _ = fit(tiny_model, sentences, LoRA(rank=2), tmp_path, [keeper], steps=14)  # past a validation
    assert keeper.eval_modules == []
    batch = next(iter(task.trainer.datamodule.train_dataloader()))
    task.train()
    assert not torch.equal(task(batch), task(batch))  # dropout is on


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("adapter", [Full, Frozen, LoRA])
def test_weights_have_the_requested_dtypes(tiny_model: str, sentences, tmp_path: Path, adapter, dtype: str) -> None:
    task, trainer = fit(tiny_model, sentences, adapter(), tmp_path, dtype=dtype)
    frozen = {p.dtype for p in task.backbone.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16 if dtype == "bf16" else torch.float32}
    assert {p.dtype for p in task.backbone.parameters() if p.requires_grad} == {torch.float32}
    states = [s for state in trainer.optimizers[0].state.values() for n, s in state.items() if n != "step"]
    assert {s.dtype for s in states} == {torch.float32}
    seen = []
    dense = task.backbone.bert.encoder.layer[0].intermediate.dense
    dense.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    batch = next(iter(trainer.datamodule.train_dataloader()))
    assert task(batch).dtype == torch.float32
    assert seen == [torch.bfloat16 if dtype == "bf16" else torch.float32]


def test_full_fine_tuning_in_bf16_starts_from_unrounded_weights(tiny_model: str, sentences, tmp_path: Path) -> None:
    keeper = {}

    class Keep(L.Callback):
        def on_train_start(self, trainer, module) -> None:
            keeper.update({k: v.clone() for k, v in module.backbone.state_dict().items()})

    fit(tiny_model, sentences, Full(), tmp_path, [Keep()], dtype="bf16")
    on_disk = load_file(Path(tiny_model) / "model.safetensors")
    assert all(torch.equal(keeper[name], tensor) for name, tensor in on_disk.items())


def test_loss_and_gradients_equal_transformers(tiny_model: str, sentences, tmp_path: Path) -> None:
    task, trainer = fit(tiny_model, sentences, Full(), tmp_path, dtype="fp32")
    batch = next(iter(trainer.datamodule.train_dataloader()))
    task.eval(), task.zero_grad()
    loss = torch.nn.functional.cross_entropy(task(batch), batch["labels"])
    theirs = task.backbone(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    ).loss
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_predictions_and_metrics_agree_with_an_independent_count(
    tmp_path: Path, fit_arguments: list[str], sentences: dict[str, str]
) -> None:
    run_dir = tmp_path / "run"
    learn = ["--model.adapter", "Full", "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1.5e-3"]
    assert main([*fit_arguments, *learn, "--trainer.max_epochs", "3", "--run_dir", str(run_dir)]) == 0
    out = tmp_path / "out" / "p.jsonl"
    assert (
        main(
            [
                "predict",
                "--run_dir",
                str(run_dir),
                "--data.predict_file",
                sentences["val"],
                "--predictions.file",
                str(out),
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    lines = [line.split("\t") for line in Path(sentences["val"]).read_text().splitlines()[1:]]
    assert [row["text"] for row in rows] == [text for text, _ in lines]  # in the file's order
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    assert all(row["label"] == max(row["probabilities"], key=row["probabilities"].get) for row in rows)
    truth = np.array([int(label) for _, label in lines])
    guess = np.array([["negative", "positive"].index(row["label"]) for row in rows])
    f1 = []
    for label in (0, 1):
        hit = np.sum((guess == label) & (truth == label))
        f1.append(2 * hit / max(1, np.sum(guess == label) + np.sum(truth == label)))
    likelihood = [row["probabilities"][["negative", "positive"][t]] for row, t in zip(rows, truth, strict=True)]
    record = read_record(run_dir)
    assert record["val_accuracy"] == pytest.approx(np.mean(guess == truth))
    assert record["val_f1"] == pytest.approx(np.mean(f1))
    assert record["val_loss"] == pytest.approx(-np.mean(np.log(likelihood)), rel=1e-4)
    # and transformers itself gives the same logits from base and checkpoint
    theirs = AutoModelForSequenceClassification.from_pretrained(record["model_name"], num_labels=2).eval()
    theirs.load_state_dict(load_file(newest_checkpoint(run_dir) / "trainable.safetensors"), strict=False)
    tokens = AutoTokenizer.from_pretrained(record["model_name"])(rows[0]["text"], return_tensors="pt")
    tokens.pop("token_type_ids", None)
    probability = theirs(**tokens).logits.softmax(-1)[0, 1].item()
    assert probability == pytest.approx(rows[0]["probabilities"]["positive"], rel=1e-4)


def test_the_model_is_built_on_the_cpu_inside_any_device_context(tiny_model: str, sentences, tmp_path: Path) -> None:
    """In a GPU's device context, transformers requires accelerate, and initial values would depend on the device."""
    task, _ = fit(tiny_model, sentences, LoRA(rank=2), tmp_path)
    task.backbone = None
    with torch.device("meta"):
        task.configure_model()
    assert {p.device.type for p in task.backbone.parameters()} == {"cpu"}


def altered(tiny_model: str, folder: Path, change) -> str:
    """Return a copy of the tiny model with other tensors in its file."""
    shutil.copytree(tiny_model, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_a_file_of_another_architecture_is_refused(tiny_model: str, sentences, tmp_path: Path) -> None:
    renamed = altered(tiny_model, tmp_path / "renamed", lambda t: {f"other.{name}": x for name, x in t.items()})
    with pytest.raises(
        UserError, match=r"the file lacks \d+ tensors of BertForSequenceClassification, \d+% of its numbers"
    ):
        fit(renamed, sentences, Frozen(), tmp_path)
    cut = altered(
        tiny_model, tmp_path / "cut", lambda t: {n: x[:-2].clone() if "word" in n else x for n, x in t.items()}
    )
    with pytest.raises(
        UserError, match="word_embeddings.weight has another shape in the file than its config.json says"
    ):
        fit(cut, sentences, Frozen(), tmp_path)


def test_a_missing_pooler_is_initialised_trained_and_recorded(tiny_model: str, sentences, tmp_path: Path) -> None:
    on_disk = load_file(Path(tiny_model) / "model.safetensors")
    bare = altered(
        tiny_model, tmp_path / "bare", lambda t: {n: x for n, x in t.items() if n != "bert.pooler.dense.weight"}
    )
    keeper = {}

    class Keep(L.Callback):
        def on_train_start(self, trainer, module) -> None:
            keeper.update({k: v.float().clone() for k, v in module.backbone.state_dict().items()})

    task, _ = fit(bare, sentences, Frozen(), tmp_path, [Keep()], dtype="bf16")
    assert task.new_tensors == ["bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert keeper["bert.pooler.dense.weight"].std() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(keeper["bert.pooler.dense.bias"], on_disk["bert.pooler.dense.bias"])
    trained = {name for name, p in task.backbone.named_parameters() if p.requires_grad}
    assert trained == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_max_length_above_the_models_positions_is_refused(tiny_model: str, sentences, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("model_max_length")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    task = SequenceClassification(str(folder))
    data = SST2(tokenizer=str(folder), train_file=sentences["train"], max_length=600)
    with pytest.raises(UserError, match="data.max_length 600 is more than the 512 positions"):
        L.Trainer(max_steps=1, default_root_dir=tmp_path, **QUIET).fit(task, datamodule=data)


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"max_epochs": 2}, 24),
        ({"max_epochs": 3, "accumulate_grad_batches": 5}, 9),
        ({"max_epochs": 2, "limit_train_batches": 7, "accumulate_grad_batches": 2}, 8),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 12),
        ({"max_epochs": 2, "max_steps": 5}, 5),
        ({"max_epochs": -1, "max_steps": 9}, 9),
        ({"max_epochs": -1}, None),
    ],
)
def test_the_number_of_steps_follows_from_the_data(
    tiny_model: str, sentences, trainer: dict, steps: int | None
) -> None:
    task = SequenceClassification(tiny_model)
    task.trainer = L.Trainer(**trainer, **QUIET)
    data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], batch_size=8)
    data.setup("fit")
    task.trainer._data_connector.attach_datamodule(task, data)
    assert task.total_steps() == steps


def decoder(tmp_path: Path, tiny_model: str) -> str:
    """Return a Llama without a padding token, with the tiny tokenizer."""
    folder = tmp_path / "llama"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": None, "bos_token_id": 2, "eos_token_id": 3}
    config = LlamaConfig(**sizes, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    LlamaModel(config).save_pretrained(folder)
    return str(folder)


def test_a_decoder_classifies_at_the_last_token_before_the_padding(tiny_model: str, sentences, tmp_path: Path) -> None:
    task, trainer = fit(
        decoder(tmp_path, tiny_model), sentences, LoRA(rank=2, targets=["q_proj"]), tmp_path, dtype="fp32"
    )
    assert task.backbone.config.pad_token_id == trainer.datamodule.tokenizer.pad_token_id
    task.eval()
    batch = next(b for b in trainer.datamodule.val_dataloader() if b["attention_mask"].min() == 0)
    together = task(batch)
    for i in range(len(together)):
        length = batch["attention_mask"][i].sum()
        alone = {
            key: value[i : i + 1, :length] if value.ndim == 2 else value[i : i + 1] for key, value in batch.items()
        }
        torch.testing.assert_close(task(alone)[0], together[i], rtol=1e-4, atol=1e-5)


def test_a_head_for_other_labels_is_replaced(tiny_model: str, sentences, tmp_path: Path) -> None:
    folder = tmp_path / "seven"
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=7).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    task, _ = fit(str(folder), sentences, Frozen(), tmp_path, dtype="fp32")
    assert task.backbone.classifier.weight.shape == (2, 32)
    assert task.backbone.config.id2label == {0: "negative", 1: "positive"}


def test_the_example_of_a_new_task_trains(tiny_model: str, sentences, tmp_path: Path) -> None:
    code = re.search(r"\n    class LabelSmoothing.*", base.__doc__, re.DOTALL)[0]
    scope = {"SequenceClassification": SequenceClassification, "F": torch.nn.functional}
    exec("\n".join(line[4:] for line in code.splitlines()), scope)
    plain, _ = fit(tiny_model, sentences, Full(), tmp_path, dtype="fp32")
    task = scope["LabelSmoothing"](tiny_model, Full(), dtype="fp32")
    task.backbone = plain.backbone.eval()
    batch = next(iter(plain.trainer.datamodule.train_dataloader()))
    logits = plain(batch)
    expected = 0.9 * plain.loss(batch) - 0.1 * logits.log_softmax(-1).mean()
    torch.testing.assert_close(task.loss(batch), expected)


@pytest.mark.parametrize("weights", [[1.0, -0.5], [-1.0, 2.0]])
def test_negative_weights_of_classes_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"^model.class_weights must not be negative, got \["):
        SequenceClassification("any", class_weights=weights)
    SequenceClassification("any", class_weights=[0.0, 1.0])  # a class that is not learned


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_of_rows_without_weight_teaches_nothing_and_is_no_nan(smoothing: float, tiny_model: str) -> None:
    """A class may have weight 0; torch divides by the sum of the rows' weights."""
    task = SequenceClassification(tiny_model, class_weights=[0.0, 2.0, 1.0], label_smoothing=smoothing)
    task._weights = torch.tensor([0.0, 2.0, 1.0])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    task.forward = lambda batch: logits
    (gradient,) = torch.autograd.grad(task.loss({"labels": torch.zeros(4, dtype=torch.int64)}), logits)
    assert gradient.isfinite().all()
    assert smoothing or not gradient.any()
    labels = torch.tensor([0, 1, 2, 1])
    expected = torch.nn.functional.cross_entropy(logits, labels, task._weights, label_smoothing=smoothing)
    torch.testing.assert_close(task.loss({"labels": labels}), expected)
    with pytest.raises(UserError, match=r"^model\.class_weights must have a weight above 0, or nothing is learned\.$"):
        SequenceClassification(tiny_model, class_weights=[0.0, 0.0])

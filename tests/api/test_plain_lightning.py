"""Tasks in Lightning's own Trainer: with data modules of litpeft, and with plain dataloaders of dictionaries."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from litpeft.adapters import Frozen, LoRA
from litpeft.adapters.base import trainable
from litpeft.data import SST2, Conversations, TextClassification
from litpeft.errors import UserError
from litpeft.optim import WarmupCosine
from litpeft.tasks import CausalLM, SequenceClassification, SequenceMultiLabel, SequenceRegression
from tests.conftest import QUIET

ROWS = 12


def batches(vocabulary: int = 20, labels: Any = None, size: int = 4, keys: tuple[str, ...] = ()) -> DataLoader:
    """Return a plain loader of batches: `input_ids` and `attention_mask` (4, 6), and `labels`."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (ROWS, 6), generator=draw)
    columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    columns["labels"] = torch.arange(ROWS) % 2 if labels is None else labels(ids)
    columns = {name: column for name, column in columns.items() if name not in keys}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(ROWS)]
    return DataLoader(rows, batch_size=size)


def trainer(tmp_path: Path, **options: Any) -> Trainer:
    return Trainer(default_root_dir=tmp_path, **QUIET | {"max_steps": 3, "logger": False} | options)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def test_plain_dataloaders_train_as_plain_transformers_does(tiny_model: str, tmp_path: Path) -> None:
    """Full fine-tuning for three steps gives the weights of a loop of torch with plain transformers."""
    from litpeft.adapters import Full

    task = SequenceClassification(tiny_model, Full(), dtype="fp32", optimizer=sgd, num_labels=2).setup_model()
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    model.load_state_dict(task.backbone.state_dict())
    for each in (model, task.backbone):
        for module in each.modules():  # the same dropout masks are not drawn
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
    task.backbone.config.attention_probs_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    trainer(tmp_path).fit(task, batches())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches():
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(task.backbone.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


def test_every_verb_with_plain_dataloaders(tiny_model: str, tmp_path: Path) -> None:
    task = SequenceClassification(tiny_model, LoRA(), dtype="fp32", num_labels=3)
    task.scheduler = lambda optimizer, total_steps=None: WarmupCosine(optimizer, total_steps=total_steps)
    run = trainer(tmp_path, max_steps=-1, max_epochs=2, val_check_interval=1.0)
    loader = batches()
    run.fit(task, loader, batches())
    assert run.global_step == 6
    found = run.validate(task, loader, verbose=False)[0]
    tested = run.test(task, loader, verbose=False)[0]
    assert tested["test_loss"] == pytest.approx(found["val_loss"])
    task.eval()
    with torch.no_grad():
        logits = torch.cat([task.backbone(**{k: v for k, v in b.items() if k != "labels"}).logits for b in loader])
    labels = torch.arange(ROWS) % 2
    assert found["val_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found["val_accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    rows = [row for part in run.predict(task, batches(keys=("labels",))) for row in part]
    assert [list(row["probabilities"]) for row in rows] == [["0", "1", "2"]] * ROWS
    expected = logits.softmax(-1)
    torch.testing.assert_close(
        torch.tensor([list(row["probabilities"].values()) for row in rows]), expected, atol=1e-5, rtol=1e-5
    )
    assert [row["label"] for row in rows] == [str(int(number)) for number in expected.argmax(-1)]


@pytest.mark.parametrize(
    ("kind", "labels", "key"),
    [
        (SequenceRegression, lambda ids: ids[:, :2].double(), "values"),
        (SequenceMultiLabel, lambda ids: (ids[:, :2] > 12).long(), "labels"),
    ],
)
def test_numbers_and_label_sets_in_plain_dataloaders(
    kind: Any, labels: Any, key: str, tiny_model: str, tmp_path: Path
) -> None:
    task, run = kind(tiny_model, LoRA(), dtype="fp32", num_labels=2), trainer(tmp_path)
    run.fit(task, batches(labels=labels), batches(labels=labels))
    assert len(run.predict(task, batches(keys=("labels",)))[0][0][key]) in (0, 1, 2)


@pytest.mark.parametrize("weights", [[1.0, 3.0], "balanced"])
def test_weights_of_classes_with_plain_dataloaders(weights: Any, tiny_model: str, tmp_path: Path) -> None:
    task = SequenceClassification(tiny_model, Frozen(), dtype="fp32", num_labels=2, class_weights=weights)
    if weights == "balanced":
        with pytest.raises(UserError, match="balanced weights need a data module"):
            trainer(tmp_path).fit(task, batches())
        return
    trainer(tmp_path).fit(task, batches())
    assert task._weights.tolist() == weights


def test_language_models_learn_from_plain_dataloaders(tiny_llama: str, tmp_path: Path) -> None:
    def labels(ids: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(6) < 2, -100, ids)

    task, run = (
        CausalLM(tiny_llama, LoRA(), dtype="fp32", max_new_tokens=4).setup_model(),
        trainer(tmp_path, max_steps=0),
    )
    found = run.validate(task, batches(labels=labels), verbose=False)[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    losses = [float(model(**batch).loss) for batch in batches(labels=labels)]
    assert found["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    trainer(tmp_path).fit(task, batches(labels=labels), batches(labels=labels))
    answers = run.predict(task, batches(keys=("labels",)))
    assert len(answers[0]) == 4
    assert all(isinstance(row["response"], str) for row in answers[0])


def test_mistakes_with_dataloaders_are_one_sentence(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"does not know the number of labels: .* give num_labels, as in SequenceClassification\("
    ):
        trainer(tmp_path).fit(SequenceClassification(tiny_model, LoRA()), batches())
    task = SequenceClassification(tiny_model, LoRA(), num_labels=2)
    with pytest.raises(UserError, match="the batches have no labels; they have input_ids, attention_mask"):
        trainer(tmp_path).fit(task, batches(keys=("labels",)))
    pairs = DataLoader([(row["input_ids"], row["labels"]) for row in batches().dataset], batch_size=4)
    with pytest.raises(UserError, match="takes batches that are dictionaries .* gives a list"):
        trainer(tmp_path).fit(task, pairs)
    with pytest.raises(UserError, match="num_labels must be at least 1"):
        SequenceClassification(tiny_model, num_labels=0)


def sst2(sentences: dict[str, str], **options: Any) -> SST2:
    return SST2(train_file=sentences["train"], val_file=sentences["val"], batch_size=8, **options)


def test_a_data_module_takes_the_tokenizer_from_the_task(
    tiny_model: str, sentences: dict[str, str], tmp_path: Path
) -> None:
    task, data = SequenceClassification(tiny_model, LoRA(), dtype="fp32"), sst2(sentences)
    assert not list(task.parameters())
    assert task.setup_model(data) is task
    before = {name: parameter.detach().clone() for name, parameter in trainable(task.backbone).items()}
    assert sum(p.requires_grad for p in task.parameters()) == len(before) > 0
    run = trainer(tmp_path)
    run.fit(task, data)
    assert all(name in before for name in trainable(task.backbone))
    assert any(not torch.equal(trainable(task.backbone)[name], tensor) for name, tensor in before.items())
    assert 0 <= run.validate(task, data, verbose=False)[0]["val_accuracy"] <= 1
    assert sum(map(len, run.predict(task, data))) == 32  # without predict_file, the validation rows
    # the same trainer, now with dataloaders: names of the labels are those of the training
    found = run.predict(task, batches(keys=("labels",)))[0][0]
    assert list(found["probabilities"]) == list(data.label_names)
    fresh = trainer(tmp_path).predict(task, batches(keys=("labels",)))[0][0]
    assert fresh == found


def test_predictions_after_a_cut_validation_split(tiny_model: str, sentences: dict[str, str], tmp_path: Path) -> None:
    data = TextClassification(train_file=sentences["train"], predict_file=sentences["val"], text_column="sentence")
    task, run = SequenceClassification(tiny_model, LoRA(), dtype="fp32"), trainer(tmp_path)
    run.fit(task, data)
    rows = [row for part in run.predict(task, data) for row in part]
    assert sorted(row["row"] for row in rows) == list(range(32))
    without = TextClassification(train_file=sentences["train"], text_column="sentence")
    with pytest.raises(UserError, match="has no predict split; give predict_file"):
        run.predict(task, without)


def test_a_data_module_without_model_says_what_is_missing(sentences: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"^tokenizer is missing, .* SST2\(tokenizer="):
        sst2(sentences).prepare_data()


def test_lightnings_own_checkpoints(tiny_model: str, sentences: dict[str, str], tmp_path: Path) -> None:
    """Lightning's ModelCheckpoint saves, `ckpt_path` loads and resumes, `load_from_checkpoint` says what to use."""
    data = sst2(sentences)

    def task(rank: int = 4) -> SequenceClassification:
        torch.manual_seed(3)
        return SequenceClassification(tiny_model, LoRA(rank), dtype="fp32", optimizer=sgd)

    first = task()
    run = trainer(tmp_path, enable_checkpointing=True, max_steps=5)
    run.fit(first, data)
    path = run.checkpoint_callback.best_model_path
    size = Path(path).stat().st_size
    assert size < sum(p.nbytes for p in first.parameters())
    expected = run.validate(first, data, verbose=False)[0]
    again = task()
    assert trainer(tmp_path).validate(again, data, ckpt_path=path, verbose=False, weights_only=True)[0] == expected
    resumed = task()
    more = trainer(tmp_path, max_steps=6)
    more.fit(resumed, data, ckpt_path=path, weights_only=True)
    assert more.global_step == 6
    with pytest.raises(UserError, match=r"the checkpoint was trained with 4|model.adapter.rank is 2"):
        trainer(tmp_path).validate(task(rank=2), data, ckpt_path=path, verbose=False, weights_only=True)
    with pytest.raises(
        UserError, match=r"use litpeft.load_run\(RUN_DIR\).model\(\); .* give ckpt_path to fit, validate"
    ):
        SequenceClassification.load_from_checkpoint(path)


def test_conversations_in_a_plain_trainer(tiny_llama: str, tmp_path: Path) -> None:
    rows = [f'{{"prompt": "the film {word}", "response": "good"}}' for word in ("was", "and", "of", "it") * 4]
    (tmp_path / "chats.jsonl").write_text("\n".join(rows))
    data = Conversations(train_file=str(tmp_path / "chats.jsonl"), batch_size=4, max_length=32, template="alpaca")
    task, run = CausalLM(tiny_llama, LoRA(), dtype="fp32"), trainer(tmp_path)
    run.fit(task, data)
    assert run.callback_metrics["val_loss"] > 0


class Mine(L.LightningDataModule):
    """A data module that knows nothing of litpeft."""

    def train_dataloader(self) -> DataLoader:
        return batches()

    val_dataloader = train_dataloader


def test_a_data_module_of_ones_own_is_like_dataloaders(tiny_model: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path).fit(SequenceClassification(tiny_model, LoRA(), num_labels=2), Mine())
        with pytest.raises(UserError, match="give num_labels"):
            trainer(tmp_path).fit(SequenceClassification(tiny_model, LoRA()), Mine())


def test_the_tokenizer_may_be_another(tiny_model: str, tiny_llama: str, sentences: dict[str, str]) -> None:
    data = sst2(sentences, tokenizer=tiny_llama)
    SequenceClassification(tiny_model, LoRA()).setup_model(data)
    assert data.tokenizer.eos_token == AutoTokenizer.from_pretrained(tiny_llama).eos_token == "[SEP]"

"""Small parts of tasks: the weight of a batch in several processes, the table of answers, examples, ends of answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from litpeft.adapters import Adapter, Full, LoRA
from litpeft.data import FineTuneData
from litpeft.tasks import (
    CausalLM,
    ImageClassification,
    SequenceClassification,
    SequenceMultiLabel,
    SequenceRegression,
    image_classification,
    language_modelling,
    pretrained,
)
from litpeft.tasks.data_of_task import PlainData
from litpeft.tasks.pretrained import initialise_new_parameters
from litpeft.training import processes
from litpeft.training.strategies import FSDP2


def test_the_average_over_processes_is_the_mean_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[1.0, 2.0, 6.0], [4.0, 5.0]]  # losses of the rows of two processes
    monkeypatch.setattr(processes, "world_size", lambda: len(rows))
    task = SequenceClassification("some/model")
    task.log_train_loss = lambda loss, weight: sum(map(len, rows))
    task.loss = lambda batch: batch["labels"].mean()
    scaled = [float(task.training_step({"labels": torch.tensor(part)}, 0)) for part in rows]
    assert sum(scaled) / len(rows) == pytest.approx(sum(map(sum, rows)) / sum(map(len, rows)))
    monkeypatch.setattr(processes, "world_size", lambda: 1)
    assert float(task.training_step({"labels": torch.tensor(rows[0])}, 0)) == pytest.approx(3.0)


def test_loggers_get_the_first_twenty_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    questions, responses = [f"q{i}" for i in range(24)], [f"r{i}" for i in range(24)]
    batch = {"input_ids": torch.zeros(24, 1)}
    data = SimpleNamespace(prompts=lambda split, count: [(batch, questions, responses)])
    sent: list[Any] = []
    monkeypatch.setattr(language_modelling, "send", lambda *given: sent.append(given))
    task = CausalLM("some/model", generate_samples=24)
    task._trainer = SimpleNamespace(datamodule=data, global_step=7, loggers=[])
    task.answers = lambda _: responses[:18] + ["wrong"] * 6
    logged: dict[str, float] = {}
    task.log = lambda name, value, **_: logged.update({name: value})
    task._log_answers()
    assert logged == {"val_exact_match": 18 / 24}
    ((_, kind, name, heads, rows, step),) = sent
    assert (kind, name, heads, step) == ("table", "answers", ("question", "answer", "expected"), 7)
    expected = [*zip(questions[:18], responses[:18], responses[:18], strict=True), ("q18", "wrong", "r18")]
    assert rows == [*expected, ("q19", "wrong", "r19")]


@pytest.mark.parametrize(
    ("config", "shape"),
    [({"image_size": 8}, (3, 8, 8)), ({"image_size": (4, 6), "num_channels": 1}, (1, 4, 6)), ({}, (3, 224, 224))],
)
def test_an_example_has_the_size_of_the_models_images(
    config: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(from_pretrained=lambda path: SimpleNamespace(**config))
    monkeypatch.setattr(image_classification, "AutoConfig", found)
    monkeypatch.setattr(image_classification, "local_or_hub", lambda *_: "some/model")
    batch = ImageClassification("some/model").example(2, 99)
    assert batch["pixel_values"].shape == (2, *shape)
    assert batch["labels"].tolist() == [0, 0]


def test_an_answer_ends_with_the_end_of_text_token_if_the_tokenizer_has_one() -> None:
    for end, expected in ((5, [5]), (0, [0]), (None, [])):
        data = PlainData("some/model", None, "CausalLM")
        data.tokenizer = SimpleNamespace(eos_token_id=end)
        assert data.stops == (expected, [])


class _Rows(FineTuneData):
    """A data module that says what is done with it."""

    def __init__(self, rows: dict[str, Any]) -> None:
        self.rows, self.tokenizer_name, self.done = rows, None, []
        self.prepare_data = lambda: self.done.append("prepared")
        self.setup = lambda stage: self.done.append(f"set up for {stage}")


@pytest.mark.parametrize(
    ("data", "done", "name"),
    [
        (_Rows({}), ["prepared", "set up for fit"], "some/model"),
        (_Rows({"train": [1]}), [], None),  # has its rows already
        (SimpleNamespace(done=[], tokenizer_name=None), [], None),  # a data module of the user
    ],
)
def test_data_is_prepared_once_before_the_model_is_made(data: Any, done: list[str], name: str | None) -> None:
    task, built = SequenceClassification("some/model"), []
    task.build = lambda given, device: built.append((given, device))
    assert task.setup_model(data, "cpu") is task
    assert (data.done, data.tokenizer_name) == (done, name)
    assert built == [(data, torch.device("cpu"))]
    task.backbone = object()
    task.setup_model(data, "cpu")
    assert len(built) == 1


KINDS = {SequenceClassification: "accuracy", SequenceRegression: "pearson", SequenceMultiLabel: "micro_f1"}


def validated(kind: type, by_row: bool, data: dict[str, Any], **options: Any) -> tuple[Any, Any, dict[str, float]]:
    """Return a task, what its validation of two batches of rows returns, and the last values that it logs."""
    task, logged = kind("some/model", **options), dict[str, float]()
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(label_names=["a", "b"], **data))
    task.setup("fit")
    task.return_row_results, task.forward = by_row, lambda batch: batch["outputs"]
    task.log = lambda name, metric, **_: logged.update({name: float(metric.compute())})
    outputs = torch.tensor([[2.0, -1.0], [0.5, 1.0], [-1.0, 3.0], [1.0, -2.0], [0.25, 0.0]])
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0], [0, 1]])
    labels = labels[:, 1] if kind is SequenceClassification else labels
    parts = [{"outputs": outputs[some], "labels": labels[some]} for some in (slice(3), slice(3, 5))]
    return task, [task.validation_step(batch, number) for number, batch in enumerate(parts)], logged


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_the_validation_is_the_mean_over_the_rows_whose_losses_are_returned_if_asked_for(
    kind: type, by_row: bool
) -> None:
    _, found, logged = validated(kind, by_row, {})
    assert {"val_loss", f"val_{KINDS[kind]}"} <= logged.keys()
    if not by_row:
        assert found == [None, None]
        return
    losses = torch.cat([each["loss"] for each in found])
    assert losses.shape == (5,)
    assert logged["val_loss"] == pytest.approx(float(losses.mean()))


def test_the_main_metrics_are_those_of_the_data_or_the_first_that_is_given() -> None:
    data = {"metrics": ["f1", "accuracy", "ece"], "official_metrics": 2}
    accuracy_first = {"metrics": ["accuracy", "f1"]}
    for given, options, main, monitor in (
        ({}, {}, ["val_accuracy"], ("val_accuracy", "max")),
        (accuracy_first, {}, ["val_accuracy"], ("val_accuracy", "max")),
        (data, {}, ["val_f1", "val_accuracy"], ("val_f1", "max")),
        (data, {"metrics": ["ece", "accuracy", "f1"]}, ["val_ece"], ("val_ece", "min")),
    ):
        task = validated(SequenceClassification, False, given, **options)[0]
        assert (task.main_metrics, task.monitor) == (main, monitor)
    assert task.metric_directions == {"ece": "lower", "accuracy": "higher", "f1": "higher"}


@pytest.mark.parametrize("share", [None, 0.5])  # of the rows of a mean batch, with data.batch_tokens
def test_each_step_of_a_language_model_has_the_mean_gradient_and_no_logits_of_positions_without_loss(
    share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=1, **sizes))
    monkeypatch.setattr(language_modelling, "share_of_mean_batch", lambda *_: share)
    monkeypatch.setattr(language_modelling, "mean_rows", lambda *_: share)
    task = CausalLM("some/model", dtype="fp32")  # as a task whose own `load` has made the model
    task.backbone, task._trainer = model, SimpleNamespace(accumulate_grad_batches=2, datamodule=None)
    task.log_train_loss = lambda loss, tokens: tokens
    ids = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(9) < 6, -100, ids)
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, out: rows.append(out.shape[-2]))
    loss = model(input_ids=ids, labels=labels).loss
    expected = [gradient * (share or 1.0) for gradient in torch.autograd.grad(loss, model.parameters())]
    rows.clear()
    for _ in range(2):
        model.zero_grad()
        for batch_idx in range(2):
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            (task.training_step(batch, batch_idx) / 2).backward()  # Lightning divides by the batches of a step
        task.scale_gradients()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(count <= 6 for count in rows)


def test_a_new_head_is_drawn_from_the_seed_alone() -> None:
    """The same for every dtype, and whatever was drawn before; the weights as transformers draws them."""
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    heads = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(3)
        model = BertForSequenceClassification(config).to(dtype)
        initialise_new_parameters(model, ["classifier.weight", "classifier.bias"])
        heads.append(model.classifier)
    drawn = torch.empty(2, 8).normal_(0, config.initializer_range, generator=torch.Generator().manual_seed(3))
    for head in heads:
        assert torch.equal(head.weight, drawn)
        assert not head.bias.any()


def test_parameters_that_a_model_keeps_in_fp32_are_cast_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Module()
    for name, dtype in (
        ("a", torch.bfloat16),
        ("q_bias", torch.float32),
        ("v_bias", torch.float32),
        ("wo", torch.float32),
    ):
        setattr(model, name, nn.Parameter(torch.zeros(2, dtype=dtype)))
    model._keep_in_fp32_modules = ["wo"]
    pretrained._cast_stray_parameters(model, torch.bfloat16)
    assert {name: p.dtype for name, p in model.named_parameters()} == {
        "a": torch.bfloat16, "q_bias": torch.bfloat16, "v_bias": torch.bfloat16, "wo": torch.float32
    }  # fmt: skip
    said = "litpeft: Module keeps 2 parameters in fp32 (q_bias, ...), which it cannot run in bfloat16; they are cast.\n"
    assert capsys.readouterr().err == said
    pretrained._cast_stray_parameters(model, torch.bfloat16)
    assert not capsys.readouterr().err


def test_a_model_is_sharded_once() -> None:
    """Lightning configures the model again when a fit is followed by a test."""

    class _Counting(FSDP2):
        root_device = torch.device("cpu")

        def __init__(self) -> None:
            self.sharded: list[Any] = []

        def shard(self, model: Any) -> None:
            self.sharded.append(model)

    task, strategy = SequenceClassification("some/model", LoRA()), _Counting()
    task.backbone = nn.Linear(2, 2)
    task._trainer = SimpleNamespace(strategy=strategy, state=SimpleNamespace(fn="fit"))
    for _ in range(2):
        task.configure_model()
    assert strategy.sharded == [task.backbone]


@pytest.mark.parametrize(("adapter", "expected"), [(LoRA(), torch.bfloat16), (Full(), torch.float32)])
def test_images_have_the_dtype_of_the_first_layer(adapter: Adapter, expected: torch.dtype) -> None:
    """Weights that train are fp32, and autocast rounds what they are multiplied with."""
    seen: list[torch.dtype] = []

    def model(pixel_values: torch.Tensor) -> SimpleNamespace:
        seen.append(pixel_values.dtype)
        return SimpleNamespace(logits=pixel_values.mean((-1, -2)))

    task = ImageClassification("some/model", adapter, dtype="bf16")
    task.backbone = model
    assert task.forward({"pixel_values": torch.ones(2, 3, 4, 4)}).dtype == torch.float32
    assert seen == [expected]

"""Small parts of tasks: the weight of a batch in several processes, the table of answers, examples, ends of answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from litpeft.data import FineTuneData
from litpeft.tasks import (
    CausalLM,
    ImageClassification,
    SequenceClassification,
    image_classification,
    language_modelling,
)
from litpeft.tasks.data_of_task import PlainData
from litpeft.training import processes


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

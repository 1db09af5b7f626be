"""Defaults of the tasks: one that changes gives other results to everybody who does not name the option."""

from __future__ import annotations

import pytest

from litpeft import tasks
from tests.defaults import defaults_of

COMMON = {
    **{"adapter": None, "base": None, "dtype": "bf16", "tf32": False, "optimizer": None, "scheduler": None},
    **{"gradient_checkpointing": "none", "compile_blocks": False, "kernels": "auto", "resize_embeddings": False},
}
SCORED = {"metrics": None, "num_labels": None}
CLASSES = SCORED | {"class_weights": None, "label_smoothing": 0.0}
GENERATES = {"generate_samples": 0, "max_new_tokens": 64}
EXPECTED = {
    **{"CausalLM": GENERATES, "Seq2SeqLM": GENERATES},
    **{"ImageClassification": CLASSES, "SequenceClassification": CLASSES},
    "SequenceMultiLabel": SCORED | {"threshold": 0.5, "positive_weights": None},
    "SequenceRegression": SCORED | {"loss": "mse"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_defaults_of_a_task_stay(name: str) -> None:
    kind = getattr(tasks, name)
    assert defaults_of(kind) == COMMON | EXPECTED[name]
    task = kind("some/model")
    assert (task.gradient_checkpointing, task.kernels, task.compile_blocks) == ("none", "auto", False)

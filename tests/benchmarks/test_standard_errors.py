"""Standard errors of benchmarks, and what their fingerprints depend on, against computations of their own."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litpeft.benchmarks import Live, Options, Result
from litpeft.benchmarks.held_out import HeldOut
from litpeft.benchmarks.perplexity import Perplexity

few = settings(max_examples=30, deadline=None, derandomize=True)
PARAGRAPHS = st.lists(st.text("abcé ", min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=5)


class Bytes:
    """A tokenizer of bytes; the token that begins a text is 256."""

    bos_token_id, eos_token_id = None, 256

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def scored(context: list[int], continuation: list[int]) -> float:
    """Return a made-up log-likelihood, which depends on the tokens and on the one before them."""
    return -sum(
        0.1 + (previous % 7) / 10 + (token % 5) / 3
        for previous, token in zip([*context, *continuation], continuation, strict=False)
    )


class FakeLive(Live):
    """A live model with made-up log-likelihoods."""

    def score(self, rows: Any) -> list[tuple[float, bool]]:
        return [(scored(context, continuation), True) for context, continuation in rows]


def perplexity(folder: Path, paragraphs: list[str], window: int = 8, limit: int | None = None) -> Result:
    path = folder / "text.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    data = SimpleNamespace(tokenizer=Bytes(), max_length=window)
    options = Options(["perplexity"], text_file=str(path), limit=limit)
    return Perplexity().run(FakeLive(None, data, options, lambda *_: None))


@few
@given(paragraphs=PARAGRAPHS, window=st.integers(1, 9))
def test_perplexity_and_its_errors_are_those_of_a_ratio(
    tmp_path_factory: pytest.TempPathFactory, paragraphs: list[str], window: int
) -> None:
    found = perplexity(tmp_path_factory.mktemp("text"), paragraphs, window)
    texts = [text.strip() for text in (paragraphs if len(paragraphs) > 1 else paragraphs[0].splitlines())]
    ids = [[256, *text.encode()] for text in texts]  # each token is predicted from the one before, once
    nats = np.array([-sum(scored(part[i : i + 1], part[i + 1 : i + 2]) for i in range(len(part) - 1)) for part in ids])
    sizes = np.array([len(part) - 1 for part in ids])
    each = nats.sum() / sizes.sum()
    assert found.scores["per_token"] == pytest.approx(math.exp(each))
    assert found.scores["bits_per_byte"] == pytest.approx(each / math.log(2))  # a token is a byte
    assert found.items == len(texts)
    if len(texts) > 1:
        residuals = nats - each * sizes
        error = math.sqrt(len(texts) / (len(texts) - 1) * (residuals**2).sum()) / sizes.sum()  # Cochran 1977, eq. 6.13
        assert found.standard_errors.get("per_token", 0.0) == pytest.approx(math.exp(each) * error, abs=1e-9)
        assert found.standard_errors.get("bits_per_byte", 0.0) == pytest.approx(error / math.log(2), abs=1e-9)
    else:
        assert found.standard_errors == {}


def test_the_fingerprint_of_a_text_depends_on_its_paragraphs_and_on_the_window(tmp_path: Path) -> None:
    def of(*given: Any, **options: Any) -> str:
        return perplexity(tmp_path, *given, **options).fingerprint

    same = of(["ab", "cd"])
    assert of(["ab", "cd", "ef"], limit=2) == same
    assert len({same, of(["ab", "cd"], window=4), of(["ab", "ce"]), of(["ab", "cd", "ef"]), of(["cd", "ab"])}) == 5


class Batches:
    """A data set of five labelled rows, whose batches are not in the order of the rows."""

    label_names = ("a", "b", "c")
    rows, labels = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 0, 1, 0, 1])

    def val_dataloader(self) -> list[dict[str, torch.Tensor]]:
        return [{"row": self.rows[at], "labels": self.labels[at]} for at in (slice(0, 2), slice(2, 5))]

    def table(self, split: str) -> tuple[None, dict[str, str]]:
        return None, {"fingerprint": "f"}


def test_the_errors_of_a_classifier_are_of_the_rows_of_each_class_and_items_are_in_the_order_of_the_file() -> None:
    data = Batches()
    predicted = {3: 1, 0: 0, 4: 1, 1: 1, 2: 0}  # row -> predicted class: rows 1 and 2 are wrong

    def task(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([5.0 * torch.eye(3)[predicted[int(row)]] for row in batch["row"]])

    task.device = torch.device("cpu")
    found = HeldOut().run(Live(task, data, Options(["held_out"]), lambda *_: None))
    assert found.per_item["accuracy"] == [1.0, 0.0, 0.0, 1.0, 1.0]
    shares = {"accuracy": (3 / 5, 5), "accuracy_a": (1 / 2, 2), "accuracy_b": (2 / 3, 3)}  # no row has class c
    assert {name: score for name, score in found.scores.items() if name != "ece"} == pytest.approx(
        {name: share for name, (share, _) in shares.items()}
    )
    errors = {name: math.sqrt(share * (1 - share) / (count - 1)) for name, (share, count) in shares.items()}
    assert found.standard_errors == pytest.approx(errors)
    confidence = math.exp(5) / (math.exp(5) + 2)
    assert found.scores["ece"] == pytest.approx(confidence - 3 / 5)
    assert (found.items, found.items_of) == (5, {"accuracy_a": 2, "accuracy_b": 3})
    other = Batches()
    other.rows = other.rows + 1  # as many rows of the same table, but others
    predicted = {row + 1: label for row, label in predicted.items()}
    second = HeldOut().run(Live(task, other, Options(["held_out"]), lambda *_: None))
    assert second.fingerprint != found.fingerprint
    assert second.scores == found.scores

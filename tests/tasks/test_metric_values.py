"""Each metric with a name against its formula in float64, on classes, labels and targets that are uneven."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from litpeft.tasks.metrics import CLASSES, LABEL_SETS, NUMBERS

DRAW = np.random.default_rng(0)
TRUTH = np.array([0] * 12 + [1] * 5 + [2] * 3)
LOGITS = DRAW.normal(size=(20, 3)) + 1.2 * np.eye(3)[TRUTH]
FOUND = LOGITS.argmax(1)
KNOWN = DRAW.random((20, 4)) < np.array([0.7, 0.3, 0.15, 0.0])  # no row has the last label
SCORES = np.clip(DRAW.random((20, 4)) * 0.6 + 0.4 * KNOWN, 0, 1)
TARGETS = DRAW.normal(3.0, 2.0, 20)
VALUES = TARGETS + DRAW.normal(0.5, 1.0, 20)


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def of_class(kind: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """Return the mean over the classes of a score of one class against the others."""
    return float(np.mean([kind(*(labels == each for labels in (FOUND, TRUTH))) for each in range(3)]))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean, over the rows with the label, of the precision down to their rank."""
    ranked = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())


DECIDED = SCORES >= 0.5
EXPECTED = {
    "accuracy": np.mean(FOUND == TRUTH),
    "f1": of_class(f1),
    "balanced_accuracy": of_class(lambda found, truth: (found & truth).sum() / truth.sum()),
    "recall": of_class(lambda found, truth: (found & truth).sum() / truth.sum()),
    "precision": of_class(lambda found, truth: (found & truth).sum() / found.sum()),
}
EXPECTED_SETS = {
    "micro_f1": f1(DECIDED.ravel(), KNOWN.ravel()),
    "macro_f1": np.mean([f1(DECIDED[:, i], KNOWN[:, i]) if (DECIDED | KNOWN)[:, i].any() else 0.0 for i in range(4)]),
    "map": np.mean([average_precision(SCORES[:, i], KNOWN[:, i]) for i in range(3)]),
    "exact_match": (DECIDED == KNOWN).all(1).mean(),
}
ERRORS = VALUES - TARGETS
EXPECTED_NUMBERS = {
    "rmse": np.sqrt(np.mean(ERRORS**2)),
    "mae": np.mean(np.abs(ERRORS)),
    "r2": 1 - (ERRORS**2).sum() / ((TARGETS - TARGETS.mean()) ** 2).sum(),
    "pearson": np.corrcoef(VALUES, TARGETS)[0, 1],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_of_classes(name: str) -> None:
    metric = CLASSES[name].build(3)
    for rows in (slice(0, 13), slice(13, 20)):  # uneven batches
        metric.update(torch.tensor(LOGITS[rows]), torch.tensor(TRUTH[rows]))
    assert float(metric.compute()) == pytest.approx(EXPECTED[name], rel=1e-5)


@pytest.mark.parametrize("name", EXPECTED_SETS)
def test_of_sets_of_labels(name: str) -> None:
    metric, given = LABEL_SETS[name].build(4), DECIDED if LABEL_SETS[name].uses == "predicted" else SCORES
    for rows in (slice(0, 13), slice(13, 20)):
        found = torch.tensor(given[rows])
        metric.update(found.int() if found.dtype == torch.bool else found, torch.tensor(KNOWN[rows]).int())
    assert float(metric.compute()) == pytest.approx(EXPECTED_SETS[name], rel=1e-5)


def area(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of pairs of a row with the label and one without it that the scores order rightly."""
    pairs = scores[truth][:, None] - scores[~truth][None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@pytest.mark.parametrize("wrongly", [0, 2])
def test_a_class_without_rows_counts_in_no_mean_of_recalls_or_areas(wrongly: int) -> None:
    """As in scikit-learn's balanced accuracy; of areas, scikit-learn refuses what is not defined."""
    logits = np.concatenate([LOGITS, np.full((20, 1), -9.0)], axis=1)
    logits[:wrongly, 3] = 9.0  # predicted, but no row has it
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    metrics = {name: CLASSES[name].build(4) for name in ("balanced_accuracy", "auroc")}
    for metric, given in zip(metrics.values(), (logits, shares), strict=True):
        metric.update(torch.tensor(given), torch.tensor(TRUTH))
    recalls = [np.mean(logits.argmax(1)[each == TRUTH] == each) for each in range(3)]
    assert float(metrics["balanced_accuracy"].compute()) == pytest.approx(np.mean(recalls), rel=1e-5)
    areas = [area(shares[:, each], each == TRUTH) for each in range(3)]
    assert float(metrics["auroc"].compute()) == pytest.approx(np.mean(areas), rel=1e-5)


def test_labels_that_no_row_or_every_row_has_have_no_area() -> None:
    known = np.concatenate([KNOWN, np.ones((20, 1), dtype=bool)], axis=1)
    scores = np.concatenate([SCORES, SCORES[:, :1]], axis=1)
    metric = LABEL_SETS["auroc"].build(5)
    metric.update(torch.tensor(scores), torch.tensor(known).int())
    expected = np.mean([area(SCORES[:, each], KNOWN[:, each]) for each in range(3)])
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)


def test_an_area_of_rows_of_one_class_is_unknown() -> None:
    classes, labels = CLASSES["auroc"].build(2), LABEL_SETS["auroc"].build(2)
    classes.update(torch.tensor([[0.1, 0.9], [0.6, 0.4]]), torch.tensor([1, 1]))
    labels.update(torch.tensor([[0.1, 0.9], [0.6, 0.4]]), torch.tensor([[1, 0], [1, 0]]))
    assert classes.compute().isnan()
    assert labels.compute().isnan()


@pytest.mark.parametrize("name", EXPECTED_NUMBERS)
def test_of_numbers(name: str) -> None:
    metric = NUMBERS[name].build(1)
    for rows in (slice(0, 13), slice(13, 20)):
        metric.update(torch.tensor(VALUES[rows]), torch.tensor(TARGETS[rows]))
    assert float(metric.compute()) == pytest.approx(EXPECTED_NUMBERS[name], rel=1e-5)


def test_the_calibration_error_has_fifteen_bins() -> None:
    """Guo et al. 2017, equation 5: the mean distance of accuracy and confidence over bins, weighted by their rows."""
    draw = np.random.default_rng(1)
    first = draw.random(400)
    truth = (draw.random(400) < first**2).astype(int)  # overconfident
    probabilities = np.stack([1 - first, first], axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.ceil(confidence * 15)
    expected = sum(abs(right[bins == each].sum() - confidence[bins == each].sum()) for each in range(1, 16)) / 400
    metric = CLASSES["ece"].build(2)
    metric.update(torch.tensor(probabilities), torch.tensor(truth))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)


def test_kappa_is_agreement_beyond_that_of_chance() -> None:
    """Cohen 1960."""
    observed = np.mean(FOUND == TRUTH)
    chance = sum(np.mean(each == FOUND) * np.mean(each == TRUTH) for each in range(3))
    metric = CLASSES["kappa"].build(3)
    metric.update(torch.tensor(LOGITS), torch.tensor(TRUTH))
    assert metric.compute().item() == pytest.approx((observed - chance) / (1 - chance), rel=1e-5)

"""Metrics by name and by class path: values against counts by hand, directions in the record and in compare."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from litpeft.__main__ import main
from litpeft.analysis.comparison import compare
from litpeft.errors import UserError
from litpeft.runs.record import read_record
from litpeft.tasks.metrics import CLASSES, LABEL_SETS, NUMBERS, check_metrics, choose_metrics

CHOSEN = [
    *("matthews", "binary_f1", "balanced_accuracy", "kappa", "auroc", "ece"),
    "torchmetrics.classification.MulticlassJaccardIndex",
    {"class_path": "torchmetrics.classification.BinaryAUROC", "name": "second_auroc"},
    {"class_path": "torchmetrics.classification.MulticlassHammingDistance", "init_args": {"average": "micro"}},
]


@pytest.fixture(scope="module")
def run_dir(fit_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with many metrics, validated three times."""
    folder = tmp_path_factory.mktemp("metrics") / "run"
    options = ["--model.metrics", json.dumps(CHOSEN), "--trainer.max_epochs", "3", "--run_dir", str(folder)]
    learn = ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-3", "--model.adapter", "Full"]
    assert main([*fit_arguments, *options, *learn]) == 0
    return folder


def predictions(run_dir: Path, file: str, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of class 1 and the class of each row."""
    assert (
        main(["predict", "--run_dir", str(run_dir), "--data.predict_file", file, "--predictions.file", str(out)]) == 0
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    truth = [int(line.rpartition("\t")[2]) for line in Path(file).read_text().splitlines()[1:]]
    return np.array([row["probabilities"]["positive"] for row in rows]), np.array(truth)


def test_values_agree_with_counts_by_hand(run_dir: Path, sentences: dict[str, str], tmp_path: Path) -> None:
    scores, truth = predictions(run_dir, sentences["val"], tmp_path / "p.jsonl")
    found, ours = scores > 0.5, read_record(run_dir)["other_metrics"]
    tp, fp = (found & (truth == 1)).sum(), (found & (truth == 0)).sum()
    fn, tn = (~found & (truth == 1)).sum(), (~found & (truth == 0)).sum()
    expected = (tp * tn - fp * fn) / math.sqrt(max(1, (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert ours["val_matthews"] == pytest.approx(expected, abs=1e-5)
    assert ours["val_binary_f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn), rel=1e-5)
    assert ours["val_balanced_accuracy"] == pytest.approx((tp / (tp + fn) + tn / (tn + fp)) / 2, rel=1e-5)
    pairs = scores[truth == 1][:, None] - scores[truth == 0][None]
    auroc = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert ours["val_auroc"] == pytest.approx(auroc, abs=1e-5)
    assert ours["val_second_auroc"] == pytest.approx(auroc, abs=1e-5)
    assert ours["val_hamming_distance"] == pytest.approx((found != (truth == 1)).mean(), abs=1e-6)
    jaccard = (tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2
    assert ours["val_jaccard_index"] == pytest.approx(jaccard, rel=1e-5)


def test_the_confusion_matrix_counts_the_validation_rows(
    run_dir: Path, sentences: dict[str, str], tmp_path: Path
) -> None:
    scores, truth = predictions(run_dir, sentences["val"], tmp_path / "p.jsonl")
    saved, record = json.loads((run_dir / "confusion_matrix.json").read_text()), read_record(run_dir)
    expected = [[int(((truth == a) & ((scores > 0.5) == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    assert saved == {"step": record["val_step"], "label_names": ["negative", "positive"], "rows": expected}
    assert record["confusion_matrix"] == "confusion_matrix.json"


def test_directions_reach_compare_and_report_without_a_second_place(run_dir: Path, tmp_path: Path) -> None:
    figures = {figure.name: figure.better for figure in compare([run_dir]).figures}
    assert next(iter(figures)) == "val_matthews"  # the first metric is the main one
    assert (figures["val_auroc"], figures["val_ece"], figures["val_hamming_distance"]) == ("higher", "lower", "lower")
    record = read_record(run_dir)
    assert record["main_metrics"] == ["val_matthews"]
    assert ["val_ece" in each for each in record["validations"]] == [True] * 3
    assert main(["report", str(run_dir), "-o", str(tmp_path / "report.html")]) == 0
    assert "Validation matthews" in (tmp_path / "report.html").read_text()
    reached = compare([run_dir], targets=[("val_ece", 1.0)])
    assert next(f for f in reached.figures if f.name.startswith("seconds_to")).title.startswith(
        "time to validation ece ≤"
    )


def test_the_first_metric_selects_the_best_checkpoint(fit_arguments: list[str], tmp_path: Path) -> None:
    options = ["--model.metrics", "[ece,accuracy]", "--checkpoint.keep", "best", "--trainer.max_epochs", "3"]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    assert record["selection"] == "best val_ece"
    lowest = min(each["val_ece"] for each in record["validations"])
    assert record["other_metrics"]["val_ece"] == lowest


def test_validations_of_killed_and_resumed_runs_have_the_metrics(run_dir: Path, sentences: dict[str, str]) -> None:
    before = read_record(run_dir)["other_metrics"]
    assert main(["test", "--run_dir", str(run_dir), "--data.test_file", sentences["val"]]) == 0
    after = read_record(run_dir)["other_metrics"]
    assert {name: after[name] for name in before} == before  # a test adds metrics and removes none
    assert after["test_matthews"] == pytest.approx(before["val_matthews"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[mathews]", "model.metrics mathews: unknown name (did you mean matthews?)"),
        ("[torchmetrics.NoSuch]", "model.metrics torchmetrics.NoSuch: there is no such class."),
        ("[torch.nn.Linear]", "model.metrics torch.nn.Linear: it is no torchmetrics.Metric."),
        ("[accuracy,accuracy]", "model.metrics: accuracy is taken"),
        ("[]", "model.metrics must name at least one metric"),
        ("[torchmetrics.regression.PearsonCorrCoef]", "model.metrics pearson_corr_coef: it cannot be computed"),
        (
            "[{class_path: torchmetrics.classification.MulticlassAccuracy, init_args: {average: none}, name: each}]",
            "its result is 2",
        ),
        (
            "[{class_path: torchmetrics.classification.MulticlassAccuracy, init_args: {wrong: 1}, name: each}]",
            "model.metrics torchmetrics.classification.MulticlassAccuracy: ",  # a TypeError
        ),
        ("[torchmetrics.classification.MulticlassAccuracy]", "accuracy is the name of another metric; give a mapping"),
        ("[{class_path: torchmetrics.SumMetric, wrong: 1}]", "or a mapping with class_path, init_args, name, better."),
    ],
)
def test_mistakes_are_one_sentence_before_training(
    given: str, message: str, fit_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*fit_arguments, "--model.metrics", given, "--run_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_matthews_is_that_of_the_counts_and_0_for_one_predicted_class() -> None:
    metric = CLASSES["matthews"].build(3)
    draw = np.random.default_rng(0)
    truth, found = draw.integers(0, 3, 50), draw.integers(0, 3, 50)
    metric.update(torch.tensor(found), torch.tensor(truth))
    ones = [np.eye(3)[labels] - np.eye(3)[labels].mean(axis=0) for labels in (truth, found)]
    covariance, *variances = ((a * b).sum() for a, b in (ones, (ones[0],) * 2, (ones[1],) * 2))
    assert metric.compute().item() == pytest.approx(covariance / math.sqrt(variances[0] * variances[1]), rel=1e-5)
    metric.reset()
    metric.update(torch.ones(20, dtype=torch.int64), torch.arange(20) % 2)
    assert metric.compute() == 0  # torchmetrics returns 0.02 here, scikit-learn and GLUE 0


def test_f1_of_the_second_class_needs_two_classes() -> None:
    from litpeft.tasks import SequenceClassification

    with pytest.raises(UserError, match="model.metrics binary_f1 is for two classes, and the data has 3"):
        SequenceClassification("model").choose(["binary_f1"], ["a", "b", "c"])


@pytest.mark.parametrize("known", [CLASSES, LABEL_SETS, NUMBERS], ids=["classes", "sets", "numbers"])
def test_every_known_metric_is_a_number(known: dict) -> None:
    numbers = torch.rand(8), torch.rand(8)
    sets = torch.rand(8, 2), torch.arange(16).reshape(8, 2) % 3 % 2
    classes = torch.rand(8, 2), torch.arange(8) % 2
    inputs = {
        "centred": numbers,
        "predicted": ((sets[0] > 0.5).int(), sets[1]),
        "second_class": (numbers[0], classes[1]),
    }
    inputs |= {"logits": classes, "probabilities": sets if known is LABEL_SETS else classes}
    check_metrics(choose_metrics(list(known), known, 2, "probabilities"), inputs)

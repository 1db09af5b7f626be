"""Several labels per text: losses of transformers, metrics counted by hand, thresholds, predictions, exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from litpeft.__main__ import main
from litpeft.runs.record import read_record
from litpeft.tasks import SequenceMultiLabel
from tests.tasks.label_files import multi_label, rows_of

NAMES = ["bad", "film", "good"]
STREAM = ["--data.streaming", "true", "--data.label_names", "[bad,film,good]", "--trainer.max_steps", "1"]


@pytest.fixture(scope="module")
def finished(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with a run with a threshold per label, and its files."""
    folder = tmp_path_factory.mktemp("multi-label")
    options = ["--model.threshold", "[0.4,0.3,0.6]", "--trainer.max_epochs", "4", "--run_dir", str(folder / "run")]
    options += ["--benchmarks.tasks", "held_out", "--benchmarks.keep_items", "true"]
    assert main(["fit", *multi_label(tiny_model, folder), *options]) == 0
    return folder


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the area under the steps of precision over recall."""
    order = np.argsort(-scores, kind="stable")
    hits, scores = truth[order], scores[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # equal scores are one step
    found = np.cumsum(hits)[ends]
    recall = found / hits.sum()
    return float((np.diff(recall, prepend=0) * found / (ends + 1)).sum())


def test_the_loss_equals_plain_transformers(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict = {}

    def training_step(task: SequenceMultiLabel, batch: dict, _: int) -> torch.Tensor:
        task.backbone.eval()
        if not seen:
            seen.update({name: part.detach().clone() for name, part in task.backbone.state_dict().items()})
            seen.update(batch=batch, loss=task.loss(batch).item())
        return task.loss(batch)

    monkeypatch.setattr(SequenceMultiLabel, "training_step", training_step)
    arguments = [*multi_label(tiny_model, tmp_path), "--trainer.max_steps", "1", "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *arguments]) == 0
    batch, ours = seen.pop("batch"), seen.pop("loss")
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, num_labels=3, problem_type="multi_label_classification"
    ).eval()
    theirs.load_state_dict(seen)
    rows = rows_of(tmp_path / "train.jsonl")
    labels = torch.tensor([[float(name in rows[i]["labels"]) for name in NAMES] for i in batch["row"]])
    assert torch.equal(batch["labels"], labels.long())
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert ours == pytest.approx(theirs(**inputs, labels=labels).loss.item(), rel=1e-6)


def test_metrics_agree_with_a_count_of_the_predictions(finished: Path) -> None:
    val = str(finished / "val.jsonl")
    options = ["--data.predict_file", val, "--predictions.file", str(finished / "p.jsonl")]
    assert main(["predict", "--run_dir", str(finished / "run"), *options]) == 0
    rows, truth = rows_of(finished / "p.jsonl"), rows_of(val)
    scores = np.array([[row["probabilities"][name] for name in NAMES] for row in rows])
    known = np.array([[name in row["labels"] for name in NAMES] for row in truth])
    assert [row["labels"] for row in rows] == [
        [name for name, score, limit in zip(NAMES, found, (0.4, 0.3, 0.6), strict=True) if score >= limit]
        for found in scores
    ]
    decided = scores >= np.array([0.4, 0.3, 0.6])
    right, wrong, missed = (decided & known).sum(0), (decided & ~known).sum(0), (~decided & known).sum(0)
    f1 = 2 * right / np.maximum(2 * right + wrong + missed, 1)
    micro = 2 * right.sum() / (2 * right.sum() + wrong.sum() + missed.sum())
    record = read_record(finished / "run")
    others = record["other_metrics"]
    assert others["val_micro_f1"] == pytest.approx(micro, rel=1e-5)
    assert others["val_macro_f1"] == pytest.approx(f1.mean(), rel=1e-5)
    expected = [average_precision(scores[:, i], known[:, i]) for i in range(3)]
    assert others["val_map"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert record["data_summary"]["classes"]["val"] == dict(zip(NAMES, known.sum(0).tolist(), strict=True))
    assert record["main_metrics"] == ["val_micro_f1"]
    result = record["benchmarks"][-1]["results"]["held_out"]
    hits = decided == known
    exact = hits.all(1)
    expected = {"exact_match": exact.mean()}
    expected |= {f"accuracy_{name}": hits[:, place].mean() for place, name in enumerate(NAMES)}
    expected |= {f"f1_{name}": f1[place] for place, name in enumerate(NAMES)}
    shown = np.clip(np.ceil(scores.ravel() * 15) - 1, 0, 14)  # fifteen bins of the probability
    bins = [shown == place for place in range(15)]
    gaps = [abs(scores.ravel()[members].sum() - known.ravel()[members].sum()) for members in bins]
    expected |= {"ece": sum(gaps) / known.size}
    assert result["scores"] == pytest.approx(expected, abs=1e-5)
    assert result["standard_errors"]["exact_match"] == pytest.approx(exact.std() / np.sqrt(len(exact) - 1))
    items = json.loads((finished / "run" / "benchmark_items" / f"step-{record['steps']:06d}.json").read_text())
    assert items["held_out"]["exact_match"] == exact.astype(float).tolist()


def test_labels_without_rows_are_left_out_of_map_and_named(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = multi_label(tiny_model, tmp_path)
    kept = [row for row in rows_of(tmp_path / "val.jsonl") if "film" not in row["labels"]]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, kept)) + "\n")
    options = ["--trainer.max_steps", "2", "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *arguments, *options]) == 0
    assert "the label 'film'; the metrics map and auroc are means of the other labels" in capsys.readouterr().err
    assert 0 < read_record(tmp_path / "run")["other_metrics"]["val_map"] <= 1


def test_exports_keep_thresholds_and_the_kind_of_problem(finished: Path, tmp_path: Path) -> None:
    run_dir, thresholds = str(finished / "run"), {"bad": 0.4, "film": 0.3, "good": 0.6}
    assert main(["export", run_dir, str(tmp_path / "merged"), "--format", "merged"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert model.config.problem_type == "multi_label_classification"
    assert (model.config.thresholds, model.config.id2label) == (thresholds, dict(enumerate(NAMES)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert model(**tokenizer("good film", return_tensors="pt", return_token_type_ids=False)).logits.shape == (1, 3)


def test_positive_weights_are_those_of_torch(tiny_model: str, tmp_path: Path) -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 1]])
    task = SequenceMultiLabel(tiny_model, dtype="fp32", positive_weights="balanced")

    class Data:
        rows = {"train": range(10)}
        label_names = NAMES

        @staticmethod
        def class_counts(split: str) -> dict[str, int]:
            return {"bad": 5, "film": 1, "good": 8}

    task._weights = task._positive_weights(Data())
    assert task._weights.tolist() == [1.0, 9.0, 0.25]
    task.forward = lambda batch: logits
    expected = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=torch.tensor([1.0, 9.0, 0.25]))
    assert torch.equal(task.loss({"labels": labels}), expected)
    assert task.mean_loss(logits, {"labels": labels}) == F.binary_cross_entropy_with_logits(logits, labels.float())


def test_positive_weights_count_in_a_stream_too(tiny_model: str, tmp_path: Path) -> None:
    """A task whose weights are all 1 is one without weights, and other weights give another first loss."""
    losses = []
    for weights in ([], ["--model.positive_weights", "[1,1,1]"], ["--model.positive_weights", "[1,9,9]"]):
        options = [*weights, *STREAM, "--seed_everything", "1", "--run_dir", str(tmp_path / f"run{len(losses)}")]
        assert main(["fit", *multi_label(tiny_model, tmp_path), *options]) == 0
        losses.append(read_record(tmp_path / f"run{len(losses)}")["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] > 1.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.threshold", "1.5"], "model.threshold must be between 0 and 1, got 1.5."),
        (["--model.threshold", "[0.5,0.5]"], "model.threshold has 2 numbers for 3 labels."),
        (["--model.positive_weights", "[1,2]"], "model.positive_weights has 2 weights for 3 labels."),
        (["--model.positive_weights", "[1,2]", *STREAM], "model.positive_weights has 2 weights for 3 labels."),
        (
            ["--model.positive_weights", "balanced", *STREAM],
            "model.positive_weights balanced needs the number of rows of ",
        ),
    ],
)
def test_wrong_options_are_one_sentence(
    options: list[str], message: str, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["fit", *multi_label(tiny_model, tmp_path), *options, "--run_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err

"""The benchmark `held_out`: what the validation metrics leave out, by class, label or target, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from lightning import LightningDataModule
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
    multilabel_f1_score,
)

from litpeft.benchmarks.base import Benchmark, Live, Options, Result
from litpeft.data.cache import rows_fingerprint
from litpeft.errors import UserError
from litpeft.tasks import FineTuner, SequenceMultiLabel, SequenceRegression
from litpeft.tasks.sequence_task import SequenceTask
from litpeft.training import processes

BINS = 15  # confidence bins, as in Guo et al.


class HeldOut(Benchmark):
    """Scores on the validation rows with their standard errors over rows.

    Of classes (also of images): accuracy, overall and per class, and the expected calibration error, the mean gap
    between confidence and accuracy in 15 confidence bins (Guo et al. 2017, eq. 3, https://arxiv.org/abs/1706.04599).
    Of any number of labels per row: the share of rows with exactly the right labels, accuracy and F1 per label, and the
    calibration error of all decisions. Of numbers: the mean absolute error and the root mean squared error, in the unit
    of the target; with several targets, of each.
    """

    name = "held_out"

    def check(self, task: FineTuner, data: LightningDataModule, options: Options) -> None:
        if not isinstance(task, SequenceTask):
            raise UserError(
                "benchmarks.tasks held_out is for classes, labels and numbers, not for generated text; leave it out."
            )

    def run(self, live: Live) -> Result:
        task, data = live.task, live.data
        rows, outputs, labels = [], [], []
        loader = data.val_dataloader() if processes.world_size() == 1 else data.unsharded_loader("val")
        for done, batch in enumerate(loader, 1):
            batch = {name: part.to(task.device) for name, part in batch.items()}
            rows.append(batch["row"].cpu())
            outputs.append(task(batch).cpu())
            labels.append(batch["labels"].cpu())
            live.tick(done, len(loader))
        numbers, order = torch.cat(rows).sort()
        result = _scores(task)(task, torch.cat(outputs)[order], torch.cat(labels)[order], data.label_names)
        result.fingerprint = f"{data.table('val')[1]['fingerprint']}:{rows_fingerprint(numbers.numpy())}"
        return result


def _scores(task: FineTuner) -> Callable[[FineTuner, Tensor, Tensor, Sequence[str]], Result]:
    """Return the function that scores the outputs of a task."""
    if isinstance(task, SequenceRegression):
        return _of_numbers
    return _of_label_sets if isinstance(task, SequenceMultiLabel) else _of_classes


def _of_classes(task: FineTuner, outputs: Tensor, labels: Tensor, names: Sequence[str]) -> Result:
    """Score logits, (rows, classes), against classes, (rows,)."""
    hits = outputs.argmax(-1) == labels
    shares = {"accuracy": hits} | {
        f"accuracy_{name}": hits[labels == label] for label, name in enumerate(names) if (labels == label).any()
    }
    calibration = multiclass_calibration_error(outputs.softmax(-1), labels, len(names), n_bins=BINS, norm="l1")
    return _of_shares(shares, "accuracy", {"ece": float(calibration)})


def _of_label_sets(task: FineTuner, outputs: Tensor, labels: Tensor, names: Sequence[str]) -> Result:
    """Score logits, (rows, labels), against 0 or 1 for each label, (rows, labels)."""
    probabilities = outputs.sigmoid()
    least = torch.tensor(task.thresholds(names))
    found = (probabilities >= least).int()
    hits = found == labels
    shares = {"exact_match": hits.all(-1)} | {f"accuracy_{name}": hits[:, place] for place, name in enumerate(names)}
    f1 = multilabel_f1_score(found, labels, len(names), average="none").tolist()
    calibration = binary_calibration_error(probabilities.flatten(), labels.flatten(), n_bins=BINS, norm="l1")
    others = {f"f1_{name}": score for name, score in zip(names, f1, strict=True)} | {"ece": float(calibration)}
    return _of_shares(shares, "exact_match", others)


def _of_shares(shares: dict[str, Tensor], by_row: str, others: dict[str, float]) -> Result:
    """Return the result of shares of rows, with the binomial standard errors, and of other scores.

    Args:
        shares: by score, whether each row is right, (rows of that score,) bool.
        by_row: the score of all rows, of which each row is kept.
        others: scores that are no mean over rows.
    """
    means = {name: float(hits.double().mean()) for name, hits in shares.items()}
    return Result(
        scores=means | others,
        standard_errors={
            name: math.sqrt(share * (1 - share) / (len(shares[name]) - 1))
            for name, share in means.items()
            if len(shares[name]) > 1
        },
        items=len(shares[by_row]),
        items_of={name: len(hits) for name, hits in shares.items() if len(hits) < len(shares[by_row])},
        per_item={by_row: shares[by_row].double().tolist()},
    )


def _of_numbers(task: FineTuner, outputs: Tensor, labels: Tensor, names: Sequence[str]) -> Result:
    """Score standardised outputs, (rows, targets), against the targets in their own unit."""
    errors = task.values(outputs) - labels.double().reshape(outputs.shape)  # float64
    scores, deviations, per_item = dict[str, float](), dict[str, float](), dict[str, list[float]]()
    for place, name in enumerate(names):
        suffix = "" if len(names) == 1 else f"_{name}"
        absolute = errors[:, place].abs()
        scores[f"mae{suffix}"] = float(absolute.mean())
        scores[f"rmse{suffix}"] = float(absolute.square().mean().sqrt())
        per_item[f"mae{suffix}"] = absolute.tolist()
        if len(absolute) > 1:
            deviations[f"mae{suffix}"] = float(absolute.std() / math.sqrt(len(absolute)))
    return Result(scores=scores, standard_errors=deviations, items=len(errors), per_item=per_item)

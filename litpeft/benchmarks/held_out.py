"""The benchmark `held_out`: accuracy per class and calibration error of a classifier."""

from __future__ import annotations

import math

import torch
from lightning import LightningDataModule
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from litpeft.benchmarks.base import Benchmark, Live, Options, Result
from litpeft.errors import UserError
from litpeft.tasks import FineTuner, SequenceClassification
from litpeft.training import processes

BINS = 15  # confidence bins, as in Guo et al.


class HeldOut(Benchmark):
    """Accuracy on the validation rows, overall and per class, and the expected calibration error.

    The calibration error is the mean gap between confidence and accuracy in 15 confidence bins (Guo et al. 2017, eq. 3,
    https://arxiv.org/abs/1706.04599).
    """

    name = "held_out"

    def check(self, task: FineTuner, data: LightningDataModule, options: Options) -> None:
        if not isinstance(task, SequenceClassification):
            raise UserError(
                "benchmarks.tasks held_out needs a classifier (--model SequenceClassification); leave it out."
            )

    def run(self, live: Live) -> Result:
        task, data = live.task, live.data
        names = data.label_names
        device = task.device
        local = {"sync_on_compute": False}  # the other processes wait
        by_class = MulticlassAccuracy(len(names), average=None, **local).to(device)
        calibration = MulticlassCalibrationError(len(names), n_bins=BINS, norm="l1", **local).to(device)
        rows, right, labels = [], [], []
        loader = data.val_dataloader() if processes.world_size() == 1 else data.unsharded_loader("val")
        for done, batch in enumerate(loader, 1):
            batch = {name: part.to(device) for name, part in batch.items()}
            probabilities = task(batch).softmax(-1)
            by_class.update(probabilities, batch["labels"])
            calibration.update(probabilities, batch["labels"])
            rows.append(batch["row"].cpu())
            right.append((probabilities.argmax(-1) == batch["labels"]).cpu())
            labels.append(batch["labels"].cpu())
            live.tick(done, len(loader))
        order = torch.cat(rows).argsort()
        hits, truth = torch.cat(right)[order], torch.cat(labels)[order]
        accuracy = float(hits.double().mean())
        counts = {name: int((truth == label).sum()) for label, name in enumerate(names)}
        classes = dict(zip(names, by_class.compute().tolist(), strict=True))
        shares = {"accuracy": (accuracy, len(hits))} | {
            f"accuracy_{name}": (classes[name], counts[name]) for name in names if counts[name]
        }
        return Result(
            scores={name: share for name, (share, _) in shares.items()} | {"ece": float(calibration.compute())},
            standard_errors={
                name: math.sqrt(share * (1 - share) / (count - 1))
                for name, (share, count) in shares.items()
                if count > 1
            },
            items=len(hits),
            fingerprint=f"{data.table('val')[1]['fingerprint']}:{len(hits)}",
            per_item={"accuracy": hits.double().tolist()},
        )

"""Batch norms with frozen running statistics.

A training step changes running statistics without a gradient, and adapters and checkpoints hold trained parameters
only: with other statistics, a saved adapter would not be all that was trained.
"""

from __future__ import annotations

from torch import nn


class _Frozen:
    """Keeps a batch norm in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


class FrozenBatchNorm1d(_Frozen, nn.BatchNorm1d):
    """BatchNorm1d with frozen running statistics."""


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """BatchNorm2d with frozen running statistics."""


class FrozenBatchNorm3d(_Frozen, nn.BatchNorm3d):
    """BatchNorm3d with frozen running statistics."""


class FrozenSyncBatchNorm(_Frozen, nn.SyncBatchNorm):
    """SyncBatchNorm with frozen running statistics."""


FROZEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
    nn.SyncBatchNorm: FrozenSyncBatchNorm,
}
PLAIN = {frozen: plain for plain, frozen in FROZEN.items()}


def freeze_statistics(model: nn.Module) -> None:
    """Freeze the running statistics of batch norms; they normalise with them in training too."""
    for module in model.modules():
        if type(module) in FROZEN:
            module.__class__ = FROZEN[type(module)]
            module.eval()


def unfreeze_statistics(model: nn.Module) -> None:
    """Undo `freeze_statistics`."""
    for module in model.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
            module.train(model.training)

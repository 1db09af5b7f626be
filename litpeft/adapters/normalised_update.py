"""The DoRA of the study "Exploring Parameter-Efficient Fine-Tuning": the update is normalised, not the weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.base import Adapter
from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.adapters.targets import match_targets
from litpeft.errors import UserError

EPSILON = 1e-9  # of the study: before training, the update is zero divided by this
LINEAR = (nn.Linear, Conv1D)


class NormalisedUpdate(Adapter):
    """Adds a normalised low-rank update to frozen linear layers: y = x (Wᵀ + m ⊙ U / ‖U‖) + b with U = alpha A B.

    A is (in, rank), drawn from a normal distribution of variance 1/rank; B (rank, out) starts at zero and the magnitude
    m (out) at one. ‖U‖ are the norms over the outputs, one per input, through which gradients pass. In DoRA
    (https://arxiv.org/abs/2402.09353) the sum W + BA is normalised instead, and m starts as the norm of W.

    Source: the class DoRA of "Exploring Parameter-Efficient Fine-Tuning" (Ready Tensor), which also leaves out the
    bias of the layer; here the bias stays.

    Args:
        rank: rank of the update.
        alpha: factor of the update; the norm removes it, up to rounding.
        targets: layers to adapt, as in LoRA.
        exclude: layers not to adapt, as in LoRA.
        modules_to_save: extra modules to train in full, matched by name suffix.
    """

    name = "normalised"

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 4.0,
        targets: list[str] | str = ["query", "value"],  # noqa: B006 (a list, so that help and config.yaml show it)
        exclude: list[str] | str | None = None,
        modules_to_save: list[str] | None = None,
    ) -> None:
        if rank < 1:
            raise UserError(f"model.adapter.rank must be at least 1, got {rank}.")
        self.rank, self.alpha, self.targets, self.exclude = rank, alpha, targets, exclude
        self.modules_to_save = modules_to_save or []

    def adapt(self, model: nn.Module) -> None:
        quantised = {type(module) for module in model.modules() if isinstance(module, QuantisedLinear)}
        kinds = (*LINEAR, *(kind for kind in quantised if not hasattr(kind, "by_expert")))
        for name in match_targets(model, self.targets, kinds, exclude=self.exclude):
            model.set_submodule(name, NormalisedLinear(model.get_submodule(name), self.rank, self.alpha))

    def added(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{leaf}": getattr(layer, leaf) for name, layer in _layers(model).items() for leaf in ("A", "B", "m")
        }

    @contextmanager
    def switched_off(self, model: nn.Module) -> Iterator[None]:
        layers = _layers(model)
        try:
            for name, layer in layers.items():
                model.set_submodule(name, layer.base)
            yield
        finally:
            for name, layer in layers.items():
                model.set_submodule(name, layer)

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        for name, layer in _layers(model).items():
            base = layer.base.plain() if isinstance(layer.base, QuantisedLinear) else layer.base
            update = layer.update() if isinstance(base, Conv1D) else layer.update().T  # (in, out) or (out, in)
            base.weight = nn.Parameter((base.weight.float() + update).to(base.weight.dtype), requires_grad=False)
            model.set_submodule(name, base)
        super().merge(model)


class NormalisedLinear(nn.Module):
    """A frozen linear layer with a normalised low-rank update."""

    def __init__(self, base: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.alpha = base, alpha
        if isinstance(base, Conv1D):
            self.in_features, self.out_features = base.nx, base.nf
        else:
            self.in_features, self.out_features = base.in_features, base.out_features
        device = base.weight.device
        first = "meta" if device.type == "meta" else "cpu"  # drawn on the CPU: the same values for every device
        drawn = torch.randn(self.in_features, rank, device=first) / math.sqrt(rank)
        self.A = nn.Parameter(drawn.to(device))
        self.B = nn.Parameter(torch.zeros(rank, self.out_features, device=device))
        self.m = nn.Parameter(torch.ones(self.out_features, device=device))

    @property
    def weight(self) -> Tensor:
        """The weight of the frozen layer (T5 reads its dtype)."""
        return self.base.weight

    def update(self) -> Tensor:
        """Return m ⊙ U / ‖U‖, (in, out) fp32."""
        low_rank = self.alpha * (self.A @ self.B)
        return self.m * (low_rank / (low_rank.norm(p=2, dim=1, keepdim=True) + EPSILON))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        out = self.base(x)
        return out + x.to(out.dtype) @ self.update().to(out.dtype)


def _layers(model: nn.Module) -> dict[str, NormalisedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, NormalisedLinear)}

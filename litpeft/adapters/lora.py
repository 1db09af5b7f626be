"""LoRA: a frozen weight plus a trained product of two thin matrices (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.adapters.base import Adapter
from litpeft.adapters.targets import match_targets
from litpeft.errors import UserError


class LoRALinear(nn.Module):
    """y = x Wᵀ + b + s · (dropout(x) Aᵀ) Bᵀ, equation 3 of the paper with s = alpha / rank.

    Takes over the weight and bias of the layer that it replaces, under the same names. A is (rank, in) and B
    (out, rank), both fp32 and cast to the input's dtype when used, so that no fp32 copy of the activations is made.
    B starts at zero: the layer then equals the one that it replaces.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.scaling, self.dropout = rank, alpha / rank, dropout
        options = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **options))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **options))
        # bound 1/sqrt(in), what nn.Linear draws, as in the authors' code: loralib/layers.py of microsoft/LoRA
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        out = F.linear(x, self.weight, self.bias)
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))  # (..., rank)
        # one fused product and sum: no second tensor of the output's size is made
        added = torch.addmm(
            out.reshape(-1, self.out_features),
            low.reshape(-1, self.rank),
            self.lora_B.to(low.dtype).T,
            alpha=self.scaling,
        )
        return added.view(out.shape)

    def delta(self) -> Tensor:
        """What is added to the weight: s · BA, (out, in), fp32."""
        return self.scaling * (self.lora_B @ self.lora_A)

    def merged(self) -> nn.Linear:
        """A plain layer with the product folded in: summed in fp32, rounded once to the weight's dtype."""
        weight = (self.weight.float() + self.delta()).to(self.weight.dtype)
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = self.bias
        return layer

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}, scaling={self.scaling:g}"


class LoRA(Adapter):
    """Low-rank adaptation.

    Args:
        rank: inner dimension r of the product BA.
        alpha: the product is scaled by alpha / rank; twice the rank where it is not given.
        dropout: share of the adapter's input that is zeroed in training; the frozen path sees all of it.
        targets: the layers to adapt: module-name suffixes and presets in a list (presets: query, key, value,
            projection, mlp, head), or `all-linear`, or one regular expression over whole names.
    """

    name = "lora"
    layers: dict[type, type] = {nn.Linear: LoRALinear}  # layer type -> adapted layer: the place to add a kind of layer

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: list[str] | str = ["query", "value"],  # noqa: B006 (a list, so that help and config.yaml show it)
    ) -> None:
        if rank < 1:
            raise UserError(f"model.adapter.rank must be at least 1, got {rank}.")
        if not 0 <= dropout < 1:
            raise UserError(f"model.adapter.dropout must be at least 0 and below 1, got {dropout}.")
        self.rank, self.dropout, self.targets = rank, dropout, targets
        self.alpha = 2 * rank if alpha is None else alpha

    def adapt(self, model: nn.Module) -> None:
        for name in match_targets(model, self.targets, tuple(self.layers)):
            base = model.get_submodule(name)
            model.set_submodule(name, self.layers[type(base)](base, self.rank, self.alpha, self.dropout))

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        for name, layer in self._adapted(model).items():
            model.set_submodule(name, layer.merged())

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """As the base class, and `adapted_layers`: how many layers of each name were replaced."""
        counts: dict[str, int] = {}
        for name in self._adapted(model):
            leaf = name.rpartition(".")[2]
            counts[leaf] = counts.get(leaf, 0) + 1
        return super().describe(model) | {"adapted_layers": counts}

    def _adapted(self, model: nn.Module) -> dict[str, nn.Module]:
        return {n: m for n, m in model.named_modules() if isinstance(m, tuple(self.layers.values()))}

"""LoRA: a frozen weight plus a trained product of two thin matrices (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from litpeft.adapters.base import Adapter, InDtypeOf
from litpeft.adapters.layers import ADAPTED, LINEAR, AdaptedLayer, LowRank, adapted_layers
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.adapters.peft_format import load_adapter
from litpeft.adapters.targets import by_pattern, ending_in, in_layers, match_targets
from litpeft.errors import UserError


class LoRA(Adapter):
    """Low-rank adaptation of Linear, Conv1D, Embedding, Conv2d and four-bit layers.

    Args:
        rank: inner dimension r of the product BA.
        alpha: the product is scaled by alpha / rank; twice the rank where it is not given.
        dropout: share of the adapter's input that is zeroed in training; the frozen path sees all of it.
        targets: the layers to adapt: module-name suffixes and presets in a list (presets: query, key, value,
            projection, mlp, head; they hide a suffix of that name), or `all-linear`, or one regular expression over
            whole names.
        rslora: scale by alpha / sqrt(rank) instead, which keeps high ranks learning (https://arxiv.org/abs/2312.03732).
        init: how A is drawn: `kaiming`, uniform in 1/sqrt(in), or `gaussian`, normal with deviation 1/rank. B is zero.
        bias: which of the base's biases train too: none, all, or those of the adapted layers (lora_only).
        rank_pattern: other ranks for some layers, by a regular expression that the end of their name matches.
        alpha_pattern: other alphas, likewise.
        layers: of the targets, only those in blocks with these numbers: a list, or `8-15`, both included.
        modules_to_save: further modules that train whole, by the end of their name; they are saved with the adapter.
        lora_plus_ratio: B learns this many times faster than A (LoRA+, https://arxiv.org/abs/2402.12354).
        init_from: folder of a PEFT adapter to start from; it must fit these options tensor by tensor.
    """

    name = "lora"
    magnitude = False  # whether each layer has DoRA's

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: list[str] | str = ["query", "value"],  # noqa: B006 (a list, so that help and config.yaml show it)
        rslora: bool = False,
        init: Literal["kaiming", "gaussian"] = "kaiming",
        bias: Literal["none", "all", "lora_only"] = "none",
        rank_pattern: dict[str, int] | None = None,
        alpha_pattern: dict[str, float] | None = None,
        layers: list[int] | str | None = None,
        modules_to_save: list[str] | None = None,
        lora_plus_ratio: float = 1.0,
        init_from: str | None = None,
    ) -> None:
        for name, value in {"rank": rank, **{f"rank_pattern {k}": v for k, v in (rank_pattern or {}).items()}}.items():
            if value < 1:
                raise UserError(f"model.adapter.{name} must be at least 1, got {value}.")
        for key in [*(rank_pattern or {}), *(alpha_pattern or {})]:
            _compiled(key)
        for value in [1 if alpha is None else alpha, *(alpha_pattern or {}).values()]:
            if value <= 0:
                raise UserError(f"model.adapter.alpha must be above 0, got {value}.")
        if not 0 <= dropout < 1:
            raise UserError(f"model.adapter.dropout must be at least 0 and below 1, got {dropout}.")
        if lora_plus_ratio <= 0:
            raise UserError(f"model.adapter.lora_plus_ratio must be above 0, got {lora_plus_ratio}.")
        self.rank, self.dropout, self.targets = rank, dropout, targets
        self.alpha = 2 * rank if alpha is None else alpha
        self.rslora, self.init, self.bias = rslora, init, bias
        self.rank_pattern, self.alpha_pattern = rank_pattern or {}, alpha_pattern or {}
        self.layers, self.modules_to_save = layers, modules_to_save or []
        self.lora_plus_ratio, self.init_from = lora_plus_ratio, init_from
        self._checkpoint_follows = False  # whose tensors replace those of `init_from`

    def apply(self, model: nn.Module, head: Iterable[str] = (), new: Iterable[str] = ()) -> None:
        head, new = tuple(head), tuple(new)
        super().apply(model, head, new)
        if self.init_from and not self._checkpoint_follows:
            load_adapter(Path(self.init_from), model, self)

    def adapt(self, model: nn.Module) -> None:
        for name, layer in list(model.named_modules()):
            if type(layer).__module__ == "bitsandbytes.nn.modules" and type(layer).__name__ == "Linear4bit":
                model.set_submodule(name, Linear4bit.adopt(layer))  # of a model that somebody else has quantised
        names = match_targets(model, self.targets, tuple(ADAPTED), LINEAR)
        names = names if self.layers is None else in_layers(names, self.layers)
        for key in [*self.rank_pattern, *self.alpha_pattern]:
            if not any(_compiled(key).fullmatch(name) for name in names):
                raise UserError(f"model.adapter: the pattern {key!r} matches no adapted layer, such as {names[0]}.")
        for name in names:
            base = model.get_submodule(name)
            _check_rank(name, base, self.options(name).rank)
            model.set_submodule(name, ADAPTED[type(base)](base, self.options(name)))
        if self.bias != "none":
            self._train_biases(model)

    def options(self, name: str) -> LowRank:
        """Rank and scaling of the layer of this name."""
        rank = by_pattern(self.rank_pattern, name, self.rank)
        alpha = by_pattern(self.alpha_pattern, name, self.alpha)
        scaling = alpha / (math.sqrt(rank) if self.rslora else rank)
        return LowRank(rank, scaling, self.dropout, self.init, self.magnitude)

    def _train_biases(self, model: nn.Module) -> None:
        for module in list(model.modules()):
            bias = module._parameters.get("bias")
            if bias is None or not (self.bias == "all" or isinstance(module, AdaptedLayer)):
                continue
            bias.requires_grad = True
            dtype, bias.data = bias.dtype, bias.data.float()
            if dtype != torch.float32 and not isinstance(module, AdaptedLayer):  # those cast it themselves
                parametrize.register_parametrization(module, "bias", InDtypeOf(dtype), unsafe=True)

    def added(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{leaf}": parameter
            for name, layer in adapted_layers(model).items()
            for leaf, parameter in layer.named_parameters(recurse=False)
            if leaf in ("lora_A", "lora_B", "magnitude")
        }

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        groups = super().param_groups(model)
        if self.lora_plus_ratio == 1.0:
            return groups
        faster = {id(layer.lora_B) for layer in adapted_layers(model).values()}
        split = [
            group | {"params": [p for p in group["params"] if (id(p) in faster) == chosen]} | scale
            for group in groups
            for chosen, scale in ((False, {}), (True, {"lr_scale": self.lora_plus_ratio}))
        ]
        return [group for group in split if group["params"]]

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        merged = {name: layer.merged() for name, layer in adapted_layers(model).items()}  # all of them, or none
        for name, layer in merged.items():
            if getattr(layer, "bias", None) is not None:  # it may have been trained, in fp32
                layer.bias = nn.Parameter(layer.bias.to(layer.weight.dtype), requires_grad=False)
            model.set_submodule(name, layer)
        for module in list(model.modules()):
            if parametrize.is_parametrized(module, "bias"):
                seen = module.bias.detach().clone()
                parametrize.remove_parametrizations(module, "bias", leave_parametrized=False)
                module.bias = nn.Parameter(seen, requires_grad=False)

    def roles(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """As every adapter's; what DoRA keeps of its norms is the adapter's too."""
        roles = super().roles(model)
        for layer in adapted_layers(model).values():
            roles["adapter_weights"] += layer.norms()
        return roles

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """As the base class, and `adapted_layers`: how many layers of each name were replaced."""
        counts = Counter(name.rpartition(".")[2] for name in adapted_layers(model))
        return super().describe(model) | {"adapted_layers": dict(counts)}


def _compiled(key: str) -> re.Pattern[str]:
    try:
        return ending_in(key)
    except re.error as error:
        raise UserError(f"model.adapter: the pattern {key!r} is not a regular expression: {error}.") from error


def _check_rank(name: str, layer: nn.Module, rank: int) -> None:
    """A product of two matrices has no more ranks than the lesser width; beyond the greater one it is a slip."""
    weight = layer.weight
    widths = [getattr(layer, side, None) for side in ("in_features", "out_features")]
    most = max(widths) if None not in widths else max(len(weight), weight[0].numel())
    if rank > most:
        raise UserError(
            f"model.adapter.rank {rank} is above both widths of {name}, {most} at most; give a smaller one."
        )

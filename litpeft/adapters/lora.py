"""LoRA: W stays frozen, a low-rank update BA is trained (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from litpeft.adapters.base import Adapter
from litpeft.adapters.experts import restore_experts, separate_experts
from litpeft.adapters.layers import ADAPTED, LINEAR, AdaptedLayer, LowRank, adapted_layers
from litpeft.adapters.layers.base import optimizer_steps
from litpeft.adapters.layers.group import LayerGroup
from litpeft.adapters.layers.shared_input import share_inputs, shared_inputs
from litpeft.adapters.not_adapted import not_adapted
from litpeft.adapters.peft_config import lora_options, read_config
from litpeft.adapters.peft_format import load_adapter, write_adapter
from litpeft.adapters.targets import in_blocks, layer_type, match_targets, suffix_regex, value_for_name
from litpeft.adapters.trained_in_full import CastTo
from litpeft.errors import UserError, check_choices


class Ratio(float):
    """The learning rate of B divided by that of A, as `lr_scale` of a parameter group."""


@register_optimizer_step_pre_hook
def _check_ratio(optimizer: Optimizer, *_: object) -> None:
    """Raise a UserError in a step with a ratio that nobody has multiplied with the learning rate."""
    if any(isinstance(group.get("lr_scale"), Ratio) for group in optimizer.param_groups):
        raise UserError(
            f"model.adapter.lora_plus_ratio: {type(optimizer).__name__} does not use lr_scale; give it the groups of "
            "param_groups(model, lr=...), which have the learning rates of A and B."
        )


class LoRA(Adapter):
    """Adds a trained low-rank update to frozen layers: y = x Wᵀ + b + (alpha / rank) · dropout(x) Aᵀ Bᵀ.

    Works on Linear, Conv1D (GPT-2), Embedding, Conv1d and Conv2d, four-bit linear layers, and the stacked weights of
    the experts of a mixture, where each expert gets an A and a B of its own.

    Args:
        rank: rank of the update BA.
        alpha: scale of the update; BA is multiplied by alpha / rank. Default: 2 * rank.
        dropout: dropout probability of the input of A during training. The input of W has no dropout.
        targets: layers to adapt. A list of module-name suffixes and presets (query, key, value, projection, mlp,
            head; a preset takes precedence over a suffix of the same name); or `all-linear`; or one regular expression
            that matches full module names.
        rslora: scale by alpha / sqrt(rank) instead, which helps at high ranks (https://arxiv.org/abs/2312.03732).
        init: initialisation of A: `kaiming` (uniform, bound 1/sqrt(in)), `gaussian` (standard deviation 1/rank) or
            `normal` (variance 1/rank). B starts at zero.
        bias: which biases of the base to train: `none`, `all`, or those of the adapted layers (`lora_only`).
        rank_pattern: ranks of single layers: regular expression for the end of the module name -> rank.
        alpha_pattern: alphas of single layers: regular expression for the end of the module name -> alpha.
        layers: adapt only targets in these blocks: a list of block numbers, or a range such as
            `8-15` (inclusive) or `8-` (to the last block).
        modules_to_save: extra modules to train in full, matched by name suffix; they are saved with the adapter.
        lora_plus_ratio: learning rate of B divided by that of A (LoRA+, https://arxiv.org/abs/2402.12354).
        init_from: folder of a PEFT adapter to start from; rank, alpha and targets must be those of that adapter.
        exclude: layers not to adapt: a list of suffixes and presets, or one regular expression.
        dtype: dtype of A and B, in training and in checkpoints; fp32 by default. Heads and DoRA's magnitude are fp32.
    """

    name = "lora"
    magnitude = False  # True for DoRA: each layer also has a magnitude vector
    peft_format_is_exact = True

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: list[str] | str = ["query", "value"],  # noqa: B006 (a list, so that help and config.yaml show it)
        rslora: bool = False,
        init: Literal["kaiming", "gaussian", "normal"] = "kaiming",
        bias: Literal["none", "all", "lora_only"] = "none",
        rank_pattern: dict[str, int] | None = None,
        alpha_pattern: dict[str, float] | None = None,
        layers: list[int] | str | None = None,
        modules_to_save: list[str] | None = None,
        lora_plus_ratio: float = 1.0,
        init_from: str | None = None,
        exclude: list[str] | str | None = None,
        dtype: Literal["bf16", "fp32"] | None = None,
    ) -> None:
        check_choices("model.adapter", LoRA.__init__, locals())
        for name, value in {"rank": rank, **{f"rank_pattern {k}": v for k, v in (rank_pattern or {}).items()}}.items():
            if value < 1:
                raise UserError(f"model.adapter.{name} must be at least 1, got {value}.")
        for key in [*(rank_pattern or {}), *(alpha_pattern or {})]:
            _compile_pattern(key)
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
        self.lora_plus_ratio, self.init_from, self.exclude = lora_plus_ratio, init_from, exclude
        self.dtype = None if dtype == "fp32" else dtype
        self._checkpoint_follows = False  # True: a checkpoint will be loaded, so `init_from` is not read

    def apply(self, model: nn.Module, head: Iterable[str] = (), new: Iterable[str] = ()) -> nn.Module:
        head, new = tuple(head), tuple(new)
        super().apply(model, head, new)
        if self.init_from and not self._checkpoint_follows:
            load_adapter(Path(self.init_from), model, self)
        return model

    def adapt(self, model: nn.Module) -> None:
        separate_experts(model)
        names = match_targets(model, self.targets, tuple(ADAPTED), LINEAR, self.exclude)
        names = names if self.layers is None else in_blocks(names, self.layers)
        for key in [*self.rank_pattern, *self.alpha_pattern]:
            if not any(_compile_pattern(key).fullmatch(name) for name in names):
                raise UserError(
                    f"model.adapter: the pattern {key!r} matches none of the adapted layers, such as {names[0]}."
                )
        for name in names:
            base = model.get_submodule(name)
            _check_rank(name, base, self.options(name).rank)
            model.set_submodule(name, ADAPTED[layer_type(base)](base, self.options(name)))
        LayerGroup.join(adapted_layers(model).values())
        restore_experts(model)  # where neither adapted nor quantised: transformers computes them faster
        if self.bias != "none":
            self._train_biases(model)

    def options(self, name: str) -> LowRank:
        """Return rank, scaling and the other options of the layer with this name."""
        rank = value_for_name(self.rank_pattern, name, self.rank)
        alpha = value_for_name(self.alpha_pattern, name, self.alpha)
        scaling = alpha / (math.sqrt(rank) if self.rslora else rank)
        return LowRank(rank, scaling, self.dropout, self.init, self.magnitude)

    def _train_biases(self, model: nn.Module) -> None:
        for module in list(model.modules()):
            bias = module._parameters.get("bias")
            if bias is None or not (self.bias == "all" or isinstance(module, AdaptedLayer)):
                continue
            bias.requires_grad = True
            dtype, bias.data = bias.dtype, bias.data.float()
            if dtype != torch.float32 and not isinstance(module, AdaptedLayer):  # an AdaptedLayer casts its own bias
                parametrize.register_parametrization(module, "bias", CastTo(dtype), unsafe=True)

    def added(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{leaf}": parameter
            for name, layer in adapted_layers(model).items()
            for leaf, parameter in layer.named_parameters(recurse=False)
            if leaf in ("lora_A", "lora_B", "magnitude")
        }

    def param_groups(self, model: nn.Module, lr: float | None = None) -> list[dict[str, Any]]:
        """Return the trainable parameters as parameter groups; with LoRA+, those of B are groups of their own.

        Args:
            model: the model with the adapter.
            lr: learning rate that the groups get, for LoRA+ in an optimizer that is not made by `build_optimizer`.
        """
        groups = super().param_groups(model)
        if self.lora_plus_ratio == 1.0:
            return [group | ({} if lr is None else {"lr": lr}) for group in groups]
        B_ids = {id(layer.lora_B) for layer in adapted_layers(model).values()}
        ratio = Ratio(self.lora_plus_ratio)
        scales = ({}, {"lr_scale": ratio}) if lr is None else ({"lr": lr}, {"lr": lr * ratio})
        split = [
            group | {"params": [p for p in group["params"] if (id(p) in B_ids) == is_B]} | scales[is_B]
            for group in groups
            for is_B in (False, True)
        ]
        return [group for group in split if group["params"]]

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        merged = {name: layer.merged() for name, layer in adapted_layers(model).items()}  # may raise: replace after
        for name, layer in merged.items():
            if getattr(layer, "bias", None) is not None:  # a trained bias is fp32
                layer.bias = nn.Parameter(layer.bias.to(layer.weight.dtype), requires_grad=False)
            model.set_submodule(name, layer)
        for module in list(model.modules()):
            if parametrize.is_parametrized(module, "bias"):
                bias = module.bias.detach().clone()
                parametrize.remove_parametrizations(module, "bias", leave_parametrized=False)
                module.bias = nn.Parameter(bias, requires_grad=False)
        restore_experts(model)
        super().merge(model)

    def resume_state(self, model: nn.Module) -> Any:
        """Return the names of the layers that share an input; None before the first optimizer step."""
        return shared_inputs(adapted_layers(model), optimizer_steps())

    def load_resume_state(self, model: nn.Module, state: Any) -> None:
        share_inputs(adapted_layers(model), state)

    def export(self, folder: Path, model: nn.Module, base_name: str) -> None:
        write_adapter(folder, model, self, base_name)

    @classmethod
    def load_peft(cls, folder: Path, model: nn.Module) -> Any:
        adapter = cls(**lora_options(read_config(folder), model, folder))
        adapter.apply(model)
        adapter.read_peft(folder, model)
        return adapter

    def read_peft(self, folder: Path, model: nn.Module) -> None:
        try:
            load_adapter(folder, model, self)
        except UserError as error:
            raise UserError(str(error).removeprefix("model.adapter.init_from ")) from error

    @contextmanager
    def switched_off(self, model: nn.Module) -> Iterator[None]:
        """Put frozen A, zeros and the norms of W in the place of A, B and magnitudes inside the with block."""
        layers = list(adapted_layers(model).values())
        kept = [(layer, dict(layer._parameters), layer._prepared) for layer in layers]
        try:
            for layer in layers:
                layer._prepared = None  # a graph that was built before the block may hold it
                layer.lora_A = nn.Parameter(layer.lora_A.detach(), requires_grad=False)
                layer.lora_B = nn.Parameter(torch.zeros_like(layer.lora_B), requires_grad=False)
            for layer in layers:
                if layer.magnitude is not None:
                    layer.magnitude = nn.Parameter(layer.norm().detach().clone(), requires_grad=False)
            yield
        finally:
            for layer, parameters, prepared in kept:
                layer._parameters.update(parameters)
                layer._prepared = prepared

    def roles(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """Return the base class's roles; adapter weights are also what layers compute once per step, such as norms."""
        roles = super().roles(model)
        compiled = any(module._compiled_call_impl is not None for module in model.modules())  # computes all at use
        for layer in adapted_layers(model).values():
            roles["adapter_weights"] += layer.cached_tensors(make=not compiled)
        return roles

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Return the base class's description, `adapted_layers` and `not_adapted`.

        `adapted_layers`: last part of the layer name -> number of layers. `not_adapted`: see the function of this name.
        """
        counts = Counter(name.rpartition(".")[2] for name in adapted_layers(model))
        return super().describe(model) | {"adapted_layers": dict(counts), "not_adapted": not_adapted(model)}


def _compile_pattern(key: str) -> re.Pattern[str]:
    try:
        return suffix_regex(key)
    except re.error as error:
        raise UserError(f"model.adapter: the pattern {key!r} is not a regular expression: {error}.") from error


def _check_rank(name: str, layer: nn.Module, rank: int) -> None:
    """Raise a UserError if the rank is larger than both dimensions of the weight."""
    widths = [getattr(layer, side, None) for side in ("in_features", "out_features")]
    largest = max(widths) if None not in widths else max(len(layer.weight), layer.weight[0].numel())
    if rank > largest:
        raise UserError(
            f"model.adapter.rank {rank} is larger than both dimensions of {name}; give a rank of at most {largest}."
        )

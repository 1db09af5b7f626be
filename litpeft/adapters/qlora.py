"""QLoRA: LoRA or DoRA on a quantised (4-bit) base (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from litpeft.adapters.dora import DoRA
from litpeft.adapters.experts import StackedLinear, StackedLinear4bit, restore_experts, separate_experts
from litpeft.adapters.linear4bit import Linear4bit, quantisation_failure
from litpeft.adapters.lora import LoRA
from litpeft.adapters.quantised_loading import FourBitConfig, quantisable_layers
from litpeft.adapters.targets import PRESETS, suffix_pattern
from litpeft.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}


class Quantised:
    """Mixin that quantises the base to four bits; put it before the adapter class among the base classes.

    Linear and Conv1D layers are quantised one by one while the model is loaded, or in `apply` if the model is loaded
    already; the experts of a mixture too. Embeddings, norms, biases, tied weights and modules trained in full are not
    quantised.

    Args:
        quant_type: `nf4` (codes at the quantiles of a normal distribution) or `fp4` (4-bit floating-point numbers).
        double_quant: whether the quantisation constants are quantised too: 4.13 bits per number instead of 4.5.
        compute_dtype: dtype of products with dequantised weights; the model's dtype by default.
        skip: layers not to quantise: module-name suffixes and presets, as in `targets`.
        on_unavailable: if bitsandbytes cannot quantise here: stop with an `error`, or train on the unquantised base
            (`full_precision`) and say so in the run record.
        options: rank, alpha and the other options of the adapter.
    """

    def __init__(
        self,
        quant_type: Literal["nf4", "fp4"] = "nf4",
        double_quant: bool = True,
        compute_dtype: Literal["bf16", "fp32"] | None = None,
        skip: list[str] = ["head"],  # noqa: B006
        on_unavailable: Literal["error", "full_precision"] = "error",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.quant_type, self.double_quant, self.compute_dtype = quant_type, double_quant, compute_dtype
        self.skip, self.on_unavailable = skip, on_unavailable
        self.name = self.strategy_name({"quant_type": quant_type})
        self._not_quantised_because: str | None = None  # None: the base is quantised

    @classmethod
    def strategy_name(cls, options: dict[str, Any]) -> str:
        return f"{cls.name}-{options.get('quant_type', 'nf4')}"

    def loading(self, device: torch.device) -> dict[str, Any]:
        if not self._can_quantise(device):
            return {}
        config = FourBitConfig(
            options=self._layer_options, skip=self.skip, modules_to_save=self.modules_to_save, device=device
        )
        return {"quantization_config": config}

    def adapt(self, model: nn.Module) -> None:
        if self._can_quantise(next(model.parameters()).device):
            names = [name for name, _ in model.named_modules()]
            for end in self.skip:
                if end not in PRESETS and not any(map(suffix_pattern([end]).fullmatch, names)):
                    raise UserError(f"model.adapter.skip: {end!r} is no module of {type(model).__name__}.")
            separate_experts(model)
            for name in quantisable_layers(model, self.skip):
                layer = model.get_submodule(name)
                if not layer.weight.requires_grad:
                    model.set_submodule(name, _quantised(layer, self._layer_options))
            if not four_bit_layers(model):
                raise UserError(
                    f"model.adapter: {type(model).__name__} has no layer to quantise outside skip {self.skip}."
                )
        super().adapt(model)

    def disable_quantisation(self, reason: str) -> None:
        """Do not quantise the base; the run record gets the reason."""
        self._not_quantised_because = reason

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Merge the adapter, and replace the other four-bit layers by plain layers with dequantised weights."""
        super().merge(model)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, Linear4bit):
                model.set_submodule(name, layer.plain())
        restore_experts(model)

    def roles(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """Return the adapter's roles and `quantisation_constants`."""
        constants = [constant for layer in four_bit_layers(model) for constant in layer.stored[1:]]
        return super().roles(model) | {"quantisation_constants": constants}

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Return the adapter's description and the four-bit layers' counts and bytes, or why there are none."""
        layers = four_bit_layers(model)
        numbers = sum(layer.numbers for layer in layers)
        stored_bytes = sum(layer.stored_bytes for layer in layers)
        description = super().describe(model)
        return description | {
            "total_params": description["total_params"] + numbers,
            "quantised": {"layers": len(layers), "params": numbers, "bytes": stored_bytes},
            **({"not_quantised_because": self._not_quantised_because} if self._not_quantised_because else {}),
        }

    @property
    def _layer_options(self) -> dict[str, Any]:
        dtype = DTYPES[self.compute_dtype]
        return {"quant_type": self.quant_type, "double_quant": self.double_quant, "compute_dtype": dtype}

    def _can_quantise(self, device: torch.device) -> bool:
        if self._not_quantised_because is None and (reason := quantisation_failure(device)):
            if self.on_unavailable == "error":
                raise UserError(
                    f"bitsandbytes cannot quantise on {device.type} here: {reason}; to train on the unquantised base, "
                    "give --model.adapter.on_unavailable full_precision."
                )
            self.disable_quantisation(reason)
        return self._not_quantised_because is None


def _quantised(layer: nn.Module, options: dict[str, Any]) -> Linear4bit:
    if isinstance(layer, StackedLinear):
        return StackedLinear4bit(layer.weight, layer.transposed, **options)
    return Linear4bit.from_linear(layer, **options)


def four_bit_layers(model: nn.Module) -> list[Linear4bit]:
    """Return the four-bit layers of a model, with or without an adapter."""
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


class QLoRA(Quantised, LoRA):
    """LoRA on a quantised (4-bit) base; options as in `Quantised` and `LoRA`."""

    name = "qlora"


class QDoRA(Quantised, DoRA):
    """DoRA on a quantised (4-bit) base; options as in `Quantised` and `LoRA`."""

    name = "qdora"

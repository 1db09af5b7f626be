"""QLoRA: an adapter on a base held in four bits (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from litpeft.adapters.dora import DoRA
from litpeft.adapters.linear4bit import Linear4bit, cannot_quantise
from litpeft.adapters.lora import LoRA
from litpeft.adapters.quantised_loading import FourBitConfig, quantisable
from litpeft.adapters.targets import PRESETS, suffix_pattern
from litpeft.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}


class Quantised:
    """What turns an adapter into one on a four-bit base; it stands before the adapter among a class's parents.

    Linear and Conv1D layers are quantised while the model is read, one by one, or when the adapter is applied to a
    model that is there already. Embeddings, norms, biases, tied weights and what trains whole stay as they are.

    Args:
        quant_type: `nf4`, codes at the quantiles of a normal distribution, or `fp4`, small floating-point numbers.
        double_quant: whether the maxima of the blocks are quantised too: 4.13 bits a number instead of 4.5.
        compute_dtype: what products with dequantised weights are computed in; the model's dtype by default.
        skip: layers that stay as they are: module-name suffixes and presets, as in `targets`.
        on_unavailable: where bitsandbytes cannot quantise, an `error`, or `full_precision`, told in the record.
        options: rank, alpha and the rest, as in the adapter.
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
        self.name = self.named({"quant_type": quant_type})
        self._full_precision: str | None = None  # why nothing is quantised

    @classmethod
    def named(cls, options: dict[str, Any]) -> str:
        return f"{cls.name}-{options.get('quant_type', 'nf4')}"

    def loading(self, device: torch.device) -> dict[str, Any]:
        if not self._can_quantise(device):
            return {}
        config = FourBitConfig(options=self._layer_options, skip=self.skip, whole=self.modules_to_save, device=device)
        return {"quantization_config": config}

    def adapt(self, model: nn.Module) -> None:
        if self._can_quantise(next(model.parameters()).device):
            names = [name for name, _ in model.named_modules()]
            for end in self.skip:
                if end not in PRESETS and not any(map(suffix_pattern([end]).fullmatch, names)):
                    raise UserError(f"model.adapter.skip: {end!r} is no module of {type(model).__name__}.")
            for name in quantisable(model, self.skip):
                layer = model.get_submodule(name)
                if not layer.weight.requires_grad:
                    model.set_submodule(name, Linear4bit.of(layer, **self._layer_options))
            if not four_bit_layers(model):
                raise UserError(
                    f"model.adapter: nothing to quantise in {type(model).__name__} beside skip {self.skip}."
                )
        super().adapt(model)

    def in_full_precision(self, reason: str) -> None:
        """From now on nothing is quantised; the reason goes into the record."""
        self._full_precision = reason

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """As the adapter's; four-bit layers without one become plain as well, with their dequantised weights."""
        super().merge(model)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, Linear4bit):
                model.set_submodule(name, layer.plain())

    def roles(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """As the adapter's, and `quantisation_constants`."""
        constants = [constant for layer in four_bit_layers(model) for constant in layer.held[1:]]
        return super().roles(model) | {"quantisation_constants": constants}

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """As the adapter's, and `quantised`: layers, numbers and bytes held in four bits, or why there are none."""
        layers = four_bit_layers(model)
        numbers = sum(layer.in_features * layer.out_features for layer in layers)
        told = super().describe(model)
        return told | {
            "total_params": told["total_params"] + numbers,
            "quantised": {"layers": len(layers), "params": numbers, "bytes": sum(layer.held_bytes for layer in layers)},
            **({"not_quantised_because": self._full_precision} if self._full_precision else {}),
        }

    @property
    def _layer_options(self) -> dict[str, Any]:
        dtype = DTYPES[self.compute_dtype]
        return {"quant_type": self.quant_type, "double_quant": self.double_quant, "compute_dtype": dtype}

    def _can_quantise(self, device: torch.device) -> bool:
        if self._full_precision is None and (reason := cannot_quantise(device)):
            if self.on_unavailable == "error":
                raise UserError(
                    f"bitsandbytes cannot quantise on {device.type} here: {reason}; to train on the base as it is, "
                    "give --model.adapter.on_unavailable full_precision."
                )
            self.in_full_precision(reason)
        return self._full_precision is None


def four_bit_layers(model: nn.Module) -> list[Linear4bit]:
    """The four-bit layers of a model, adapted or not."""
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


class QLoRA(Quantised, LoRA):
    """LoRA on a four-bit base; options as in `Quantised` and `LoRA`."""

    name = "qlora"


class QDoRA(Quantised, DoRA):
    """DoRA on a four-bit base; options as in `Quantised` and `LoRA`."""

    name = "qdora"

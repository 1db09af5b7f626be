"""Quantise a transformers model while it is loaded, weight by weight: the full model is never in memory unquantised."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from litpeft.adapters.experts import StackedLinear, expert_weights, separate_experts
from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.adapters.quantised_model import forget_quantiser
from litpeft.adapters.targets import layer_type, suffix_pattern

METHOD = "litpeft"


class MakesLayers(Protocol):
    """What the loader needs from a base (`litpeft.adapters.bases`)."""

    def quantised(self, weight: Tensor, transposed: bool) -> QuantisedLinear:
        """Return the quantised layer, without a bias, for a weight (out, in)."""

    def quantised_experts(self, weight: Tensor, transposed: bool) -> QuantisedLinear:
        """Return the quantised layers of the experts of a mixture for a weight (E, out, in), or (E, in, out)."""


def quantisable_layers(model: nn.Module, skip: Sequence[str], modules_to_save: Sequence[str] = ()) -> list[str]:
    """Return the names of the linear layers to quantise: not skipped, not to be trained, not tied to another layer.

    Stacked weights of experts are among them, as parameters or, after `separate_experts`, as modules.

    Args:
        model: the model, with weights or on the meta device.
        skip: module-name suffixes and presets: neither these layers nor those inside these modules are quantised.
        modules_to_save: name suffixes of modules trained in full: no layer inside them is quantised.
    """
    skipped = suffix_pattern(skip)
    trained_in_full = [*_head(model), *modules_to_save]
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    # meta tensors are not tied yet, so that `uses` does not find them
    tied = {key for pair in getattr(model, "all_tied_weights_keys", {}).items() for key in pair}
    linear = [
        name
        for name, module in model.named_modules()
        if layer_type(module) in (nn.Linear, Conv1D, StackedLinear)
        and uses[id(module.weight)] == 1
        and f"{name}.weight" not in tied
    ]
    stacked = [f"{name}.{leaf}" for name, _, leaves in expert_weights(model) for leaf in leaves]
    return [
        name
        for name in linear + stacked
        if not any(map(skipped.fullmatch, itertools.accumulate(name.split("."), "{}.{}".format)))
        and not any(f".{part}." in f".{name}." for part in trained_in_full)
    ]


def _head(model: nn.Module) -> list[str]:
    """Return the modules outside the base of a transformers model, except the output embedding: they are trained."""
    base = getattr(model, "base_model_prefix", "")
    if not hasattr(model, base or " "):
        return []
    return [
        name for name, child in model.named_children() if name != base and child is not model.get_output_embeddings()
    ]


@dataclass(kw_only=True)
class QuantisingConfig(QuantizationConfigMixin):
    """The `quantization_config` that `from_pretrained` gets.

    Args:
        base: makes the quantised layers.
        skip: as in `quantisable_layers`.
        modules_to_save: as in `quantisable_layers`.
        device: device to quantise on; the quantised weights stay there.
    """

    base: MakesLayers
    skip: Sequence[str] = ()
    modules_to_save: Sequence[str] = ()
    device: torch.device
    quant_method: str = METHOD  # transformers finds QuantisingLoader by this name


class QuantisingLoader(HfQuantizer):
    """Quantises each weight when it is read, and removes transformers' quantisation flags from the loaded model."""

    requires_calibration = False
    quantization_config: QuantisingConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        self.mismatches: list[str] = []
        config = self.quantization_config
        self.names = set(quantisable_layers(model, config.skip, config.modules_to_save))

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        module, _, parameter = param_name.rpartition(".")
        return (parameter == "weight" and module in self.names) or param_name in self.names

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self.quantization_config, self.mismatches)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
        """Insert the quantised layers; a newly initialised weight was not quantised, and its layer stays."""
        if self.mismatches:
            raise ValueError(self.mismatches[0])
        separate_experts(model)
        for name in self.names:
            layer = model.get_submodule(name)
            if isinstance(layer.weight, _Packed):
                new = layer.weight.layer
                new.bias = getattr(layer, "bias", None)
                model.set_submodule(name, new)
        for parameter in model.parameters():  # a view would keep the whole memory-mapped file alive
            if parameter.untyped_storage().nbytes() > parameter.nbytes:
                parameter.data = parameter.data.clone()
        forget_quantiser(model)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Packed(nn.Parameter):
    """Placeholder of a quantised weight during loading, since transformers sets parameters, not layers."""

    layer: QuantisedLinear


class _Quantise(ConversionOps):
    def __init__(self, config: QuantisingConfig, mismatches: list[str]) -> None:
        self.config = config
        self.mismatches = mismatches  # collected, because transformers drops the text of an exception raised here

    def convert(self, input_dict: dict[str, Any], model: nn.Module, **_: Any) -> dict[str, Tensor]:
        packed = {}
        for name, value in input_dict.items():
            value = value[0] if isinstance(value, list) else value
            expected = model.get_parameter(name).shape
            if value.shape != expected:
                self.mismatches.append(
                    f"{name} has the shape {tuple(value.shape)} in the file, but {tuple(expected)} in the model"
                )
            module = model.get_submodule(name.rpartition(".")[0])
            if name.endswith(".weight"):
                transposed = isinstance(module, Conv1D)
                matrix = (value.T if transposed else value).to(self.config.device)
                layer = self.config.base.quantised(matrix, transposed)
            else:
                layer = self.config.base.quantised_experts(value.to(self.config.device), module.is_transposed)
            packed[name] = _Packed(layer.held()[0], requires_grad=False)
            packed[name].layer = layer
        return packed


register_quantization_config(METHOD)(QuantisingConfig)
register_quantizer(METHOD)(QuantisingLoader)

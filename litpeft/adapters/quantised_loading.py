"""Quantise a model of transformers while it is read: each weight as it comes from the file, never all of them whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from litpeft.adapters.linear4bit import Linear4bit
from litpeft.adapters.targets import suffix_pattern

METHOD = "litpeft_4bit"


def quantisable(model: nn.Module, skip: Sequence[str], whole: Sequence[str] = ()) -> list[str]:
    """Names of the linear layers that can be held in four bits: not skipped, not to be trained, not tied to another.

    Args:
        model: the model, with weights or on the meta device.
        skip: suffixes and presets of what stays as it is.
        whole: ends of names of modules that stay with all that is in them.
    """
    stays = suffix_pattern(skip)
    inside = [*_head(model), *whole]
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    tied = {key for pair in getattr(model, "all_tied_weights_keys", {}).items() for key in pair}  # not tied yet on meta
    return [
        name
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D)
        and not stays.fullmatch(name)
        and not any(f".{part}." in f".{name}." for part in inside)
        and uses[id(module.weight)] == 1
        and f"{name}.weight" not in tied
    ]


def _head(model: nn.Module) -> list[str]:
    """What stands outside the base of a model of transformers, and is no output embedding: it trains whole."""
    base = getattr(model, "base_model_prefix", "")
    if not hasattr(model, base or " "):
        return []
    return [
        name for name, child in model.named_children() if name != base and child is not model.get_output_embeddings()
    ]


@dataclass(kw_only=True)
class FourBitConfig(QuantizationConfigMixin):
    """What `from_pretrained` is given as `quantization_config`.

    Args:
        options: of `Linear4bit`.
        skip: as in `quantisable`.
        whole: likewise.
        device: where to quantise, and where the quantised weights stay.
    """

    options: dict[str, Any] = field(default_factory=dict)
    skip: Sequence[str] = ()
    whole: Sequence[str] = ()
    device: torch.device
    quant_method: str = METHOD  # by which transformers finds the loader below


class FourBitLoader(HfQuantizer):
    """Quantises each weight as it is read; afterwards the model knows nothing of it, but for the layers' class."""

    requires_calibration = False
    quantization_config: FourBitConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        self.misfits: list[str] = []
        self.names = set(quantisable(model, self.quantization_config.skip, self.quantization_config.whole))

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        module, _, parameter = param_name.rpartition(".")
        return parameter == "weight" and module in self.names

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self.quantization_config, self.misfits)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
        """Put in the layers; a weight that no file held was not quantised, and its layer stays."""
        if self.misfits:
            raise ValueError(self.misfits[0])
        for name in self.names:
            layer = model.get_submodule(name)
            if isinstance(layer.weight, _Packed):
                new = layer.weight.layer
                new.bias = layer.bias
                model.set_submodule(name, new)
        for parameter in model.parameters():  # views of the mapped file, and would keep all of it in memory
            if parameter.untyped_storage().nbytes() > parameter.nbytes:
                parameter.data = parameter.data.clone()
        del model.config.quantization_config, model.hf_quantizer, model.quantization_method
        model.is_quantized = False  # or it would refuse to be cast and saved
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "_is_quantized"):
                del module.config._is_quantized

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Packed(nn.Parameter):
    """Stands for a quantised weight while the rest is read, since transformers sets parameters and not layers."""

    layer: Linear4bit


class _Quantise(ConversionOps):
    def __init__(self, config: FourBitConfig, misfits: list[str]) -> None:
        self.config = config
        self.misfits = misfits  # transformers would make a report of an exception, without its text

    def convert(self, input_dict: dict[str, Any], model: nn.Module, **_: Any) -> dict[str, Tensor]:
        packed = {}
        for name, value in input_dict.items():
            value = value[0] if isinstance(value, list) else value
            expected = model.get_parameter(name).shape
            if value.shape != expected:
                self.misfits.append(
                    f"{name} has the shape {tuple(value.shape)} in the file, but {tuple(expected)} here"
                )
            module = model.get_submodule(name.rpartition(".")[0])
            transposed = isinstance(module, Conv1D)
            matrix = (value.T if transposed else value).to(self.config.device)
            layer = Linear4bit(matrix, None, transposed=transposed, **self.config.options)
            packed[name] = _Packed(layer.codes, requires_grad=False)
            packed[name].layer = layer
        return packed


register_quantization_config(METHOD)(FourBitConfig)
register_quantizer(METHOD)(FourBitLoader)

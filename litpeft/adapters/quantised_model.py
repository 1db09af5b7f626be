"""The quantised layers of a model: find them, take them over from other packages, and replace them by plain layers."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.experts import restore_experts
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.adapters.linear8bit import Linear8bit
from litpeft.adapters.packaged_linear import PackagedLinear, dequantiser, quantises_inputs
from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.errors import UserError

OF_BITSANDBYTES = "bitsandbytes.nn.modules"  # module of its layers


def quantised_layers(model: nn.Module) -> list[QuantisedLinear]:
    """Return the quantised layers of a model, with or without an adapter."""
    return [module for module in model.modules() if isinstance(module, QuantisedLinear)]


def quantisation_name(model: nn.Module) -> str | None:
    """Return how the quantised layers are held, such as nf4, int8 or torchao; None if no layer is quantised."""
    names = {layer.kind for layer in quantised_layers(model)}
    return ", ".join(sorted(names)) or None


def adopt_quantised_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace layers that other packages have quantised by litpeft's layers with the same codes, in place.

    Args:
        model: a model that the user or transformers has quantised.
        dtype: dtype of the model.

    Raises:
        UserError: a package has quantised the model into layers that litpeft cannot dequantise.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    for name, layer in list(model.named_modules()):
        kind = type(layer).__name__ if type(layer).__module__ == OF_BITSANDBYTES else None
        if kind == "Linear4bit":
            model.set_submodule(name, Linear4bit.from_bitsandbytes(layer))
        elif kind == "Linear8bitLt" and not layer.state.has_fp16_weights:
            model.set_submodule(name, Linear8bit.from_bitsandbytes(layer, dtype))
        elif dequantiser(layer) is not None:
            if quantises_inputs(layer):
                raise UserError(
                    f"model.base: {name} quantises its input too, which litpeft does not train with; "
                    "give a configuration that quantises weights only."
                )
            model.set_submodule(name, PackagedLinear.from_package(layer, dtype))
    if quantiser is None:
        return
    if not quantised_layers(model):
        method = getattr(quantiser.quantization_config, "quant_method", "its package")
        raise cannot_dequantise(getattr(method, "value", method))
    forget_quantiser(model)


def cannot_dequantise(package: str) -> UserError:
    """Return the error of a base whose layers litpeft cannot dequantise."""
    return UserError(
        f"model.base: litpeft cannot dequantise the layers of {package}, so no gradient can pass through them; "
        "give nf4, fp4, int8, or a configuration of HQQ, torchao or quanto."
    )


def forget_quantiser(model: nn.Module) -> None:
    """Remove transformers' marks of a quantised model, with which it refuses to cast and save the model."""
    for part in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        vars(part).pop("quantization_config", None)
    for mark in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(mark, None)
    model.is_quantized = False
    if conversions := getattr(model, "_weight_conversions", None):  # applied in reverse when the model is saved
        model._weight_conversions = [each for each in conversions if not _quantises(each)]
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_is_quantized"):
            del module.config._is_quantized


def _quantises(conversion: object) -> bool:
    """Return whether a conversion of transformers' loading reads weights as a quantisation package stores them."""
    operations = getattr(conversion, "operations", None) or ()  # a renaming has none
    return any(type(operation).__module__.startswith("transformers.integrations.") for operation in operations)


@torch.no_grad()
def dequantise_layers(model: nn.Module, as_linear: bool = False) -> list[str]:
    """Replace the quantised layers by plain layers with the dequantised weights, in place.

    Args:
        model: the model.
        as_linear: put nn.Linear also where the model had a Conv1D.

    Returns:
        The names of the layers that the model had as Conv1D.
    """
    transposed = []
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantisedLinear):
            if type(layer).__name__ != "StackedLinear4bit" and layer.transposed:
                transposed.append(name)
                layer.transposed = not as_linear
            model.set_submodule(name, layer.plain())
    restore_experts(model)
    return transposed


def to_conv1d(layer: nn.Linear) -> Conv1D:
    """Return a linear layer as the Conv1D of transformers."""
    with torch.device("meta"):
        new = Conv1D(layer.out_features, layer.in_features)
    new.weight, new.bias = nn.Parameter(layer.weight.T.contiguous(), requires_grad=False), layer.bias
    return new

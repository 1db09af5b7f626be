"""Write and read adapters in the PEFT format: `adapter_config.json` and `adapter_model.safetensors`.

The tensors of a layer P are `base_model.model.P.lora_A.weight` and so on; names and shapes of each layer type are
described in https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from litpeft.adapters.base import trainable
from litpeft.adapters.layers import (
    AdaptedConv1D,
    AdaptedConvolution,
    AdaptedEmbedding,
    AdaptedLayer,
    AdaptedStackedLinear,
    adapted_layers,
)
from litpeft.adapters.new_tokens import PEFT_NAME, new_token_indices, same_tokens
from litpeft.adapters.peft_config import CONFIG, PREFIX, task_type, without_base_weights
from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.adapters.targets import value_for_name
from litpeft.errors import UserError

TENSORS = "adapter_model.safetensors"
UNSUPPORTED = (  # options of PEFT that change what a layer computes, and that litpeft does not implement
    *("lora_bias", "layer_replication", "alora_invocation_tokens"),
    *("use_qalora", "use_bdlora", "velora_config", "monteclora_config", "kasa_config", "arrow_config"),
)


class LowRankAdapter(Protocol):
    """The options of LoRA and DoRA that the PEFT format stores once for all layers."""

    rslora: bool
    magnitude: bool
    dropout: float
    bias: str


def write_adapter(folder: Path, model: nn.Module, adapter: LowRankAdapter, base_name: str) -> None:
    """Write the trained parameters, so that `PeftModel.from_pretrained(base, folder)` gives the same outputs.

    Args:
        folder: an empty folder.
        model: the model with the adapter.
        adapter: the adapter's options.
        base_name: hub id or folder of the base model.

    Raises:
        UserError: PEFT computes one of the layers differently.
    """
    layers = adapted_layers(model)
    for name, layer in layers.items():
        if isinstance(layer, AdaptedConvolution) and (set(layer.dilation) != {1} or layer.padding_mode != "zeros"):
            raise UserError(f"PEFT ignores the dilation and padding mode of {name}; give --format merged.")
        if isinstance(layer, AdaptedConvolution) and layer.groups > 1 and layer.magnitude is not None:
            raise UserError(
                f"PEFT's DoRA computes the norm of the grouped convolution {name} differently; give --format merged."
            )
    experts = [name for name, layer in layers.items() if isinstance(layer, AdaptedStackedLinear)]
    if experts and adapter.magnitude:
        raise UserError(f"PEFT has no DoRA for the experts of a mixture, such as {experts[0]}; give --format merged.")
    trained_in_full = _modules_trained_in_full(model)
    for saved in trained_in_full:  # PEFT compares the end of a name, even in the middle of a part
        for name, _ in model.named_modules():
            if name.endswith(saved) and name not in trained_in_full:
                raise UserError(f"PEFT would load the trained {saved} into {name} too; give --format merged.")
    tensors = {PREFIX + theirs: _to_peft(layers, name, p.detach()) for name, (theirs, p) in _names(model).items()}
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, str(folder / TENSORS), {"format": "pt"})
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: _alpha(layer, adapter.rslora) for name, layer in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "task_type": task_type(model, bool(trained_in_full)),
        "base_model_name_or_path": base_name,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_only(name, layers): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {_only(name, layers): value for name, value in alphas.items() if value != alpha},
        "use_rslora": adapter.rslora,
        "use_dora": adapter.magnitude,
        "lora_dropout": 0.0 if experts else adapter.dropout,  # PEFT refuses dropout for experts
        "bias": adapter.bias,
        "fan_in_fan_out": any(isinstance(layer, AdaptedConv1D) for layer in layers.values()),
        "target_modules": [name for name in layers if name not in experts],
        "target_parameters": experts or None,
        "modules_to_save": trained_in_full or None,
        "trainable_token_indices": new_token_indices(model) or None,
        "init_lora_weights": True,  # other values would change the base when PEFT loads the adapter
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(folder: Path, model: nn.Module, adapter: LowRankAdapter) -> None:
    """Copy the tensors of a PEFT adapter into a model with the same adapter.

    Modules trained in full (a head) are loaded if the folder has them; otherwise they keep their initial values.

    Raises:
        UserError: the folder cannot be read, or rank, scaling, layers or adapter type differ.
    """
    config, found = _read(folder)
    try:
        _copy(folder, config, without_base_weights(found, model), model, adapter)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise _mismatch(folder, f"its {CONFIG} has a value that PEFT does not write ({error})") from error


def _copy(
    folder: Path, config: dict[str, Any], found: dict[str, Tensor], model: nn.Module, adapter: LowRankAdapter
) -> None:
    layers = adapted_layers(model)
    if config.get("peft_type") != "LORA":
        raise _mismatch(folder, f"its type is {config.get('peft_type')}, not LORA")
    if unsupported := [name for name in UNSUPPORTED if config.get(name)]:
        raise _mismatch(folder, f"its option {unsupported[0]} is not supported")
    if (tokens := config.get("trainable_token_indices")) and not same_tokens(tokens, model):
        raise _mismatch(folder, "it trains the rows of other tokens (trainable_token_indices)")
    init = str(config.get("init_lora_weights", True))
    if init.startswith(("pissa", "olora", "loftq", "corda", "lora_ga")):
        raise _mismatch(folder, f"init_lora_weights is {init}, so PEFT changed the weights of the base before training")
    if bool(config.get("use_dora")) != adapter.magnitude:
        raise _mismatch(folder, f"it is {'' if config.get('use_dora') else 'not '}a DoRA adapter")
    for name, layer in layers.items():
        rank, scaling = _rank_and_scaling(config, name)
        if rank != layer.rank:
            raise _mismatch(folder, f"{name} has rank {rank}, not {layer.rank}; set rank or rank_pattern")
        if not math.isclose(scaling, layer.scaling, rel_tol=1e-6):
            raise _mismatch(folder, f"{name} has scaling {scaling:g}, not {layer.scaling:g}; set alpha or rslora")
    expected = {PREFIX + theirs: (name, parameter) for name, (theirs, parameter) in _names(model).items()}
    in_full = {key for key, (name, _) in expected.items() if name.rpartition(".")[0] not in layers}
    missing = expected.keys() - found.keys() - (in_full if not in_full & found.keys() else set())
    unexpected = found.keys() - expected.keys()
    for kind, names in (("lacks {} tensors", missing), ("has {} unexpected tensors", unexpected)):
        if names:
            kind = kind.format(len(names))
            raise _mismatch(folder, f"it {kind} ({min(names)}, ...); set targets, layers or bias")
    values = {}
    for key in expected.keys() & found.keys():
        name, parameter = expected[key]
        values[key] = _from_peft(layers, name, found[key], folder)
        if values[key].shape != parameter.shape:
            raise _mismatch(folder, f"{key} has the shape {tuple(found[key].shape)}, not that of {name}")
        if not values[key].isfinite().all():
            raise _mismatch(folder, f"{key} has NaN or infinite values")
    with torch.no_grad():
        for key, value in values.items():
            expected[key][1].copy_(value)


def _names(model: nn.Module) -> dict[str, tuple[str, nn.Parameter]]:
    """Return a dict from trainable parameter name to (its PEFT name without the prefix, the parameter)."""
    layers = adapted_layers(model)
    names = {}
    for name, parameter in trainable(model).items():
        module, _, leaf = name.replace(".parametrizations.bias.original", ".bias").rpartition(".")
        layer = layers.get(module)
        if isinstance(layer, AdaptedStackedLinear):
            theirs = f"{_wrapper_of_experts(list(layers), module)}.{leaf}.weight"
        elif layer is None:
            theirs = f"{module}.{PEFT_NAME if leaf == 'new_tokens' else leaf}"
        elif leaf == "bias":
            theirs = f"{module}.base_layer.bias"
        elif leaf == "magnitude":
            theirs = f"{module}.lora_magnitude_vector"
        elif isinstance(layer, AdaptedEmbedding):
            theirs = f"{module}.{leaf.replace('lora_', 'lora_embedding_')}"
        else:
            theirs = f"{module}.{leaf}.weight"
        names[name] = theirs, parameter
    return names


def _wrapper_of_experts(adapted: list[str], name: str) -> str:
    """Return PEFT's name of the module that holds A and B of a stacked weight.

    PEFT wraps the module with the experts once per adapted weight, so that the last weight has the outermost wrapper.
    """
    parent = name.rpartition(".")[0]
    siblings = [other for other in adapted if other.rpartition(".")[0] == parent]
    return parent + ".base_layer" * (len(siblings) - 1 - siblings.index(name))


def _to_peft(layers: dict[str, AdaptedLayer], name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in PEFT's shape.

    For convolutions, the magnitude is (1, out, 1, 1) or (1, out, 1) and A has no groups.
    For experts, B is (out, r E) with r before E.
    """
    module, _, leaf = name.rpartition(".")
    layer = layers.get(module)
    if isinstance(layer, AdaptedStackedLinear) and leaf == "lora_B":
        return tensor.unflatten(0, (layer.groups, -1)).permute(1, 2, 0).flatten(1)
    if not isinstance(layer, AdaptedConvolution):
        return tensor
    if leaf == "magnitude":
        return tensor.view(1, -1, *[1] * len(layer.kernel_size))
    if leaf != "lora_A" or layer.groups == 1:
        return tensor
    width = tensor.shape[1]
    ungrouped = tensor.new_zeros(layer.rank, layer.in_channels, *tensor.shape[2:])
    for group, part in enumerate(tensor.chunk(layer.groups)):
        rows = slice(group * len(part), (group + 1) * len(part))
        ungrouped[rows, group * width : (group + 1) * width] = part
    return ungrouped


def _from_peft(layers: dict[str, AdaptedLayer], name: str, tensor: Tensor, folder: Path) -> Tensor:
    """Undo `_to_peft`."""
    module, _, leaf = name.rpartition(".")
    layer = layers.get(module)
    if isinstance(layer, AdaptedStackedLinear) and leaf == "lora_B":
        return tensor.unflatten(1, (-1, layer.groups)).permute(2, 0, 1).flatten(0, 1)
    if isinstance(layer, AdaptedConvolution) and leaf == "magnitude":
        return tensor.flatten()
    if not isinstance(layer, AdaptedConvolution) or leaf != "lora_A" or layer.groups == 1:
        return tensor
    width = layer.in_channels // layer.groups
    blocks = [rows[:, g * width : (g + 1) * width] for g, rows in enumerate(tensor.chunk(layer.groups))]
    grouped = torch.cat(blocks)
    if not torch.equal(_to_peft(layers, name, grouped), tensor):
        raise _mismatch(folder, f"A of {module} connects different groups of the convolution, so it cannot be merged")
    return grouped


def _modules_trained_in_full(model: nn.Module) -> list[str]:
    """Return the largest modules that are trained in full: PEFT's `modules_to_save`.

    A module that contains an adapted or quantised layer is not trained in full, even if all its parameters are trained:
    quantised weights are buffers.
    """
    layers = adapted_layers(model)
    quantised = [name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)]
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters())
        if any(part.startswith(f"{name}.") for part in [*layers, *quantised]):
            continue
        inside = any(f"{name}.".startswith(f"{part}.") for part in [*found, *layers])
        only_biases = all(leaf.endswith("bias") for leaf in parameters)
        if name and not only_biases and all(p.requires_grad for p in parameters.values()) and not inside:
            found.append(name)
    return found


def _only(name: str, names: Iterable[str]) -> str:
    """Return an expression for PEFT's patterns, which match the end of a name, that matches this one of the names."""
    is_end = any(other.endswith(f".{name}") for other in names)
    return f"{'^' if is_end else ''}{re.escape(name)}"


def _alpha(layer: AdaptedLayer, rslora: bool) -> float:
    alpha = round(layer.scaling * (math.sqrt(layer.rank) if rslora else layer.rank), 9)
    return int(alpha) if alpha == int(alpha) else alpha


def _rank_and_scaling(config: dict[str, Any], name: str) -> tuple[int, float]:
    rank = value_for_name(config.get("rank_pattern") or {}, name, config.get("r", 8))
    alpha = value_for_name(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", 8))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    option = f"model.adapter.init_from {folder}"
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise UserError(f"{option}: there is no {name}; give the folder of an adapter that PEFT has saved.")
    try:
        config, found = json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / TENSORS)
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{option} cannot be read, it may be damaged: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{option}: {CONFIG} is not a JSON object.")
    # with bias: all, PEFT saves the biases of a head three times
    return config, {
        name: t for name, t in found.items() if not re.search(r"\.(original_module|modules_to_save)\.", name)
    }


def _mismatch(folder: Path, reason: str) -> UserError:
    return UserError(f"model.adapter.init_from {folder} does not fit: {reason}.")

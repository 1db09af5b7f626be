"""Adapters on disk as PEFT has them, `adapter_config.json` and `adapter_model.safetensors`: written and read.

A layer P's tensors are `base_model.model.P.lora_A.weight` and so on; names and shapes by kind of layer in
https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from litpeft.adapters.base import trainable
from litpeft.adapters.layers import AdaptedConv1D, AdaptedConv2d, AdaptedEmbedding, AdaptedLayer, adapted_layers
from litpeft.adapters.targets import by_pattern
from litpeft.errors import UserError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TASKS = {  # end of a model's class name -> PEFT's name of the task
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
FOREIGN = (  # options of PEFT that change what a layer computes, and that no layer here has
    *("lora_bias", "target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens"),
    *("use_qalora", "use_bdlora", "velora_config", "monteclora_config", "kasa_config", "arrow_config"),
)


class LowRankAdapter(Protocol):
    """The options of LoRA or DoRA that the PEFT format stores for all layers together."""

    rslora: bool
    magnitude: bool
    dropout: float
    bias: str


def write_adapter(folder: Path, model: nn.Module, adapter: LowRankAdapter, base_name: str) -> None:
    """Write what was trained, so that `PeftModel.from_pretrained(base, folder)` computes the same.

    Args:
        folder: an empty folder.
        model: the model with the adapter in it.
        adapter: the adapter.
        base_name: hub id or folder of the base.

    Raises:
        UserError: PEFT has no such layer.
    """
    layers = adapted_layers(model)
    for name, layer in layers.items():
        if isinstance(layer, AdaptedConv2d) and (layer.dilation != (1, 1) or layer.padding_mode != "zeros"):
            raise UserError(f"PEFT's adapters ignore dilation and padding mode of {name}; give --format merged.")
        if isinstance(layer, AdaptedConv2d) and layer.groups > 1 and layer.magnitude is not None:
            raise UserError(f"PEFT's DoRA measures the groups of {name} otherwise; give --format merged.")
    whole = _whole_modules(model)
    for saved in whole:  # PEFT asks whether a name ends so, whole part or not
        for name, _ in model.named_modules():
            if name.endswith(saved) and name not in whole:
                raise UserError(f"PEFT would take {name} for the saved {saved}; give --format merged.")
    tensors = {PREFIX + foreign: _to_peft(layers, own, p.detach()) for own, (foreign, p) in _names(model).items()}
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, str(folder / TENSORS), {"format": "pt"})
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: _alpha(layer, adapter.rslora) for name, layer in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "task_type": next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None),
        "base_model_name_or_path": base_name,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items() if value != alpha},
        "use_rslora": adapter.rslora,
        "use_dora": adapter.magnitude,
        "lora_dropout": adapter.dropout,
        "bias": adapter.bias,
        "fan_in_fan_out": any(isinstance(layer, AdaptedConv1D) for layer in layers.values()),
        "target_modules": list(layers),
        "modules_to_save": whole or None,
        "init_lora_weights": True,  # anything else would change the base when it is loaded
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(folder: Path, model: nn.Module, adapter: LowRankAdapter) -> None:
    """Copy a PEFT adapter's tensors into an adapted model, if they fit one by one.

    Tensors that train whole (a head) are taken where the folder has them; where it has none, they start as they are.

    Raises:
        UserError: the folder cannot be read, or rank, scaling, layers, or the kind of adapter differ.
    """
    config, found = _read(folder)
    try:
        _copy(folder, config, found, model, adapter)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise _misfit(folder, f"its {CONFIG} holds what PEFT does not write ({error})") from error


def _copy(
    folder: Path, config: dict[str, Any], found: dict[str, Tensor], model: nn.Module, adapter: LowRankAdapter
) -> None:
    layers = adapted_layers(model)
    if config.get("peft_type") != "LORA":
        raise _misfit(folder, f"it is of the type {config.get('peft_type')}, not LORA")
    if foreign := [name for name in FOREIGN if config.get(name)]:
        raise _misfit(folder, f"it was made with {foreign[0]}, which changes what a layer computes")
    init = str(config.get("init_lora_weights", True))
    if init.startswith(("pissa", "olora", "loftq", "corda", "lora_ga")):
        raise _misfit(folder, f"init_lora_weights is {init}: PEFT changed the base under it when it was begun")
    if bool(config.get("use_dora")) != adapter.magnitude:
        raise _misfit(folder, f"it is {'' if config.get('use_dora') else 'not '}DoRA's")
    for name, layer in layers.items():
        rank, scaling = _rank_and_scaling(config, name)
        if rank != layer.rank:
            raise _misfit(folder, f"{name} has rank {rank} there and {layer.rank} here; set rank or rank_pattern")
        if not math.isclose(scaling, layer.scaling, rel_tol=1e-6):
            raise _misfit(
                folder, f"{name} is scaled by {scaling:g} there and {layer.scaling:g} here; set alpha or rslora"
            )
    wanted = {PREFIX + foreign: (own, parameter) for own, (foreign, parameter) in _names(model).items()}
    whole = {key for key, (own, _) in wanted.items() if not _adapters_own(layers, own)}
    missing = wanted.keys() - found.keys() - (whole if not whole & found.keys() else set())
    for kind, names in (("lacks", missing), ("has, and this adapter has not,", found.keys() - wanted.keys())):
        if names:
            raise _misfit(folder, f"it {kind} {len(names)} tensors ({min(names)}, ...); set targets, layers or bias")
    values = {}
    for key in wanted.keys() & found.keys():
        own, parameter = wanted[key]
        values[own] = _from_peft(layers, own, found[key], folder)
        if values[own].shape != parameter.shape:
            raise _misfit(folder, f"{key} has the shape {tuple(found[key].shape)}, not that of {own}")
        if not values[own].isfinite().all():
            raise _misfit(folder, f"{key} holds numbers that are not finite")
    with torch.no_grad():
        for key, (own, parameter) in wanted.items():
            if key in found:
                parameter.copy_(values[own])


def _names(model: nn.Module) -> dict[str, tuple[str, nn.Parameter]]:
    """Our name of each trainable tensor -> PEFT's without the prefix, and the tensor."""
    layers = adapted_layers(model)
    names = {}
    for own, parameter in trainable(model).items():
        module, _, leaf = own.replace(".parametrizations.bias.original", ".bias").rpartition(".")
        layer = layers.get(module)
        if layer is None:
            foreign = f"{module}.{leaf}"
        elif leaf == "bias":
            foreign = f"{module}.base_layer.bias"
        elif leaf == "magnitude":
            foreign = f"{module}.lora_magnitude_vector"
        elif isinstance(layer, AdaptedEmbedding):
            foreign = f"{module}.{leaf.replace('lora_', 'lora_embedding_')}"
        else:
            foreign = f"{module}.{leaf}.weight"
        names[own] = foreign, parameter
    return names


def _adapters_own(layers: dict[str, AdaptedLayer], own: str) -> bool:
    return own.rpartition(".")[0] in layers


def _to_peft(layers: dict[str, AdaptedLayer], own: str, tensor: Tensor) -> Tensor:
    """The tensor in PEFT's shape: a convolution's magnitude is (1, out, 1, 1), and its A sees all channels."""
    module, _, leaf = own.rpartition(".")
    layer = layers.get(module)
    if not isinstance(layer, AdaptedConv2d):
        return tensor
    if leaf == "magnitude":
        return tensor[None, :, None, None]
    if leaf != "lora_A" or layer.groups == 1:
        return tensor
    width = tensor.shape[1]
    wide = tensor.new_zeros(layer.rank, layer.in_channels, *tensor.shape[2:])
    for group, inside in enumerate(tensor.chunk(layer.groups)):
        rows = slice(group * len(inside), (group + 1) * len(inside))
        wide[rows, group * width : (group + 1) * width] = inside
    return wide


def _from_peft(layers: dict[str, AdaptedLayer], own: str, tensor: Tensor, folder: Path) -> Tensor:
    module, _, leaf = own.rpartition(".")
    layer = layers.get(module)
    if isinstance(layer, AdaptedConv2d) and leaf == "magnitude":
        return tensor.flatten()
    if not isinstance(layer, AdaptedConv2d) or leaf != "lora_A" or layer.groups == 1:
        return tensor
    width = layer.in_channels // layer.groups
    blocks = [rows[:, g * width : (g + 1) * width] for g, rows in enumerate(tensor.chunk(layer.groups))]
    own_shape = torch.cat(blocks)
    if not torch.equal(_to_peft(layers, own, own_shape), tensor):
        raise _misfit(folder, f"{module} mixes the groups of its convolution, which no merged layer could do")
    return own_shape


def _whole_modules(model: nn.Module) -> list[str]:
    """The largest modules that hold nothing but trained tensors of the base: PEFT's `modules_to_save`."""
    layers = adapted_layers(model)
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        inside = any(f"{name}.".startswith(f"{part}.") for part in [*found, *layers])
        if name and parameters and all(p.requires_grad for p in parameters) and not inside and not _only_bias(module):
            found.append(name)
    return found


def _only_bias(module: nn.Module) -> bool:
    return all(name.endswith("bias") for name, _ in module.named_parameters())


def _alpha(layer: AdaptedLayer, rslora: bool) -> float:
    alpha = round(layer.scaling * (math.sqrt(layer.rank) if rslora else layer.rank), 9)
    return int(alpha) if alpha == int(alpha) else alpha


def _rank_and_scaling(config: dict[str, Any], name: str) -> tuple[int, float]:
    rank = by_pattern(config.get("rank_pattern") or {}, name, config.get("r", 8))
    alpha = by_pattern(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", 8))
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
        raise UserError(f"{option}: {CONFIG} is no table of options.")
    # with bias: all, PEFT writes the biases of a head a second and third time
    return config, {
        name: t for name, t in found.items() if not re.search(r"\.(original_module|modules_to_save)\.", name)
    }


def _misfit(folder: Path, reason: str) -> UserError:
    return UserError(f"model.adapter.init_from {folder} does not fit: {reason}.")

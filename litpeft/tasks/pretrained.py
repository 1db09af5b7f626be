"""Load pretrained models and check that their files hold the weights of the requested architecture."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import torch
from lightning import LightningDataModule
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.integrations import accelerate

from litpeft.adapters.base_options import base_on_disk, unquantised_shapes
from litpeft.adapters.bases import cannot_estimate
from litpeft.adapters.new_tokens import add_new_tokens, embedding_rows
from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.adapters.quantised_model import adopt_quantised_layers
from litpeft.errors import UserError
from litpeft.hub.base_weights import tensors_without_data, weight_files
from litpeft.hub.hub import explaining_hub_errors, local_or_hub

WEIGHT_OPTIONS = ("quantization_config", "ignore_mismatched_sizes")  # options of from_pretrained, not of the config
MAX_NEW_SHARE = 0.1  # largest share of newly initialised numbers in a base; BERT's pooler is 0.02


def load_pretrained(
    auto: Any,
    name: str,
    data: LightningDataModule,
    dtype: torch.dtype,
    resize_embeddings: bool = False,
    **options: Any,
) -> tuple[nn.Module, list[str], list[str]]:
    """Return a pretrained model, the names of its newly initialised parameters, and those of mismatched shape.

    `auto` is an auto class of transformers; `options` are further arguments of its `from_pretrained`. If torch's
    default device is the meta device, the model has meta tensors and no weights are read: the names come from the
    headers of the weight files; without weight files on this machine, no parameter counts as newly initialised.

    Raises:
        UserError: the model cannot be loaded, or the data has longer rows or larger token ids than the model.
    """
    with explaining_hub_errors(name, "model.model_name", "a local folder, or package:NAME"):
        path = local_or_hub(name, "model.model_name")
        config = AutoConfig.from_pretrained(path, **{k: v for k, v in options.items() if k not in WEIGHT_OPTIONS})
        on_disk = _quantisation_on_disk(config)
        if on_disk and "quantization_config" in options:
            raise UserError(
                f"model.model_name {name}: its weights are quantised already; leave model.base out, and give LoRA or "
                "DoRA instead of QLoRA or QDoRA."
            )
        if torch.get_default_device().type == "meta":
            mismatch = {"ignore_mismatched_sizes": options.get("ignore_mismatched_sizes", False)}
            model, report = _load_without_data(auto, name, config, dtype, on_disk, **mismatch)
        else:
            model, report = auto.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
            adopt_quantised_layers(model, dtype)
    _cast_stray_parameters(model, dtype)
    if getattr(model.config, "rescale_every", 0):  # RWKV halves frozen weights for inference, but not an adapter's
        model.config.rescale_every = 0
    if resize_embeddings:
        tokenizer = data.tokenizer
        add_new_tokens(model, max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1))
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and 0 < positions < data.max_length:  # XLNet says -1: unlimited
        raise UserError(f"data.max_length {data.max_length} is more than the {positions} positions of {name}.")
    rows = embedding_rows(model)
    highest = data.highest_token() if hasattr(data, "highest_token") else 0  # made-up batches have no token ids
    if rows is not None and highest >= rows:
        raise UserError(
            f"data.tokenizer: the data has token ids up to {highest}, but {name} has only {rows} embeddings; "
            "give the tokenizer of the model, or --model.resize_embeddings true to add rows and train them."
        )
    mismatched = [key for key, *_ in report["mismatched_keys"]]
    new = {*report["missing_keys"], *mismatched}
    for key in sorted(new):  # of layers that another package has quantised
        if isinstance(model.get_submodule(key.rpartition(".")[0]), QuantisedLinear):
            if key.endswith(".weight"):
                raise UserError(f"model.model_name {name}: the file lacks {key}, and model.base quantises it.")
            new.remove(key)
    return model, sorted(new), mismatched


def _quantisation_on_disk(config: PreTrainedConfig) -> Any:
    """Return the `quantization_config` of weight files that are quantised already; None for other files."""
    parts = (config, config.get_text_config())
    return next(filter(None, (getattr(part, "quantization_config", None) for part in parts)), None)


def _load_without_data(
    auto: Any, name: str, config: PreTrainedConfig, dtype: torch.dtype, on_disk: Any, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model with meta tensors, and its `missing_keys` and `mismatched_keys` as in `from_pretrained`.

    Layers that bitsandbytes has quantised on disk are quantised in the model too.
    """
    base = base_on_disk(on_disk) if on_disk else None
    if on_disk and base is None:
        raise cannot_estimate(f"model.model_name {name}")
    for part in (config, config.get_text_config()):
        vars(part).pop("quantization_config", None)
    model = auto.from_config(config, dtype=dtype)
    files = weight_files(name)
    if not files:
        if base is not None:
            base.quantise(model.requires_grad_(False))
        return model, {"missing_keys": [], "mismatched_keys": []}
    options |= {"dtype": dtype, "device_map": {"": torch.device("meta")}, "output_loading_info": True}
    tensors = tensors_without_data(files)
    if base is not None:
        tensors, quantised = unquantised_shapes(tensors, {key: p.shape for key, p in model.named_parameters()})
    # transformers demands accelerate for any device_map, but uses it only for several devices
    with patch.object(accelerate, "is_accelerate_available", lambda *_: True):
        model, report = type(model).from_pretrained(None, config=config, state_dict=tensors, **options)
    if base is not None:
        base.quantise_named(model.requires_grad_(False), quantised)
    return model, report


def _cast_stray_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters that a model creates in fp32 whatever the requested dtype, such as DeBERTa's q_bias.

    Parameters that transformers keeps in fp32 on purpose stay.
    """
    names = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    keep = {part for name in names for part in getattr(model, name, None) or ()}
    cast = []
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float32 != dtype and not keep & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
            cast.append(name)
    if cast:
        print(
            f"litpeft: {type(model).__name__} keeps {len(cast)} parameters in fp32 ({cast[0]}, ...), which it "
            f"cannot run in {str(dtype).removeprefix('torch.')}; they are cast.",
            file=sys.stderr,
        )


def check_base(name: str, model: nn.Module, head: list[str], new: list[str], mismatched: list[str]) -> None:
    """Raise a UserError if base weights are missing or have another shape; a new head or pooler is allowed."""
    in_base = {key for key in new if key.partition(".")[0] not in head}
    if wrong := sorted(in_base & set(mismatched)):
        raise UserError(f"model.model_name {name}: {wrong[0]} has another shape in the file than its config.json says.")
    missing = sum(model.get_parameter(key).numel() for key in in_base)
    total = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])  # four-bit weights are buffers
    if missing > MAX_NEW_SHARE * total:
        raise UserError(
            f"model.model_name {name}: the file lacks {len(in_base)} tensors of {type(model).__name__}, "
            f"{missing / total:.0%} of its numbers ({min(in_base)}, ...); it holds another architecture."
        )


def initialise_new_parameters(model: nn.Module, new: list[str]) -> None:
    """Initialise parameters again in fp32 from the random seed: the same head for every adapter and dtype."""
    torch.manual_seed(torch.initial_seed())
    for name in new:
        tensor = model.get_parameter(name)
        tensor.data = tensor.data.float()
        tensor._is_hf_initialized = False  # or transformers would skip it
    for name in sorted({parameter.rpartition(".")[0] for parameter in new}):
        model._init_weights(model.get_submodule(name))

"""Write an adapter of a PEFT method as PEFT does, with the modules that litpeft trains in full (a head)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from litpeft.adapters.base import trainable
from litpeft.adapters.peft_config import task_type
from litpeft.adapters.peft_format import PREFIX, TENSORS
from litpeft.adapters.peft_options import CHANGES_BASE
from litpeft.errors import UserError


def write_peft_adapter(
    folder: Path,
    model: nn.Module,
    wrapper: nn.Module,
    in_full: list[str],
    initial: dict[str, Tensor],
    base_name: str,
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        folder: an empty folder.
        model: the model with the adapter.
        wrapper: PEFT's model around `model`.
        in_full: names of the parameters that are trained in full: those of a head.
        initial: the adapter's tensors before training, for initialisations that change the base.
        base_name: hub id or folder of the base.

    Raises:
        UserError: PEFT would load the adapter into another model.
    """
    from peft import get_peft_model_state_dict

    config = copy.deepcopy(wrapper.peft_config["default"])
    if [name for name in trainable(model) if name.endswith(".new_tokens")]:
        raise UserError(
            f"PEFT stores no rows of model.resize_embeddings beside {config.peft_type.value}; give --format merged."
        )
    saved = _modules(model, in_full)
    if saved and not hasattr(config, "modules_to_save"):
        raise UserError(f"PEFT stores no trained {saved[0]} beside {config.peft_type.value}; give --format merged.")
    for end in saved:  # PEFT compares the end of a name, even in the middle of a part
        for name, _ in model.named_modules():
            if name.endswith(end) and name not in saved:
                raise UserError(f"PEFT would load the trained {end} into {name} too; give --format merged.")
    if hasattr(config, "rank_pattern") and hasattr(config, "target_r"):
        # AdaLoRA's numbers at zero stay in the file: the ranks of the last reallocation may have grown again since
        config.rank_pattern = wrapper.peft_config["default"].rank_pattern = None
    tensors = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    parameters = dict(model.named_parameters())
    prefix = "base_model." if config.is_prompt_learning else PREFIX
    tensors |= {prefix + name: parameters[name] for name in in_full}
    if initial:
        tensors = _on_the_original_base(tensors, initial, config)
    config.task_type = task_type(model, bool(saved))
    config.base_model_name_or_path, config.inference_mode = base_name, True
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = saved or None
    config.save_pretrained(str(folder))
    # clones: safetensors refuses tensors that share memory
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, str(folder / TENSORS), {"format": "pt"})


def _modules(model: nn.Module, in_full: list[str]) -> list[str]:
    """Return the largest modules whose parameters are all trained in full."""
    found: list[str] = []
    for name, module in model.named_modules():
        names = [f"{name}.{leaf}" for leaf, _ in module.named_parameters()]
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and names and not inside and set(names) <= set(in_full):
            found.append(name)
    return found


def _on_the_original_base(tensors: dict[str, Tensor], initial: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Return the adapter for the base before its change: W - s B₀A₀ + s BA is W plus an update of twice the rank.

    This is PEFT's conversion (`subtract_mutated_init`). The rank doubles, and alpha keeps the scale of the update.
    """
    converted = dict(tensors)
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            converted[name] = torch.cat([tensor, initial[name].to(tensor.device)], dim=0)
        elif ".lora_B." in name:
            converted[name] = torch.cat([tensor, -initial[name].to(tensor.device)], dim=1)
    growth = 2**0.5 if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, growth * config.lora_alpha
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: growth * alpha for key, alpha in config.alpha_pattern.items()}
    config.init_lora_weights = True
    return converted


def changes_base(options: dict[str, Any]) -> bool:
    """Return whether the method's initialisation subtracts the initial update from the weights of the base."""
    return str(options.get("init_lora_weights", "")).lower() in CHANGES_BASE

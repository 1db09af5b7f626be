"""PEFT's `adapter_config.json`: the task type of a model, and the options of LoRA or DoRA that a file means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from litpeft.errors import UserError
from litpeft.runs.safe_read import read_json_file

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # before the names of tensors
TASKS = {  # suffix of a model's class name -> task type of PEFT
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # PEFT expects a trained head in these folders
SAME = ("rank_pattern", "alpha_pattern", "bias")  # options with the name and meaning of litpeft's


def task_type(model: nn.Module, has_trained_modules: bool) -> str | None:
    """Return PEFT's task type of a model; None where PEFT would look for a trained head and there is none."""
    found = next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None)
    return found if has_trained_modules or found not in WITH_HEAD else None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `adapter_config.json` in a folder.

    Raises:
        UserError: the file cannot be read, or is no JSON object.
    """
    config = read_json_file(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is not a JSON object.")
    return config


def without_base_weights(found: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a file without frozen weights of this base: PEFT saves the embeddings that it adapts too.

    Args:
        found: the tensors by their names in the file.
        model: the model with the adapter.
    """
    base = {name: p for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}

    def is_of_base(key: str, tensor: Tensor) -> bool:
        weight = base.get(key.removeprefix(PREFIX).replace(".base_layer.", "."))
        return weight is not None and torch.equal(tensor.to(weight), weight)

    return {key: tensor for key, tensor in found.items() if not is_of_base(key, tensor)}


def lora_options(config: Mapping[str, Any], model: nn.Module, folder: Path) -> dict[str, Any]:
    """Return the constructor arguments of litpeft's LoRA or DoRA.

    Args:
        config: content of `adapter_config.json`.
        model: the base model.
        folder: the folder, for errors.

    Raises:
        UserError: the configuration is of another method.
    """
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder} is an adapter of type {config.get('peft_type')}; load it with PEFT.")
    names = [name for name, _ in model.named_modules()]
    trained = [each for each in config.get("modules_to_save") or () if any(f".{n}".endswith(f".{each}") for n in names)]
    options = {key: config[key] for key in SAME if config.get(key)}
    targets = [*_listed(config.get("target_modules")), *_listed(config.get("target_parameters"))]
    blocks = config.get("layers_to_transform")
    whole = isinstance(config.get("target_modules"), str) and not config.get("target_parameters")
    return options | {
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout", 0.0),
        "rslora": bool(config.get("use_rslora")),
        "targets": config["target_modules"] if whole else _ending_in(targets),
        "exclude": _excluded(config.get("exclude_modules")),
        "modules_to_save": trained,
        "layers": [blocks] if isinstance(blocks, int) else blocks,
    }


def _listed(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _ending_in(names: Sequence[str]) -> str:
    """Return the expression of PEFT's list: names that end, after a dot, in one of these. In a list, litpeft's presets
    (query) would take precedence."""
    return rf"(.*\.)?({'|'.join(map(_escaped, names))})"


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def _excluded(value: Any) -> str | None:
    return value if isinstance(value, str) or not value else _ending_in(list(value))

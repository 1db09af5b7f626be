"""Pretrained models from the hub, a folder or a package, and whether what came is what was asked for."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from torch import nn
from transformers import AutoConfig

from litpeft.errors import UserError
from litpeft.hub.hub import asking_hub, local_or_hub

OF_WEIGHTS = ("quantization_config", "ignore_mismatched_sizes")  # options of reading them
MOST_NEW = 0.1  # of a base's numbers may be drawn at random; BERT's pooler is a fiftieth


def load_pretrained(
    auto: Any, name: str, data: LightningDataModule, dtype: torch.dtype, **options: Any
) -> tuple[nn.Module, list[str], list[str]]:
    """A model of one of transformers' auto classes; names of parameters that no file held, and that another shape.

    With torch's meta device as the default it is the architecture alone: no weights are read, or looked for.

    Raises:
        UserError: it cannot be loaded, or has fewer positions than the data has tokens a row.
    """
    with asking_hub(name, "model.model_name", "a local folder, or package:NAME"):
        path = local_or_hub(name, "model.model_name")
        own = {key: value for key, value in options.items() if key not in OF_WEIGHTS}
        config = AutoConfig.from_pretrained(path, **own)
        if getattr(config, "quantization_config", None):
            raise UserError(
                f"model.model_name {name}: its weights are quantised already; "
                "give the original model, and an adapter that quantises it."
            )
        if torch.get_default_device().type == "meta":
            model = auto.from_config(config, dtype=dtype)
            report: dict[str, Any] = {"mismatched_keys": [], "missing_keys": []}
        else:
            model, report = auto.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and data.max_length > positions:
        raise UserError(f"data.max_length {data.max_length} is more than the {positions} positions of {name}.")
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    highest = data.highest_token() if hasattr(data, "highest_token") else 0  # of a made-up batch, nothing is known
    if rows is not None and highest >= rows:
        raise UserError(
            f"data.tokenizer: the data has tokens up to number {highest}, and {name} knows {rows} rows of embeddings; "
            "give the model's own tokenizer."
        )
    misfits = [key for key, *_ in report["mismatched_keys"]]
    return model, sorted({*report["missing_keys"], *misfits}), misfits


def check_base(name: str, model: nn.Module, head: list[str], new: list[str], misfits: list[str]) -> None:
    """Whether the file held this model: a head may be new, and a pooler; a base may not."""
    in_base = {key for key in new if key.partition(".")[0] not in head}
    if wrong := sorted(in_base & set(misfits)):
        raise UserError(f"model.model_name {name}: {wrong[0]} has another shape in the file than its config.json says.")
    missing = sum(model.get_parameter(key).numel() for key in in_base)
    total = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])  # 4-bit weights are buffers
    if missing > MOST_NEW * total:
        raise UserError(
            f"model.model_name {name}: the file lacks {len(in_base)} tensors of {type(model).__name__}, "
            f"{missing / total:.0%} of its numbers ({min(in_base)}, ...); it holds another architecture."
        )


def draw_again(model: nn.Module, new: list[str]) -> None:
    """Draw what no file held in fp32 from the run's seed: the same head for every adapter and dtype."""
    torch.manual_seed(torch.initial_seed())
    for name in new:
        tensor = model.get_parameter(name)
        tensor.data = tensor.data.float()
        tensor._is_hf_initialized = False  # or transformers would leave it as it is, like its neighbours
    for name in sorted({parameter.rpartition(".")[0] for parameter in new}):
        model._init_weights(model.get_submodule(name))

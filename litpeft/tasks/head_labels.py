"""A classification head that the model's file already has: match its rows with the labels of the data by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from litpeft.data.labels import as_option
from litpeft.errors import UserError
from litpeft.hub.hub import explaining_hub_errors, local_or_hub

UNNAMED = re.compile(r"label_\d+", re.IGNORECASE)  # transformers' names of labels without a name


def labels_in_file(model_name: str) -> list[str]:
    """Return the label names in a model's config.json, in the order of the head's rows."""
    with explaining_hub_errors(model_name, "model.model_name", "a local folder, or package:NAME"):
        id2label = AutoConfig.from_pretrained(local_or_hub(model_name, "model.model_name")).id2label or {}
    return [str(id2label[i]) for i in sorted(id2label)]


def output_layer(model: nn.Module, head: Sequence[str], outputs: int) -> tuple[str, nn.Linear] | None:
    """Return the name and the layer that computes the outputs of a head; None if it is no nn.Linear."""
    inside = [(part, model.get_submodule(part)) for part in head]
    layers = [(f"{part}.{name}".rstrip("."), layer) for part, top in inside for name, layer in top.named_modules()]
    found = [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear) and layer.out_features == outputs]
    return found[-1] if found else None


@torch.no_grad()
def match_head_labels(
    model: nn.Module, head: Sequence[str], new: Sequence[str], model_name: str, names: Sequence[str]
) -> dict[str, Any] | None:
    """Reorder the rows of a pretrained head, in place, if the data has the same labels in another order.

    Case and surrounding spaces do not matter. If the names differ, the rows keep their order.

    Args:
        model: the model.
        head: names of its head modules.
        new: names of the newly initialised parameters.
        model_name: the model's name, as in `model.model_name`.
        names: label names of the data, in the order of their numbers.

    Returns:
        `matched_by` (`name`, or `number` if the names differ), and `names`: label of the data -> label in the file.
        None if the head is new, its labels have no names, or the names are in the order of the data.

    Raises:
        UserError: the names are in another order, but the head's output layer is no nn.Linear.
    """
    if all(key in new for key, _ in model.named_parameters() if key.partition(".")[0] in head):
        return None
    in_file = labels_in_file(model_name)
    ours, theirs = ([name.strip().casefold() for name in labels] for labels in (names, in_file))
    if len(theirs) != len(ours) or ours == theirs or all(map(UNNAMED.fullmatch, theirs)):
        return None
    if set(ours) != set(theirs) or len(set(theirs)) < len(theirs):
        return {"matched_by": "number", "names": dict(zip(names, in_file, strict=True))}
    found = output_layer(model, head, len(names))
    if found is None:
        listed = as_option([names[ours.index(name)] for name in theirs])
        raise UserError(
            f"model.model_name {model_name}: its labels are in the order {', '.join(in_file)}, and litpeft cannot "
            f"reorder this head; give --data.label_names {listed}."
        )
    name, layer = found
    if f"{name}.weight" in new:
        return None
    order = [theirs.index(label) for label in ours]
    for parameter in layer.parameters(recurse=False):
        parameter.data = parameter.data[order]
    return {"matched_by": "name", "names": {label: in_file[i] for label, i in zip(names, order, strict=True)}}

"""Muon for the hidden matrices and AdamW for all other parameters, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from litpeft.errors import UserError


class MuonAndAdamW(Optimizer):
    """`torch.optim.Muon` for the hidden 2-D matrices; AdamW for biases, norms, embeddings and the head.

    Muon takes 2-D matrices only, and its author trains embeddings and the head with AdamW
    (https://kellerjordan.github.io/posts/muon/). The options of `model.optimizer` are Muon's. AdamW uses the learning
    rate that the adapter has without an optimizer (`default_lr`) and weight decay 0.01, except for 1-D tensors.

    Each parameter group has its own `lr`, and `rule`, the name of the optimizer that updates the group; both are in the
    run record (`optimizer_settings`).

    Args:
        muon: returns Muon for parameter groups.
        groups: parameter groups with `rule` Muon or AdamW, as `by_rule` returns them.
        adamw_lr: learning rate of AdamW.

    Raises:
        ValueError: Muon does not accept its arguments.
    """

    def __init__(self, muon: Callable[..., Optimizer], groups: list[dict[str, Any]], adamw_lr: float) -> None:
        self._parts: dict[str, Optimizer] = {}
        if matrices := [group for group in groups if group["rule"] == "Muon"]:
            self._parts["Muon"] = muon(matrices)
        if others := [group for group in groups if group["rule"] == "AdamW"]:
            self._parts["AdamW"] = torch.optim.AdamW(others, lr=adamw_lr, weight_decay=0.01, fused=True)
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters; return the result of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for rule, part in self._parts.items():
            # at each step, because load_state_dict replaces the state and the groups
            part.state, part.param_groups = self.state, [each for each in self.param_groups if each["rule"] == rule]
            part.step()
        return loss


def by_rule(groups: Iterable[dict[str, Any]], model: nn.Module, head: Iterable[str]) -> list[dict[str, Any]]:
    """Split parameter groups into groups for Muon and, after these, groups for AdamW.

    Args:
        groups: parameter groups; each part keeps the other entries of its group.
        model: the model that the parameters belong to.
        head: names of the head modules.

    Raises:
        UserError: no parameter is a hidden matrix.
    """
    modules = [module for module in model.modules() if hasattr(module, "num_embeddings")]
    modules += [model.get_submodule(name) for name in head]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    modules += [output] if output is not None else []
    not_hidden = {id(parameter) for module in modules for parameter in module.parameters()}
    split: dict[str, list[dict[str, Any]]] = {"Muon": [], "AdamW": []}
    for group in groups:
        for rule, part in split.items():
            chosen = [p for p in group["params"] if (p.ndim == 2 and id(p) not in not_hidden) == (rule == "Muon")]
            if chosen:
                part.append({**group, "params": chosen, "rule": rule})
    if not split["Muon"]:
        raise UserError(
            "model.optimizer Muon trains hidden matrices, and this adapter trains none; give another optimizer."
        )
    return split["Muon"] + split["AdamW"]

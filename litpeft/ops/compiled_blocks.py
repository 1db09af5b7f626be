"""Compile the blocks of a model with torch.compile."""

from __future__ import annotations

from typing import Any

from torch import nn


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compile each block in place: the items of every nn.ModuleList.

    Args:
        model: the model, with its adapter.
        options: further arguments of torch.compile.
    """
    for blocks in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for block in blocks:
            block.compile(dynamic=True, **options)  # the sequence length differs from batch to batch

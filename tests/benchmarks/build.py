"""Build tasks on small models as `litpeft evaluate` does, and evaluate them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from litpeft.adapters import Adapter, LoRA
from litpeft.benchmarks import Evaluation, Options, Suite
from litpeft.data import ArithmeticInstructions
from litpeft.tasks import CausalLM


def causal(model: str, adapter: Adapter | None = None, dtype: str = "fp32", learned: bool = True, **data: Any) -> tuple:
    """Return (task, data) of a causal model; with `learned`, its LoRA weights are not zero."""
    options = {"train_rows": 8, "val_rows": 4, "max_length": 64} | data
    module = ArithmeticInstructions(tokenizer=model, **options)
    torch.manual_seed(0)
    task = CausalLM(model, adapter or LoRA(rank=2), dtype=dtype)
    task.build(module, torch.device("cpu"))
    if learned:
        for name, parameter in task.backbone.named_parameters():
            if name.endswith(("lora_A", "lora_B")):
                torch.nn.init.normal_(parameter, std=0.3)
    return task, module


def evaluate(task: Any, module: Any, *tasks: str, shared: Path | None = None, **options: Any) -> Evaluation:
    """Evaluate benchmark tasks, with the data files in `shared` if given."""
    if shared is not None:
        options["data_dir"] = str(shared / "data")
    return Suite(Options(tasks, **options), task, module).evaluate(task, module, lambda *_: None, lambda _: None)

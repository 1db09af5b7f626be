"""Imported by the server of `tests.forking` alone: does once what the first run of each forked process would repeat.

A first run imports further modules, reads the signatures of classes, and asks for each type of value whether it is a
mapping or a sequence, which takes Python a tenth of a second for each.
"""

from __future__ import annotations

import contextlib
import gc
import io

import lightning as L
import torch
import torch._inductor.compile_fx  # bitsandbytes imports it, which takes most of a second
from PIL import Image
from torch.utils import tensorboard  # noqa: F401

from litpeft.__main__ import main
from litpeft.commands import training  # noqa: F401
from tests.conftest import QUIET


class _Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).sum()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).sum(), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


Image.preinit()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    data = torch.utils.data.DataLoader([torch.ones(1)])
    L.Trainer(**QUIET, max_steps=1).fit(_Model(), data, data)
    for task in (["SequenceClassification", "--data", "SST2"], ["CausalLM", "--data", "ArithmeticInstructions"]):
        main(["fit", "--model", *task, "--model.model_name", "x", "--model.adapter", "LoRA", "--print_config"])
gc.collect()
gc.freeze()  # otherwise the first collection of each forked process would write to, and so copy, all memory

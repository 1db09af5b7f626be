"""The LightningModule that every task derives from: a backbone, an adapter, an optimizer and a schedule.

To add one: derive from `FineTuner` in a file of its own, implement `load`, `loss`, `token_counts` and
`validation_step`, and `example` where batches are others, import it in `__init__.py`. One that differs in little
derives from its neighbour:

    class LabelSmoothing(SequenceClassification):
        def loss(self, batch):
            return F.cross_entropy(self(batch), batch["labels"], label_smoothing=0.1)
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from litpeft.adapters import Adapter, Full
from litpeft.adapters.base import trainable
from litpeft.errors import UserError
from litpeft.hub.base_weights import base_fingerprint
from litpeft.ops.attention import use_lean_attention
from litpeft.ops.dropout import use_lean_dropout
from litpeft.optim import build_optimizer, build_scheduler
from litpeft.tasks.checkpoint_origin import check_origin, origin
from litpeft.tasks.losses import TrainLoss
from litpeft.training import processes
from litpeft.training.sharding import rest, share_of, whole
from litpeft.training.strategies import FSDP2

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Batch = dict[str, Tensor]


class FineTuner(L.LightningModule):
    """A pretrained model made trainable by an adapter.

    The backbone is loaded in `configure_model`, when the data is known, and is then `self.backbone`.

    Args:
        model_name: hub id, local folder, or `package:NAME` for an installed package that carries a model.
        adapter: how the model is made trainable; everything trains (`Full`) by default.
        dtype: what frozen weights are held in and products computed in. Trainable tensors are fp32 either way.
        optimizer: any optimizer class; AdamW at the adapter's own learning rate by default.
        scheduler: any learning-rate scheduler class, stepped once an optimizer step; constant by default.
        gradient_checkpointing: keep only what enters each block and compute it again in backward: less memory, about a
            third more time. `non_reentrant` is torch's recommended kind, `reentrant` its older one.
        compile_blocks: compile each block of the model (torch.compile): the first steps take a minute, later ones less.
    """

    monitor: tuple[str, Literal["min", "max"]] = ("val_loss", "min")  # the metric that tells which weights are better

    def __init__(
        self,
        model_name: str,
        adapter: Adapter | None = None,
        dtype: Literal["bf16", "fp32"] = "bf16",
        # None and not AdamW: arguments of a default class would leak into whichever other class is named
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        gradient_checkpointing: Literal["none", "non_reentrant", "reentrant"] = "none",
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.model_name, self.adapter, self.dtype_name = model_name, adapter or Full(), dtype
        self.optimizer, self.scheduler = optimizer, scheduler
        self.gradient_checkpointing, self.compile_blocks = gradient_checkpointing, compile_blocks
        self.backbone: nn.Module | None = None
        self.load_seconds: float | None = None
        self.keeps_rows = False  # validation returns what each row gave: `loss` and, of a classifier, `correct`, (B,)
        self.new_tensors: list[str] = []
        self.base: str | None = None  # fingerprint of its weights
        self.train_loss = TrainLoss()

    def load(
        self, data: L.LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        """The pretrained model; the names of the modules that are its head, and of parameters that no file held.

        Args:
            data: what it is going to be trained on: its labels, its tokenizer.
            dtype: of the weights.
            options: what `from_pretrained` is to be told besides; an adapter may change the base while it is read.
        """
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """What training makes smaller: the mean over a batch, a scalar."""
        raise NotImplementedError

    def example(self, rows: int, tokens: int) -> Batch:
        """A batch of this many rows of this many tokens for an estimate, each token with a label."""
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        mask = torch.ones_like(ids)
        mask[-1, -1] = rows == 1  # rows differ in length, and models take other ways where all are full
        return {"input_ids": ids, "attention_mask": mask, "labels": ids}

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """What a batch counts for: `samples`, `tokens` (real), `padded` (with padding), `trained` (that carry loss)."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Load the backbone and make it trainable. Lightning calls this when data and device are known."""
        if self.backbone is None:
            self.build(self.trainer.datamodule, self.trainer.strategy.root_device)
            if isinstance(self.trainer.strategy, FSDP2):
                self.trainer.strategy.shard(self.backbone)

    def build(self, data: L.LightningDataModule, device: torch.device, weights: bool = True) -> None:
        """Load the backbone for this data and device and make it trainable.

        It is made on the host, where the first values are drawn alike for every device, and moved afterwards by
        Lightning (which calls this within the GPU's device context, in which transformers would ask for accelerate).

        Args:
            data: what it is going to be trained on.
            device: where.
            weights: whether they are read; without them the model is built on torch's meta device, shapes alone.
        """
        begun = time.perf_counter()
        with torch.device("cpu" if weights else "meta"):
            # trainable weights are fp32: what the adapter trains whole is not rounded to bf16 on the way
            dtype = torch.float32 if self.adapter.trains_base else self.compute_dtype
            where = device if weights else torch.device("meta")
            model, head, new = self.load(data, dtype, **self.adapter.loading(where))
            self.adapter.apply(model, head, new)
        if device.type == "cpu":
            use_lean_attention(model)
            use_lean_dropout(model)
        self.new_tensors = new
        self.base = base_fingerprint(self.model_name) if weights else None
        self._checkpoint_gradients(model)
        if self.compile_blocks:
            for blocks in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
                for block in blocks:
                    block.compile(dynamic=True)  # lengths differ from batch to batch
        model.train()  # transformers returns eval mode and Lightning leaves modes alone: dropout would be off
        self.backbone = model
        self.load_seconds = time.perf_counter() - begun

    def _checkpoint_gradients(self, model: nn.Module) -> None:
        if self.gradient_checkpointing == "none":
            return
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise UserError(f"model.gradient_checkpointing: {type(model).__name__} does not support it; leave it out.")
        reentrant = self.gradient_checkpointing == "reentrant"
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:  # it gives no gradient to a block whose input asks for none, such as that of frozen embeddings
            model.enable_input_require_grads()
        else:  # transformers asks for that gradient either way; here it would be worked out for nothing
            model.disable_input_require_grads()

    def _check_gradients(self) -> None:
        """What an adapter has added and gets no gradient would stay as it is without a word: a B of zero to the end.

        In no layer of a name, that is: of a mixture of experts, some may have nothing to do in a step.
        """
        learns: dict[str, list[str]] = {}
        for name, parameter in self.adapter.added(self.backbone).items():
            learns.setdefault(re.sub(r"\d+", "#", name), []).append("" if parameter.grad is not None else name)
        idle = [names for names in learns.values() if all(names)]
        if idle:
            kind = self.gradient_checkpointing
            way = "take it out of model.adapter.targets, the model does not use it"
            way = way if kind == "none" else f"model.gradient_checkpointing {kind} may cut it off: try the other kind"
            raise UserError(f"{sum(map(len, idle))} tensors of the adapter got no gradient ({idle[0][0]}, ...); {way}.")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean over the batch; of several processes, their mean is that over all of their rows."""
        loss, rows = self.loss(batch), len(batch["input_ids"])
        together = self.note_loss(loss, rows)
        return loss if processes.count() == 1 else loss * (rows * processes.count() / together)

    def note_loss(self, loss: Tensor, weight: int) -> Tensor | int:
        """Draw a batch's loss, and let it count in the epoch's mean by this weight.

        Of several processes it is the loss of all of them that each notes, so that one which is no number stops all.

        Returns:
            The weight of all processes.
        """
        loss, together = loss.detach(), weight
        if processes.count() > 1:
            own = torch.full_like(loss, weight, dtype=torch.float64)
            summed, together = processes.total(torch.stack([loss * own, own]))
            loss = (summed / together.clamp(min=1)).float()
        self.log("train_loss", loss, prog_bar=True, batch_size=1)
        self.train_loss.update(loss, together, self.trainer.fit_loop.total_batch_idx)
        return together

    @property
    def compute_dtype(self) -> torch.dtype:
        """What products are computed in."""
        return DTYPES[self.dtype_name]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within, products are computed in the task's dtype, also where the adapter holds its weights in fp32."""
        wanted = self.adapter.trains_base and self.dtype_name != "fp32"
        with torch.autocast(self.device.type, self.compute_dtype, enabled=wanted):
            yield

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.optimizer, self.adapter.param_groups(self.backbone), self.adapter.default_lr)
        scheduler = build_scheduler(self.scheduler, optimizer, self.total_steps())
        return {"optimizer": optimizer} | ({"lr_scheduler": scheduler} if scheduler else {})

    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run; None if it has no end.

        Counted from the data and not with `trainer.estimated_stepping_batches`, which builds the loader before a
        resumed run has put its state back (Lightning #20550).
        """
        trainer = self.trainer
        if trainer.max_steps > 0 and (trainer.max_epochs or -1) < 0:
            return trainer.max_steps
        batches = trainer.datamodule.num_train_batches
        limit = trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or -1)
        if steps < 0:
            return None
        return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps

    def scale_gradients(self) -> None:
        """What is left to be done to the gradients of an effective batch before they are clipped."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the rate of this step; look for a loss that is no number, on a GPU only when metrics are logged."""
        self.scale_gradients()
        rate = optimizer.param_groups[0]["lr"]
        if rate is not None:  # Adafactor may find its own
            self.log("lr", rate, batch_size=1)
        if self.trainer.global_step == 0:
            self._check_gradients()
        if self.device.type == "cpu" or self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            self._check_loss()

    def _check_loss(self) -> None:
        """Stop at a loss that is no number: before its step is made on a CPU, and before it could be saved anywhere."""
        if (bad := self.train_loss.first_bad()) is None:
            return
        (epoch, batch), loss = divmod(bad[0], self.trainer.num_training_batches), bad[1]
        accumulated = self.trainer.accumulate_grad_batches
        step = epoch * math.ceil(self.trainer.num_training_batches / accumulated) + batch // accumulated
        raise UserError(
            f"the training loss is {loss} at step {step} (batch {batch} of epoch {epoch}, "
            f"learning rate {self.optimizers().param_groups[0]['lr']}); "
            "try a smaller model.optimizer.lr, a longer warm-up, or trainer.gradient_clip_val 1.0."
        )

    def on_train_start(self) -> None:
        """The model was drawn alike by all processes; what is dropped from now on is not to be the same rows' alike."""
        if processes.rank():
            torch.manual_seed(torch.initial_seed() + processes.rank())

    def on_train_epoch_end(self) -> None:
        self.log("train_loss_epoch", self.train_loss.mean(), batch_size=1)
        self.train_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside the trainable tensors: what they belong to, and the mean loss so far."""
        if self.trainer.state.fn == "fit":
            self._check_loss()
        checkpoint |= {"origin": origin(self.base, self.adapter), "train_loss": self.train_loss.state_dict()}

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint was written with the base weights and adapter of this task.

        Raises:
            UserError: it was not; the message names the difference.
        """
        check_origin(checkpoint["origin"], self.base, self.adapter, self.model_name)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        self.train_loss.load_state_dict(checkpoint["train_loss"])

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True  # so asked, Lightning validates the last weights before it stops

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The trainable tensors only; see `Adapter.state_dict`. Of processes with shares, all have to ask."""
        if self.backbone is None:
            return {}
        rest(self.backbone)
        return whole(self.adapter.state_dict(self.backbone))

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> None:
        """Strict over the trainable tensors, whatever `strict` says; see `Adapter.load_state_dict`."""
        rest(self.backbone)
        own = trainable(self.backbone)
        self.adapter.load_state_dict(self.backbone, {n: share_of(t, own.get(n, t)) for n, t in state_dict.items()})

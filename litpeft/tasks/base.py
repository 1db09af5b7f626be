"""The LightningModule that every task derives from: a backbone, an adapter, an optimizer and a schedule.

To add one: derive from `FineTuner` in a new file, implement `load`, `loss`, `token_counts` and `validation_step` (and
`example`, if batches have other tensors), and import the class in `__init__.py`. To vary a task, derive from it:

    class LabelSmoothing(SequenceClassification):
        def loss(self, batch):
            return F.cross_entropy(self(batch), batch["labels"], label_smoothing=0.1)
"""

from __future__ import annotations

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
from litpeft.adapters.base_options import put_on_base
from litpeft.errors import check_choices
from litpeft.hub.base_weights import base_fingerprint
from litpeft.ops.attention import use_lean_attention
from litpeft.ops.compiled_blocks import compile_blocks
from litpeft.ops.dropout import use_lean_dropout
from litpeft.ops.kernels import Kernels, use_kernels, warn_of_other_kernels
from litpeft.optim import build_optimizer
from litpeft.tasks.checkpoint_origin import check_complete, check_origin, origin
from litpeft.tasks.compute_dtype import DTYPES, check_dtype, use_tf32
from litpeft.tasks.data_of_task import DataOfTask
from litpeft.tasks.gradients import check_gradients, enable_gradient_checkpointing
from litpeft.tasks.losses import TrainLoss, mean_over_ranks, non_finite_loss
from litpeft.tasks.row_weights import EffectiveBatch
from litpeft.tasks.run_length import continue_schedule, new_schedule, total_steps
from litpeft.training import processes
from litpeft.training.loss_scaling import LossScaling
from litpeft.training.sharding import full_tensors, is_sharded, reshard, shard_like
from litpeft.training.strategies import FSDP2

Batch = dict[str, Tensor]


class FineTuner(DataOfTask, L.LightningModule):
    """Fine-tunes a pretrained model with an adapter.

    `configure_model` loads the model as `self.backbone`, because the number of labels comes from the data.

    Args:
        model_name: hub id, local folder, `package:NAME` (an installed package that contains a model), or `demo:NAME`.
        adapter: the fine-tuning strategy; full fine-tuning (`Full`) by default.
        dtype: dtype of the frozen weights, and compute dtype. Trainable parameters are always fp32. fp16, with loss
            scaling, is for GPUs without bf16 (T4, V100, RTX 20).
        optimizer: any optimizer class; AdamW at the adapter's default learning rate by default.
        scheduler: any learning-rate scheduler class, stepped after each optimizer step; constant by default.
        gradient_checkpointing: store only each block's input and recompute the block in backward: less memory, about a
            third more time. `non_reentrant` is the variant that torch recommends, `reentrant` is the older variant.
        compile_blocks: compile each block with torch.compile: slow first steps (about a minute), faster later steps.
        kernels: `liger` (extra `gpu`; `estimate` counts without it), `native` (C functions for bf16 on a CPU), or
            `none`. `auto`: one of them, or products in fp32 on a CPU that has no instructions for 16-bit numbers.
        resize_embeddings: add embeddings for tokens that the tokenizer has and the model lacks, and train these rows.
        base: how the frozen weights are held; by default in `dtype`. `nf4`, `fp4` (four bits), `int8` (LLM.int8), or
            the class path of a quantisation configuration of transformers, such as `transformers.QuantoConfig`.
        tf32: round the factors of fp32 products to TF32 on an NVIDIA GPU: faster, with 10 bits of mantissa.
    """

    monitor: tuple[str, Literal["min", "max"]] = ("val_loss", "min")  # metric that selects the best checkpoint
    first_loss_scale = 2.0**16  # with fp16; torch's default, for losses that are means

    def __init__(
        self,
        model_name: str,
        adapter: Adapter | None = None,
        dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
        # None, not AdamW: the arguments of a default class would leak into another class that the user names
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        gradient_checkpointing: Literal["none", "non_reentrant", "reentrant"] = "none",
        compile_blocks: bool = False,
        kernels: Kernels = "auto",
        resize_embeddings: bool = False,
        base: str | dict[str, Any] | None = None,
        tf32: bool = False,
    ) -> None:
        check_choices("model", FineTuner.__init__, locals())
        super().__init__()
        self.model_name, self.adapter, self.dtype_name = model_name, adapter or Full(), dtype
        self.optimizer, self.scheduler, self.resize_embeddings = optimizer, scheduler, resize_embeddings
        self.gradient_checkpointing, self.compile_blocks = gradient_checkpointing, compile_blocks
        self.kernels, self.kernels_used = kernels, "none"
        self.backbone: nn.Module | None = None
        self.load_seconds: float | None = None
        self.return_row_results = False  # validation_step returns `loss` (B,) and, for a classifier, `correct` (B,)
        self.head, self.new_tensors = list[str](), list[str]()  # names of head modules and newly initialised parameters
        self.base, self.tf32 = put_on_base(self.adapter, base), tf32
        self.fingerprint: str | None = None  # of the base weights
        self.train_loss, self._effective_batch, self._is_sharded = TrainLoss(), EffectiveBatch(), False
        self._saved_total_steps: int | None = None  # length of the run in the checkpoint that is resumed

    def load(
        self, data: L.LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        """Return the pretrained model, the names of its head modules and of its newly initialised parameters.

        Args:
            data: the data module, which has the labels and the tokenizer.
            dtype: dtype of the weights.
            options: further arguments of `from_pretrained`; QLoRA passes a `quantization_config`.
        """
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """Return the training loss, a scalar: the mean over the batch."""
        raise NotImplementedError

    def example(self, rows: int, tokens: int) -> Batch:
        """Return a made-up batch (rows, tokens) with a label at each token, for memory estimates."""
        ids, mask = torch.zeros(rows, tokens, dtype=torch.int64), torch.ones(rows, tokens, dtype=torch.int64)
        mask[-1, -1] = rows == 1  # several rows: one padding token, because models skip the mask without padding
        return {"input_ids": ids, "attention_mask": mask, "labels": ids}

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Count `samples` and, of texts, `tokens` (no padding), `padded` (with padding) and `trained` (with loss)."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Build the backbone; Lightning calls this when data and device are known."""
        strategy = self.trainer.strategy
        check_dtype(self.dtype_name, device := strategy.root_device, self.kernels != "none" and not self.compile_blocks)
        if fits := self.trainer.state.fn == "fit":
            self.train_loss = TrainLoss()  # that of an earlier run, which failed, may hold a NaN
        if self.dtype_name == "fp16" and fits and not isinstance(strategy.precision_plugin, LossScaling):
            strategy.precision_plugin = LossScaling(device.type, self.first_loss_scale)
        if self.backbone is None:
            self.build(self.data, device)
        if isinstance(strategy, FSDP2) and not self._is_sharded:
            self.adapter.check_sharding()
            strategy.shard(self.backbone)
            self._is_sharded = True

    def build(self, data: L.LightningDataModule, device: torch.device, weights: bool = True) -> None:
        """Load the backbone and apply the adapter.

        The model is built on the CPU, so that initial values are the same for every device, and Lightning moves it
        afterwards. (Inside Lightning's GPU device context, transformers would require accelerate.)

        Args:
            data: the data module.
            device: the device that the model will be trained on.
            weights: whether to read the weights; otherwise the model has meta tensors.
        """
        start = time.perf_counter()
        use_tf32(self.tf32, device)
        with torch.device("cpu" if weights else "meta"):
            dtype = torch.float32 if self.adapter.trains_base else self.compute_dtype  # not rounded to bf16 first
            options = self.adapter.loading(device if weights else torch.device("meta"))
            model, head, new = self.load(data, dtype, **options)
            model = self.adapter.apply(model, head, new)
        if device.type == "cpu":
            use_lean_attention(model)
            use_lean_dropout(model)
        self.kernels_used = use_kernels(model, self.kernels, device, self.compute_dtype, self.compile_blocks)
        self.head, self.new_tensors = list(head), new
        self.fingerprint = base_fingerprint(self.model_name) if weights else None
        enable_gradient_checkpointing(model, self.gradient_checkpointing)
        if self.compile_blocks:
            compile_blocks(model)
        model.train()  # transformers returns eval mode and Lightning does not change it: dropout would be off
        self.backbone = model
        self.load_seconds = time.perf_counter() - start

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's mean loss, scaled so that each row has the same weight; see `row_weights`."""
        loss, rows = self.loss(batch), len(batch["labels"])
        return self._effective_batch.weighted(loss, rows, self.log_train_loss(loss, rows), batch_idx, self._trainer)

    def log_train_loss(self, loss: Tensor, weight: int) -> Tensor | int:
        """Log a batch's loss and add it to the epoch's mean, averaged over all ranks; return the sum of their weights.

        Args:
            loss: mean loss of this rank's batch, a scalar; a NaN on one rank stops all.
            weight: number of rows (or tokens) that the loss is the mean of.
        """
        loss, total_weight = mean_over_ranks(loss.detach(), weight)
        self.log("train_loss", loss, prog_bar=True, batch_size=1)
        self.train_loss.update(loss, total_weight, self.trainer.fit_loop.total_batch_idx)
        return total_weight

    @property
    def compute_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to the compute dtype inside the with block, if the adapter trains fp32 base weights."""
        enabled = self.adapter.trains_base and self.dtype_name != "fp32"
        cached = not is_sharded(self.backbone)  # else whole casts of all sharded weights stay until the end of forward
        with torch.autocast(self.device.type, self.compute_dtype, enabled=enabled, cache_enabled=cached):
            yield

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer of the trainable parameters; see `build_optimizer`."""
        groups, lr = self.adapter.param_groups(self.backbone), self.adapter.default_lr
        return build_optimizer(self.optimizer, groups, lr, self.backbone, self.head)

    def configure_optimizers(self) -> dict[str, Any] | None:
        if not self.adapter.trains:
            return None
        optimizer = self.new_optimizer()
        scheduler = new_schedule(self, optimizer)
        return {"optimizer": optimizer} | ({"lr_scheduler": scheduler} if scheduler else {})

    def total_steps(self) -> int | None:
        """Return the number of optimizer steps of the whole run; None if the run has no end."""
        return total_steps(self.trainer)

    def scale_gradients(self) -> None:
        """Rescale the accumulated gradients before clipping, to those of the effective batch."""
        self._effective_batch.scale(trainable(self.backbone).values(), self.trainer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale gradients, log the learning rate, and check for a NaN loss (on a GPU only at logging steps)."""
        self.scale_gradients()
        self.adapter.before_step(self.backbone)
        if (lr := optimizer.param_groups[0]["lr"]) is not None and self.trainer._logger_connector.should_update_logs:
            self.log("lr", lr, batch_size=1)  # Adafactor may choose its own rate, and has None
        if self.trainer.global_step == 0:
            check_gradients(self.adapter.added(self.backbone), self.gradient_checkpointing)
        if self.device.type == "cpu" or self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            self._check_loss()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Make an optimizer step and let the adapter change itself: before a callback can save a checkpoint."""
        super().optimizer_step(*arguments, **options)
        self.adapter.after_step(self.backbone, self.trainer.global_step + 1, self.total_steps())
        self.trainer.optimizers[0].zero_grad()  # Lightning would keep them through the next forward pass

    def _check_loss(self) -> None:
        """Raise a UserError if the training loss was NaN or infinite in any batch so far."""
        if self.train_loss.first_non_finite() is not None:
            raise non_finite_loss(self.train_loss, self.trainer, self.dtype_name == "fp16")

    def on_train_start(self) -> None:
        """Give each rank its own dropout masks; until here all ranks share a seed, for equal initial weights."""
        if processes.rank():
            torch.manual_seed(torch.initial_seed() + processes.rank())
        continue_schedule(self, self._saved_total_steps)

    def on_train_epoch_end(self) -> None:
        self.log("train_loss_epoch", self.train_loss.mean(), batch_size=1)
        self.train_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the base and adapter that the trainable tensors belong to, and the epoch's mean loss so far."""
        if fits := self.trainer.state.fn == "fit":
            self._check_loss()
        check_complete(checkpoint["state_dict"], self.adapter.state_dict(self.backbone))
        checkpoint |= {"train_loss": self.train_loss.state_dict(), "total_steps": self.total_steps() if fits else None}
        checkpoint["origin"] = origin(self.fingerprint, self.adapter, self.base)
        checkpoint |= {"adapter": self.adapter.resume_state(self.backbone), "kernels": self.kernels_used}

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise a UserError that names the difference if the checkpoint has other base weights or another adapter."""
        check_origin(checkpoint["origin"], self.fingerprint, self.adapter, self.model_name, self.base)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        self.train_loss.load_state_dict(checkpoint["train_loss"])
        self._saved_total_steps = checkpoint.get("total_steps")  # absent in checkpoints of 0.1.0, like the next one
        self.adapter.load_resume_state(self.backbone, checkpoint.get("adapter"))
        warn_of_other_kernels(checkpoint.get("kernels") if self.trainer.state.fn == "fit" else None, self.kernels_used)

    def on_train_batch_end(self, *_: Any) -> None:
        # with this flag, Lightning validates the final weights before it stops
        self.trainer.should_stop |= self.trainer.global_step == self.trainer.max_steps

    def state_dict(
        self, *, destination: dict[str, Tensor] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Tensor]:
        """Return the trainable tensors only, as `torch.nn.Module.state_dict`; empty before the model is built.

        Collective under FSDP2: every process must call it.
        """
        tensors: dict[str, Tensor] = {}
        if self.backbone is not None:
            reshard(self.backbone)
            tensors = full_tensors(self.adapter.state_dict(self.backbone))
        destination = {} if destination is None else destination
        destination.update({prefix + name: tensor for name, tensor in tensors.items()})
        return destination

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> None:
        """Load the trainable tensors, always strictly (`strict` is ignored); see `Adapter.load_state_dict`."""
        reshard(self.backbone)
        own = trainable(self.backbone)
        self.adapter.load_state_dict(self.backbone, {n: shard_like(t, own.get(n, t)) for n, t in state_dict.items()})

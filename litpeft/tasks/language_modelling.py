"""Instruction tuning: the code that causal and encoder-decoder models share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn

from litpeft.adapters.base import trainable
from litpeft.data.token_rows import IGNORED
from litpeft.errors import UserError
from litpeft.ops.head_loss import head_loss
from litpeft.tasks.base import Batch, FineTuner
from litpeft.tasks.data_of_task import with_rows
from litpeft.tasks.losses import new_mean_loss
from litpeft.tasks.packed_rows import not_packed
from litpeft.tasks.pretrained import check_base, load_pretrained
from litpeft.tasks.row_weights import mean_rows, share_of_mean_batch
from litpeft.training import processes
from litpeft.training.outlets import send


class LanguageModelling(FineTuner):
    """Trains on responses token by token; the loss is the mean over all tokens with loss in an effective batch.

    Metrics: cross-entropy per token and perplexity (its exponential); if answers are generated, also the share of
    answers that equal the expected response exactly.

    Args:
        generate_samples: number of validation prompts to answer after each validation (greedy decoding); the answers
            are sent to the loggers.
        max_new_tokens: maximum length of a generated answer, in tokens.
        options: model, adapter, optimizer and the other options of `FineTuner`.
    """

    auto: Any  # auto class of transformers that loads the model
    encoder_decoder = False
    label_shift = 0  # tokens from a position to the label that it predicts
    first_loss_scale = 2.0**5  # the loss is a sum over some thousand tokens

    def __init__(self, *common: Any, generate_samples: int = 0, max_new_tokens: int = 64, **options: Any) -> None:
        super().__init__(*common, **options)
        for name, value, least in (("generate_samples", generate_samples, 0), ("max_new_tokens", max_new_tokens, 1)):
            if value < least:
                raise UserError(f"model.{name} must be at least {least}, got {value}.")
        self.generate_samples, self.max_new_tokens = generate_samples, max_new_tokens
        self._tokens: Tensor | int = 0  # tokens with loss since the last optimizer step
        self._batches: Tensor | float = 0.0  # rows since then, in mean batches; counted with data.batch_tokens only
        self._needs_full_logits = False  # the model changes the output of its head, so the head cannot run in chunks

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.generate_samples and not hasattr(self.data, "prompts"):
            raise UserError("model.generate_samples needs a data module of litpeft; leave it out with dataloaders.")
        self.means = nn.ModuleDict({kind: new_mean_loss() for kind in ("val", "test")})

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        options["ignore_mismatched_sizes"] = True  # check_base refuses them
        model, new, mismatched = load_pretrained(
            self.auto, self.model_name, data, dtype, self.resize_embeddings, **options
        )
        check_base(self.model_name, model, [], new, mismatched)
        if new:
            raise UserError(f"model.model_name {self.model_name}: the file lacks {new[0]}; it holds no language model.")
        model.config.use_cache = False  # for training; generate() sets use_cache itself
        _move_to_one_device(model)
        self._needs_full_logits = not self._logits_are_head_output(model)
        return model, [], []

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return the arguments of the model's forward."""
        raise NotImplementedError

    def at_labels(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Select the positions with loss: (B, T, width) and (B, T) become (N, width) and the labels (N)."""
        raise NotImplementedError

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add `loss_positions`, found while the batch is on the CPU: on a GPU, their number would be waited for.

        They are the positions with loss, (N), counted row after row. Lightning calls this hook of the task only, so the
        data's own is called here.
        """
        data = getattr(self._trainer, "datamodule", None)
        batch = batch if data is None else data.on_before_batch_transfer(batch, dataloader_idx)
        if "labels" not in batch:
            return batch
        row, column = (batch["labels"][:, self.label_shift :] != IGNORED).nonzero(as_tuple=True)
        positions = row * batch["labels"].shape[1] + column
        return batch | {"loss_positions": positions.pin_memory() if self.device.type == "cuda" else positions}

    def token_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum of the cross-entropies over the tokens with loss, and the number of these tokens."""
        with self.autocast():
            states, labels = self._at_labels(batch)
            return self._summed(states, labels), len(labels)

    def row_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each row's sum of cross-entropies, (B), and its number of tokens with loss, (B)."""
        owners = torch.arange(len(batch["labels"]), device=self.device)[:, None].expand_as(batch["labels"])
        tokens = self.at_labels(owners, batch["labels"])[0].bincount(minlength=len(owners))
        with self.autocast():
            parts = (part.split(tokens.tolist()) for part in self._at_labels(batch))
            return torch.stack([self._summed(*part) for part in zip(*parts, strict=True)]), tokens

    def _at_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return hidden states before the head, or logits, at the positions with loss (N, width); and labels (N)."""
        inputs, labels = self.inputs(batch), batch["labels"]
        with nullcontext() if "position_ids" in inputs else not_packed():
            if self._needs_full_logits:
                states = self.backbone(**inputs).logits
            else:
                states = _hidden_states(self.backbone, inputs)
        if "loss_positions" not in batch:
            return self.at_labels(states, labels)
        positions = batch["loss_positions"]
        return states.flatten(0, 1)[positions], labels.flatten()[positions + self.label_shift]

    def _summed(self, states: Tensor, labels: Tensor) -> Tensor:
        if self._needs_full_logits:
            return nn.functional.cross_entropy(states.float(), labels, reduction="sum")
        vocabulary = self.backbone.config.get_text_config().vocab_size
        return head_loss(states, labels, self.backbone.get_output_embeddings(), vocabulary)

    def loss(self, batch: Batch) -> Tensor:
        total, tokens = self.token_loss(batch)
        return total / max(1, tokens)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum over tokens; `scale_gradients` divides by the effective batch's number of tokens."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._tokens, self._batches = 0, 0.0
        total, tokens = self.token_loss(batch)
        self._tokens = self._tokens + self.log_train_loss(total.detach() / max(1, tokens), tokens)
        if (share := share_of_mean_batch(len(batch["labels"]), self.trainer, self.device)) is not None:
            self._batches = self._batches + share
        return total * (self.trainer.accumulate_grad_batches * processes.world_size())  # Lightning divides by this

    def scale_gradients(self) -> None:
        """Turn summed gradients into means over all tokens with loss of the effective batch.

        With `data.batch_tokens`, they count by the number of rows, as with batches of equally many rows.
        """
        gradients = [p.grad for p in trainable(self.backbone).values() if p.grad is not None]
        weight = self._batches / self.trainer.accumulate_grad_batches if mean_rows(self.trainer) else 1.0
        torch._foreach_div_(gradients, float(max(1, self._tokens) / weight))

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        with_loss = (batch["labels"] != IGNORED).sum()
        if "real_tokens" in batch:  # packed: several examples per row
            tokens, rows = batch["real_tokens"], batch["samples"]
        else:
            tokens, rows = batch["attention_mask"].sum(), len(batch["input_ids"])
        return {"samples": rows, "tokens": tokens, "padded": batch["input_ids"].numel(), "trained": with_loss}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        if not self.return_row_results:
            return self._evaluate(batch, "val")
        sums, tokens = self.row_losses(batch)
        self.means["val"].update(sums.sum() / max(1, int(tokens.sum())), int(tokens.sum()))
        return {"loss": sums / tokens.clamp(min=1)}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        total, tokens = self.token_loss(batch)
        self.means[stage].update(total / max(1, tokens), tokens)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")
        if self.generate_samples and not self.trainer.sanity_checking:
            self._log_answers()

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, stage: str) -> None:
        mean = self.means[stage].compute()
        self.means[stage].reset()
        self.log_dict({f"{stage}_loss": mean, f"{stage}_perplexity": mean.exp()}, prog_bar=True)

    def answers(self, batch: Batch) -> list[str]:
        """Return the model's answers to a batch of prompts by greedy decoding, up to what ends an answer."""
        data = self.data
        new = self.generate(batch, data, max_new_tokens=self.max_new_tokens)
        return [up_to(data.stops[1], text) for text in data.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def generate(self, batch: Batch, data: Any, **options: Any) -> Tensor:
        """Return the token ids that the model generates after a batch of prompts, (B, U), with what ends an answer.

        Args:
            batch: `input_ids` and `attention_mask`, (B, T), padded on the left.
            data: the data module, with the tokenizer and what ends an answer.
            options: arguments of the model's `generate`; greedy decoding by default.
        """
        ids, (end_ids, end_texts) = batch["input_ids"], data.stops
        stopping = {"stop_strings": end_texts, "tokenizer": data.tokenizer} if end_texts else {}
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with self.autocast():
            generated = self.backbone.generate(
                input_ids=ids,
                attention_mask=batch["attention_mask"],
                use_cache=_can_cache(self.backbone),
                pad_token_id=data.tokenizer.pad_token_id,
                eos_token_id=end_ids or None,
                **stopping | greedy | options,
            )
        return generated if self.encoder_decoder else generated[:, ids.shape[1] :]

    def _log_answers(self) -> None:
        correct, shown = 0, []
        for batch, questions, responses in self.trainer.datamodule.prompts("val", self.generate_samples):
            moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
            for question, expected, answer in zip(questions, responses, self.answers(moved), strict=True):
                correct += answer.strip() == expected.strip()
                shown.append((question, answer, expected))
        self.log("val_exact_match", correct / len(shown), prog_bar=True)
        send(self.loggers, "table", "answers", ("question", "answer", "expected"), shown[:20], self.trainer.global_step)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Return one dict per row: its number in the file, and the generated response."""
        return with_rows(batch, [{"response": answer.strip()} for answer in self.answers(batch)])

    @torch.no_grad()
    def _logits_are_head_output(self, model: nn.Module) -> bool:
        """Return whether the logits are the unchanged output of the head; some models cap or scale the logits."""
        ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
        decoder = {"decoder_input_ids": ids} if self.encoder_decoder else {}
        outputs: list[Tensor] = []
        head = model.get_output_embeddings()
        handle = head.register_forward_hook(lambda _, arguments, output: outputs.append(output))
        try:
            logits = model(input_ids=ids, **decoder).logits
        finally:
            handle.remove()
        return any(logits is output for output in outputs)


def up_to(ends: Sequence[str], text: str) -> str:
    """Return a text up to the first of the texts that end an answer."""
    return re.split("|".join(map(re.escape, ends)), text)[0] if ends else text


def _can_cache(model: nn.Module) -> bool:
    """Return whether transformers makes a key-value cache with enough layers.

    For T5 and its kind it makes one for each encoder layer, too few if the decoder is deeper.
    """
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "num_decoder_layers", 0) <= getattr(config, "num_hidden_layers", 0)


def _move_to_one_device(model: nn.Module) -> None:
    """Move the model to the GPU if some weights are there already: layers quantised while loading are."""
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        model.to(next(device for device in devices if device.type != "cpu"))


def _hidden_states(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the input of the model's head, (B, T, width), without computing the logits: the head gets no rows."""
    hidden: list[Tensor] = []

    def catch(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden.append(arguments[0])
        return (arguments[0][:, :0], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        model(**inputs)
    finally:
        handle.remove()
    return hidden[0]

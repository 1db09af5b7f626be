"""What learning to respond has in common, whether the model has an encoder or not."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics.aggregation import MeanMetric

from litpeft.adapters.base import trainable
from litpeft.data.instruction_rows import IGNORED
from litpeft.errors import UserError
from litpeft.ops.head_loss import head_loss
from litpeft.tasks.base import Batch, FineTuner
from litpeft.tasks.pretrained import check_base, load_pretrained
from litpeft.training import processes


class LanguageModelling(FineTuner):
    """Learn responses token by token; the loss is the mean over the label-carrying tokens of an effective batch.

    Measures cross-entropy a token and perplexity, its exponential; and, where answers are generated, the share that is
    the expected response to the letter.

    Args:
        generate_samples: after each validation, answer the prompts of so many validation rows (the likeliest token at
            each step) and show them in TensorBoard.
        max_new_tokens: that an answer may have.
        options: model, adapter, optimizer and the rest, as in `FineTuner`.
    """

    auto: Any  # transformers' class that loads the model
    encoder_decoder = False

    def __init__(self, *common: Any, generate_samples: int = 0, max_new_tokens: int = 64, **options: Any) -> None:
        super().__init__(*common, **options)
        for name, value, least in (("generate_samples", generate_samples, 0), ("max_new_tokens", max_new_tokens, 1)):
            if value < least:
                raise UserError(f"model.{name} must be at least {least}, got {value}.")
        self.generate_samples, self.max_new_tokens = generate_samples, max_new_tokens
        self._tokens: Tensor | int = 0  # that carry loss, in the batches since the last optimizer step
        self._whole_logits = False  # the model does more to its logits than its head does

    def setup(self, stage: str) -> None:
        self.means = nn.ModuleDict({kind: MeanMetric() for kind in ("val", "test")})

    def load(
        self, data: LightningDataModule, dtype: torch.dtype, **options: Any
    ) -> tuple[nn.Module, list[str], list[str]]:
        model, new, misfits = load_pretrained(self.auto, self.model_name, data, dtype, **options)
        check_base(self.model_name, model, [], new, misfits)
        if new:
            raise UserError(f"model.model_name {self.model_name}: the file lacks {new[0]}; it holds no language model.")
        model.config.use_cache = False  # of training; generation asks for it
        _gather(model)
        self._whole_logits = not self._head_is_all(model)
        return model, [], []

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the model is fed with."""
        raise NotImplementedError

    def at_labels(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of (B, T, width) and (B, T), what foretells a label, (N, width), and the labels, (N)."""
        raise NotImplementedError

    def token_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """The sum of the cross-entropies, and of how many tokens."""
        with self.computing():
            states, labels = self._at_labels(batch)
            return self._summed(states, labels), len(labels)

    def row_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each row, the sum of the cross-entropies, (B), and of how many tokens, (B)."""
        owners = torch.arange(len(batch["labels"]), device=self.device)[:, None].expand_as(batch["labels"])
        tokens = self.at_labels(owners, batch["labels"])[0].bincount(minlength=len(owners))
        with self.computing():
            parts = (part.split(tokens.tolist()) for part in self._at_labels(batch))
            return torch.stack([self._summed(*part) for part in zip(*parts, strict=True)]), tokens

    def _at_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What foretells a label, logits or what the head makes them from, (N, width), and the labels, (N)."""
        if self._whole_logits:
            return self.at_labels(self.backbone(**self.inputs(batch)).logits, batch["labels"])
        return self.at_labels(_before_head(self.backbone, self.inputs(batch)), batch["labels"])

    def _summed(self, states: Tensor, labels: Tensor) -> Tensor:
        if self._whole_logits:
            return nn.functional.cross_entropy(states.float(), labels, reduction="sum")
        return head_loss(states, labels, self.backbone.get_output_embeddings(), self.backbone.config.vocab_size)

    def loss(self, batch: Batch) -> Tensor:
        total, tokens = self.token_loss(batch)
        return total / max(1, tokens)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum over tokens: what it is to be divided by is known when the effective batch is whole."""
        total, tokens = self.token_loss(batch)
        self._tokens = self._tokens + self.note_loss(total.detach() / max(1, tokens), tokens)
        return total * (self.trainer.accumulate_grad_batches * processes.count())  # by which Lightning divides it

    def scale_gradients(self) -> None:
        """Sums become means over all label-carrying tokens of the effective batch."""
        gradients = [p.grad for p in trainable(self.backbone).values() if p.grad is not None]
        torch._foreach_div_(gradients, float(max(1, self._tokens)))
        self._tokens = 0

    def token_counts(self, batch: Batch) -> dict[str, Tensor | int]:
        carrying = (batch["labels"] != IGNORED).sum()
        if "real_tokens" in batch:  # packed: several examples a row
            tokens, rows = batch["real_tokens"], batch["samples"]
        else:
            tokens, rows = batch["attention_mask"].sum(), len(batch["row"])
        return {"samples": rows, "tokens": tokens, "padded": batch["input_ids"].numel(), "trained": carrying}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        if not self.keeps_rows:
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
            self._show_answers()

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, stage: str) -> None:
        mean = self.means[stage].compute()
        self.means[stage].reset()
        self.log_dict({f"{stage}_loss": mean, f"{stage}_perplexity": mean.exp()}, prog_bar=True)

    def answers(self, batch: Batch) -> list[str]:
        """What the model says to prompts: the likeliest token at each step, up to the end of the text."""
        ids = batch["input_ids"]
        with self.computing():
            said = self.backbone.generate(
                input_ids=ids,
                attention_mask=batch["attention_mask"],
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                use_cache=True,
                pad_token_id=self._tokenizer.pad_token_id,
                eos_token_id=self._tokenizer.eos_token_id,
            )
        new = said if self.encoder_decoder else said[:, ids.shape[1] :]
        return self._tokenizer.batch_decode(new, skip_special_tokens=True)

    @property
    def _tokenizer(self) -> Any:
        return self.trainer.datamodule.tokenizer

    def _show_answers(self) -> None:
        right, shown = 0, []
        for batch, asked, expected in self.trainer.datamodule.prompts("val", self.generate_samples):
            moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
            for question, answer, said in zip(asked, expected, self.answers(moved), strict=True):
                right += said.strip() == answer.strip()
                shown.append(f"**{question}**\n\nsaid: {said}\n\nexpected: {answer}")
        self.log("val_exact_match", right / len(shown), prog_bar=True)
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("answers", "\n\n---\n\n".join(shown[:20]), self.trainer.global_step)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """One dict a row: its place in the file, and the answer."""
        pairs = zip(batch["row"].tolist(), self.answers(batch), strict=True)
        return [{"row": row, "response": said.strip()} for row, said in pairs]

    @torch.no_grad()
    def _head_is_all(self, model: nn.Module) -> bool:
        """Whether the logits are what the head gives: some models cap or scale them afterwards."""
        ids = torch.arange(4, device=model.device)[None] % model.config.vocab_size
        decoder = {"decoder_input_ids": ids} if self.encoder_decoder else {}
        given: list[Tensor] = []
        head = model.get_output_embeddings()
        handle = head.register_forward_hook(lambda _, arguments, output: given.append(output))
        try:
            logits = model(input_ids=ids, **decoder).logits
        finally:
            handle.remove()
        return any(logits is output for output in given)


def _gather(model: nn.Module) -> None:
    """What is quantised while it is read lies on its GPU already: the rest follows, so that the model can be asked."""
    places = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(places) > 1:
        model.to(next(place for place in places if place.type != "cpu"))


def _before_head(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What a model feeds its head with, (B, T, width); the head itself is given nothing to do."""
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

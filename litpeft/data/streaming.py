"""Training rows that are read and tokenised while a model trains: for sets that are larger than the disk's cache."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import datasets
import numpy as np

from litpeft.data.base import MAX_VAL_ROWS, SUBSET_SEED, FineTuneData, Split
from litpeft.data.cache import cached_table, fingerprint
from litpeft.data.sequences import BATCH
from litpeft.data.stream_blocks import Blocks, reading_copy
from litpeft.data.stream_loader import StreamLoader
from litpeft.data.told import shortened
from litpeft.errors import UserError

ENDLESS = 10**12  # batches of a run that has no limit


class StreamedData(FineTuneData):
    """Tokenised splits, or with `streaming` a stream of training rows.

    A stream is read block by block, as often as `trainer.max_steps` needs it; nothing of it is stored. Each block of
    `shuffle_buffer` rows is shuffled by itself. The rows for validation, test and prediction are prepared and cached as
    without streaming. Without validation rows of their own, the first `val_samples` rows (by default 2,000) are held
    out for it and never trained on.

    Args:
        streaming: read and tokenise the training rows while the model trains, instead of storing them first. Needs
            `trainer.max_steps`, and `label_names` for classes that a file cannot name.
        shuffle_buffer: number of rows that are read and shuffled together with `streaming`; 0 keeps their order.
        options: batch size, limits and the other options of `FineTuneData`.
    """

    def __init__(self, streaming: bool = False, shuffle_buffer: int = 10_000, **options: Any) -> None:
        super().__init__(**options)
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        if shuffle_buffer < 0:
            raise UserError(f"data.shuffle_buffer must not be negative, got {shuffle_buffer}.")
        self._loader_of_stream: StreamLoader | None = None

    def _needed(self, stage: str | None = None) -> tuple[Split, ...]:
        """Return the splits that are prepared: all that a stage needs, except for a stream."""
        return tuple(split for split in super()._needed(stage) if split != "train" or not self.streaming)

    def table(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        if not self.streaming or split in self._tables:
            return super().table(split)
        if split == "train":
            _ = self.head  # says what is wrong with the rows
            raise UserError("data.streaming: the training rows have no table, because they are not stored.")
        if split == "val" and self._held_out:
            rows = self._held_out
            name = fingerprint(self._stream, self._tokenizer_fingerprint, self.max_length, "first", rows)
            folder = self.cache_dir / "tables" / name
            table, facts = cached_table(folder, lambda: Blocks(self, rows).first_table())
            self._highest["val"] = facts.pop("highest_token", None)
            self._tables["val"] = table, facts | {"fingerprint": name}
        return super().table(split)

    def has_rows(self, split: Split) -> bool:
        """Return whether a split has rows of its own."""
        return self.source(split) is not None

    @cached_property
    def _held_out(self) -> int:
        """Number of rows at the start of the stream that are held out for validation."""
        return 0 if self.has_rows("val") else self.samples["val"] or MAX_VAL_ROWS

    @cached_property
    def _stream(self) -> dict[str, Any]:
        """Everything that the training rows depend on, for the cache key."""
        source = self.source("train")
        if source is None:
            raise UserError("data.streaming needs training rows; give data.train_file or data.dataset.")
        return source

    def _selected_rows(self, split: Split) -> np.ndarray:
        if not self.streaming or split != "val":
            return super()._selected_rows(split)
        order = np.random.default_rng(SUBSET_SEED).permutation(len(self.table("val")[0]))
        return np.sort(order[: self.samples["val"]])

    def prepare_data(self) -> None:
        if self.streaming and "train" in super()._needed():
            self._check_options()
        super().prepare_data()

    def setup(self, stage: str) -> None:
        """Prepare the splits; of a stream, read the first rows, to show them and to find mistakes before training."""
        if self.streaming and stage == "fit":
            self._check_options()
            _ = self.head
        super().setup(stage)

    def _check_options(self) -> None:
        """Raise a UserError for options that a stream cannot follow."""
        trainer = self.trainer
        trains = str(getattr(getattr(trainer, "state", None), "fn", None)) == "TrainerFn.FITTING"
        steps, epochs = getattr(trainer, "max_steps", None), getattr(trainer, "max_epochs", None)
        if trains and steps is not None and not trainer.fast_dev_run:
            if steps < 1 and epochs != -1:
                raise UserError("data.streaming trains by steps, because rows are not counted; give trainer.max_steps.")
            if (epochs or 0) > 0:
                raise UserError("data.streaming trains by steps (trainer.max_steps); leave out trainer.max_epochs.")
        for name, kind in (("class_weights", "class"), ("positive_weights", "label")):
            if getattr(getattr(trainer, "lightning_module", None), name, None) == "balanced":
                raise UserError(
                    f"model.{name} balanced needs the number of rows of each {kind}, which a stream does not know; "
                    "give the weights as a list."
                )
        if self.batch_tokens is not None:
            raise UserError("data.batch_tokens does not work with data.streaming; give data.batch_size.")
        self.check_stream()

    def check_stream(self) -> None:
        """Raise a UserError if the training rows cannot be read one by one."""

    @cached_property
    def head(self) -> StreamedData:
        """A copy of this data set with the first training rows of a stream, to be shown to the user."""
        _ = self._stream
        blocks = Blocks(self, min(BATCH, self.shuffle_buffer or BATCH), self._held_out, self.samples["train"])
        head, table = reading_copy(self), blocks.first_table()
        head._tables["train"] = table
        head.rows = {"train": head.encoded("train", np.arange(len(table[0])))}
        for name in ("used_columns", "unused_columns", "columns_found"):  # of the first rows, for all blocks
            if hasattr(self, name):
                setattr(self, name, getattr(blocks.data, name))
        return head

    @property
    def num_train_batches(self) -> int:
        if not self.streaming:
            return super().num_train_batches
        steps = getattr(self.trainer, "max_steps", -1)
        return steps * self.trainer.accumulate_grad_batches if steps > 0 else ENDLESS

    def epochs(self, batches: int) -> float | None:
        return None if self.streaming else super().epochs(batches)

    def train_dataloader(self) -> Any:
        if not self.streaming:
            return super().train_dataloader()
        trainer = self.trainer
        backbone = getattr(getattr(trainer, "lightning_module", None), "backbone", None)
        self._loader_of_stream = StreamLoader(
            Blocks(self, self.shuffle_buffer or BATCH, self._held_out, self.samples["train"]),
            self.batch_size,
            self.num_train_batches,
            seed=self.seed_used if self.shuffle_buffer else None,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
            most=_embeddings(backbone),
            num_workers=self.num_workers,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )
        return self._loader_of_stream

    def measured(self) -> dict[str, Any]:
        """Return the record fields of a stream: rows read, used and trained on so far."""
        return {"stream": None if self._loader_of_stream is None else self._loader_of_stream.measured()}

    def highest_token(self) -> int:
        return max(super().highest_token(), self.head.highest_token() if "head" in vars(self) else 0)

    def describe(self) -> dict[str, Any]:
        """Return the base class's facts; of a stream, those of its first rows, which say so."""
        found = super().describe()
        if "head" not in vars(self):
            return found
        (table, facts), rows = self.head._tables["train"], self.head.rows["train"]
        named = {name: facts[name] for name in ("columns", "unused_columns", "files", "label_names") if name in facts}
        name = fingerprint(self._stream, self._tokenizer_fingerprint, self.max_length)
        found["tables"]["train"] = named | {"fingerprint": name, "streamed": True}
        found["example"] = [{"text": text, "has_loss": loss} for text, loss in shortened(self.head.example("train"))]
        tokens = {"median": float(np.median(rows.lengths)), "longest": int(rows.lengths.max())}
        lost = {
            "skipped_rows": facts.get("skipped_rows", 0),
            "dropped_rows": getattr(self.head, "dropped", {}).get("train", 0),
            "truncated_rows": getattr(self.head, "truncated", {}).get("train", facts.get("truncated_rows", 0)),
        }
        first = {"rows": len(table), "tokens_per_row": tokens, "shuffle_buffer": self.shuffle_buffer}
        found["first_rows"] = first | lost
        if self._held_out:
            held = f"the first {self._held_out:,} rows of the stream are held out for it and never trained on"
            found["val_cut_from_train"] = f"there is no validation split: {held}"
        return found


def _embeddings(model: Any) -> int | None:
    """Return the number of input embeddings of a model; None if unknown."""
    try:
        return None if model is None else getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE hashes characters
        return None

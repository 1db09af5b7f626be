"""Base class of the data sets: splits that are tokenised once and cached, row limits, and seeded batches.

To add a classification data set: derive from `TextClassification` with other defaults, as `sst2.py` does.
To add another kind of data set: derive from `FineTuneData` in a new file, implement `source` and `tokenise`, and import
the class in `__init__.py`. A minimal example:

    class Echo(FineTuneData):
        def source(self, split):
            return {"echo": split} if split in ("train", "val") else None

        def tokenise(self, split):
            ids = self.tokenizer(["one", "two"])["input_ids"]
            return datasets.Dataset.from_dict({"input_ids": ids, "label": [0, 1]}), {"label_names": ["a", "b"]}
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import lightning as L
import numpy as np
import pyarrow as pa
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from litpeft.data.arrays import column_array
from litpeft.data.cache import cached_table, fingerprint, highest_token, stored, tokenizer_fingerprint
from litpeft.data.collate import EncodedRows
from litpeft.data.sampler import LengthGroupedBatches, ResumableLoader
from litpeft.data.token_batches import kind_of_batches
from litpeft.data.told import Part, shortened
from litpeft.errors import UserError
from litpeft.hub.cache_dir import default_cache_dir
from litpeft.hub.hub import explaining_hub_errors, local_or_hub

Split = Literal["train", "val", "test", "predict"]

STAGES: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
SUBSET_SEED = 0  # the selected rows are part of the data: the same for every random seed of a run
VAL_SHARE, MAX_VAL_ROWS = 0.1, 2000  # rows cut from train if there is no validation split


class FineTuneData(L.LightningDataModule):
    """Tokenised splits and their batches.

    Args:
        tokenizer: hub id or folder of the tokenizer; by default that of the model.
        batch_size: batch size per device, in rows, for training and evaluation.
        batch_tokens: most tokens of a batch per device, with padding, instead of `batch_size` rows. Each row keeps the
            same weight: the loss of a batch counts by its number of rows.
        max_length: maximum sequence length in tokens; longer rows are truncated.
        train_samples: number of training rows to use, selected with a fixed seed; all by default.
        val_samples: number of validation rows to use; all by default. If the data set has no validation split, this
            many rows are cut from train: by default a tenth, at most 2,000.
        test_samples: number of test rows to use; all by default.
        seed: random seed of the order of the batches; by default that of `seed_everything`.
        num_workers: number of processes that build batches.
        cache_dir: folder of the tokenised tables; by default `$LITPEFT_CACHE` or the user's cache folder.
    """

    batches: type[LengthGroupedBatches] = LengthGroupedBatches  # the order of the batches
    # options that are found from the training rows if not given; a finished run takes them from its record
    from_training_rows: tuple[str, ...] = ("label_names", "target_mean", "target_deviation")

    def __init__(
        self,
        tokenizer: str | None = None,
        batch_size: int = 32,
        max_length: int = 256,
        train_samples: int | None = None,
        val_samples: int | None = None,
        test_samples: int | None = None,
        seed: int | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        numbers = {"batch_size": batch_size, "batch_tokens": batch_tokens, "max_length": max_length}
        samples = {"train_samples": train_samples, "val_samples": val_samples, "test_samples": test_samples}
        for name, value in (numbers | samples).items():
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}.")
        if seed is not None and seed < 0:
            raise UserError(f"data.seed must not be negative, got {seed}.")
        self.tokenizer_name = tokenizer
        self.batches, self.batch_tokens = kind_of_batches(self.batches, batch_tokens), batch_tokens
        self.batch_size, self.max_length, self.num_workers, self.seed = batch_size, max_length, num_workers, seed
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.rows: dict[str, EncodedRows] = {}
        self._tables: dict[str, tuple[datasets.Dataset, dict[str, Any]]] = {}
        self._highest: dict[str, int | None] = {}  # split -> largest token id of its table

    def source(self, split: Split) -> dict[str, Any] | None:
        """Return everything that the rows of a split depend on, for the cache key; None if there is no such split."""
        raise NotImplementedError

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        """Return the table of a split, with columns `input_ids` and `label`, and facts about it for the run record."""
        raise NotImplementedError

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; one without a padding token (GPT-2, Llama) pads with its end-of-text token."""
        name = self.tokenizer_name
        if name is None:
            raise UserError(
                f"data.tokenizer is missing, and there is no model to take it from; give a task to the trainer or to "
                f"setup_model, or {type(self).__name__}(tokenizer=...)."
            )
        with explaining_hub_errors(name, "data.tokenizer", "a local folder (data.tokenizer, or model.model_name)"):
            tokenizer = AutoTokenizer.from_pretrained(local_or_hub(name, "data.tokenizer", "tokenizer_config.json"))
        if self.max_length > tokenizer.model_max_length:
            raise UserError(
                f"data.max_length {self.max_length} is more than the {tokenizer.model_max_length} tokens "
                f"that {name} supports."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"data.tokenizer {name} has neither a padding nor an end-of-text token; name one of its tokens as "
                "pad_token in its tokenizer_config.json."
            )
        return tokenizer

    def tokenizer_to_export(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer with all that a user of the trained model needs."""
        return self.tokenizer

    def prepare_data(self) -> None:
        """Tokenise the splits that are not in the cache; Lightning calls this in one process."""
        for split in self._needed():
            self.table(split)

    def setup(self, stage: str) -> None:
        """Read the tables from the cache and select the rows of each split."""
        for split in self._needed(stage):
            self.rows[split] = self.encoded(split, self._selected_rows(split))

    def encoded(self, split: Split, rows: np.ndarray) -> EncodedRows:
        """Return the data set that batches are built from: these rows of the split's table."""
        return self.kept(split, rows)

    def kept(self, split: Split, rows: np.ndarray) -> EncodedRows:
        """Return the rows of the split's table that can be used, of these; the default keeps all."""
        return EncodedRows(self.table(split)[0], rows, self.tokenizer.pad_token_id)

    def stored(self, batches: Iterable[dict[str, pa.Array]]) -> pa.Table:
        """Return batches of columns, at least one, as one table that is read from the disk."""
        return stored(batches, self.cache_dir / "tables")

    def table(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        """Return all tokenised rows of a split and facts about them; train's table if validation is cut from train."""
        if split in self._tables:
            return self._tables[split]
        source = self.source(split)
        if source is None and split == "val":
            return self.table("train")
        if source is None:
            raise UserError(f"{type(self).__name__} has no {split} split; give data.{split}_file.")
        name = fingerprint(source, self._tokenizer_fingerprint, self.max_length)
        table, facts = cached_table(self.cache_dir / "tables" / name, lambda: self.tokenise(split))
        self._highest[split] = facts.pop("highest_token", None)  # absent in tables of version 0.1.0
        self._tables[split] = table, facts | {"fingerprint": name}
        return self._tables[split]

    def stored_labels(self, split: Split, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the column `label`, (rows, ...): of the used rows of a split, or of these rows of its table."""
        if rows is None:  # a model that is only evaluated has set up no training rows
            rows = self.rows[split].rows if split in self.rows else self._selected_rows(split)
        return column_array(self.table(split)[0], "label")[rows]

    def highest_token(self) -> int:
        """Return the largest token id in the loaded tables, to compare with the model's embeddings."""
        known = self._highest
        found = [
            known[split] if known.get(split) is not None else highest_token(self._tables[split][0])
            for split in self._tables
        ]
        return max(found, default=0)

    @cached_property
    def _tokenizer_fingerprint(self) -> str:
        return tokenizer_fingerprint(self.tokenizer)

    def _needed(self, stage: str | None = None) -> tuple[Split, ...]:
        if stage is None:
            stage = self.trainer.state.fn.value if self.trainer is not None else "fit"
        if self.trainer is not None:
            self._take_tokenizer(self.trainer)
            loop = getattr(self.trainer, f"{stage}_loop", None)
            source = getattr(getattr(loop, "_data_source", None), "instance", self)
            if source is not None and source is not self:  # a trainer that had this data before, now with dataloaders
                return ()
        return STAGES[stage]

    def _take_tokenizer(self, trainer: L.Trainer) -> None:
        """Use the tokenizer of the task's model if none is named."""
        if self.tokenizer_name is None:
            self.tokenizer_name = getattr(trainer.lightning_module, "model_name", None)

    def _selected_rows(self, split: Split) -> np.ndarray:
        """Return the row numbers of a split in its table, ascending."""
        order = np.random.default_rng(SUBSET_SEED).permutation(len(self.table(split)[0]))
        limit = self.samples.get(split)
        if split in ("train", "val") and self.table("val") is self.table("train"):
            cut = self.samples["val"] or max(1, min(MAX_VAL_ROWS, int(VAL_SHARE * len(order))))
            if cut >= len(order):
                raise UserError(
                    f"data.val_samples {cut} leaves no training rows: validation is cut from the "
                    f"{len(order)} training rows."
                )
            order = self.cut(order, cut)
            order, limit = (order[:cut], None) if split == "val" else (order[cut:], limit)
        return np.sort(order[:limit])

    def why_cut(self) -> str:
        """Return why the validation rows are cut from the training rows, for the user."""
        return "there is no validation split: its rows are cut from the training rows"

    def cut(self, order: np.ndarray, rows: int) -> np.ndarray:
        """Return the row numbers in `order` with the `rows` validation rows first; the default takes the first."""
        return order

    @property
    def num_train_batches(self) -> int:
        """Batches per epoch (of all processes together); known after `setup`."""
        return len(self._sampler("train"))

    def epochs(self, batches: int) -> float | None:
        """Return how often a run has passed over the training rows after this many batches; None if unknown."""
        return batches / self.num_train_batches if batches else 0.0

    def _sampler(self, split: Split, all_rows: bool = False) -> LengthGroupedBatches:
        shared = self.trainer is not None and not all_rows
        ranks = (self.trainer.global_rank, self.trainer.world_size) if shared else (0, 1)
        size = self.batch_tokens or self.batch_size
        return self.batches(self.rows[split].lengths, size, self.seed_used, split == "train", *ranks)

    @property
    def seed_used(self) -> int:
        """Random seed of the order of the batches."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def _loader(self, split: Split, all_rows: bool = False) -> ResumableLoader:
        return ResumableLoader(
            self.rows[split],
            self._sampler(split, all_rows),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def unsharded_loader(self, split: Split) -> ResumableLoader:
        """Return a loader of all rows of a split, even if several processes train."""
        return self._loader(split, all_rows=True)

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train")

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        return self._loader("predict")

    def example(self, split: Split, index: int = 0) -> list[Part]:
        """Return the text of a row in parts, each with whether its tokens have loss; special tokens are shown."""
        return [(self.tokenizer.decode(ids), has_loss) for ids, has_loss in self.rows[split].marked(index)]

    def describe(self) -> dict[str, Any]:
        """Return the number of rows used of each split, the facts about their tables and a row, for the run record."""
        lengths = {split: rows.lengths for split, rows in self.rows.items() if len(rows)}
        parts = shortened(self.example("train")) if "train" in self.rows else []
        is_cut = "val" in self.rows and "val" not in self._tables
        return {
            "example": [{"text": text, "has_loss": has_loss} for text, has_loss in parts],
            "val_cut_from_train": self.why_cut() if is_cut else None,
            "rows": {split: len(rows) for split, rows in self.rows.items()},
            "asked": {s: n for s, n in self.samples.items() if n and s in lengths and n > len(self._selected_rows(s))},
            "tokens_per_row": {
                split: {"median": float(np.median(tokens)), "longest": int(tokens.max())}
                for split, tokens in lengths.items()
            },
            "tables": {split: facts for split, (_, facts) in self._tables.items()},
        }

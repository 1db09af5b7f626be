"""What every data set has: splits that are tokenised once, limits, and batches that depend on the seed alone.

To add one for classification: derive from `TextClassification` with other defaults, as `sst2.py` does. To add another
kind: derive from `FineTuneData` in a file of its own, implement `source` and `tokenise`, import it in `__init__.py`.
A minimal one:

    class Echo(FineTuneData):
        def source(self, split):
            return {"echo": split} if split in ("train", "val") else None

        def tokenise(self, split):
            ids = self.tokenizer(["one", "two"])["input_ids"]
            return datasets.Dataset.from_dict({"input_ids": ids, "label": [0, 1]}), {"label_names": ["a", "b"]}
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from litpeft.data.cache import cached_table, fingerprint, tokenizer_fingerprint
from litpeft.data.collate import EncodedRows
from litpeft.data.sampler import LengthGroupedBatches, ResumableLoader
from litpeft.errors import UserError
from litpeft.hub.cache_dir import default_cache_dir
from litpeft.hub.hub import asking_hub, local_or_hub

Split = Literal["train", "val", "test", "predict"]

STAGES: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
SUBSET_SEED = 0  # which rows are taken is part of the data, the same for every seed of a run
VAL_SHARE, VAL_MOST = 0.1, 2000  # what is cut from train where a set has no validation split


class FineTuneData(L.LightningDataModule):
    """Tokenised splits and their batches.

    Args:
        tokenizer: hub id or folder; the model's own by default.
        batch_size: rows in a batch of each process, training and evaluation alike.
        max_length: tokens that a row is cut to.
        train_samples: use that many training rows, drawn by a fixed seed; all by default.
        val_samples: likewise for validation. Where the set has no validation split, so many rows are cut from train:
            by default a tenth, at most 2,000.
        test_samples: likewise for test.
        seed: of the order of batches; by default what `seed_everything` says.
        num_workers: processes that make batches.
        cache_dir: where tokenised tables are kept; by default `$LITPEFT_CACHE` or the user's cache folder.
    """

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
    ) -> None:
        super().__init__()
        numbers = {"batch_size": batch_size, "max_length": max_length}
        samples = {"train_samples": train_samples, "val_samples": val_samples, "test_samples": test_samples}
        for name, value in (numbers | samples).items():
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}.")
        if seed is not None and seed < 0:
            raise UserError(f"data.seed must not be negative, got {seed}.")
        self.tokenizer_name = tokenizer
        self.batch_size, self.max_length, self.num_workers, self.seed = batch_size, max_length, num_workers, seed
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.rows: dict[str, EncodedRows] = {}
        self._tables: dict[str, tuple[datasets.Dataset, dict[str, Any]]] = {}

    def source(self, split: Split) -> dict[str, Any] | None:
        """What the rows of a split are made of, by which they are found again; None where there is no such split."""
        raise NotImplementedError

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        """The rows of a split, `input_ids` and `label`, and facts about them for the record."""
        raise NotImplementedError

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; the end of a text also pads where it has no padding token (GPT-2, Llama)."""
        name = self.tokenizer_name
        if name is None:
            raise UserError("data.tokenizer is not given, and there is no model to take it from.")
        with asking_hub(name, "data.tokenizer", "a local folder (data.tokenizer, or model.model_name)"):
            tokenizer = AutoTokenizer.from_pretrained(local_or_hub(name, "data.tokenizer", "tokenizer_config.json"))
        if self.max_length > tokenizer.model_max_length:
            raise UserError(
                f"data.max_length {self.max_length} is more than the {tokenizer.model_max_length} tokens "
                f"that {name} takes."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def prepare_data(self) -> None:
        """Tokenise, on one process, what is not in the cache yet."""
        for split in self._needed():
            self.table(split)

    def setup(self, stage: str) -> None:
        """Take the tables from the cache, and the rows of each split that the limits leave."""
        for split in self._needed(stage):
            self.rows[split] = self.encoded(split, self._chosen(split))

    def encoded(self, split: Split, rows: np.ndarray) -> EncodedRows:
        """What batches are made from: these rows of the split's table."""
        return EncodedRows(self.table(split)[0], rows, self.tokenizer.pad_token_id)

    def table(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        """All rows of a split, tokenised, and facts about them; a validation split cut from train is train's table."""
        if split in self._tables:
            return self._tables[split]
        source = self.source(split)
        if source is None and split == "val":
            return self.table("train")
        if source is None:
            raise UserError(f"{type(self).__name__} has no {split} split; give data.{split}_file.")
        name = fingerprint(source, self._tokenizer_fingerprint, self.max_length)
        table, facts = cached_table(self.cache_dir / "tables" / name, lambda: self.tokenise(split))
        self._tables[split] = table, facts | {"fingerprint": name}
        return self._tables[split]

    def highest_token(self) -> int:
        """The greatest id of a token in the tables that are in use; one that the model has no row for is a mistake."""
        columns = [table.data.column(name) for table, _ in self._tables.values() for name in table.column_names]
        lists = [column for column in columns if pa.types.is_list(column.type)]
        return max((pc.max(pc.list_flatten(column)).as_py() or 0 for column in lists), default=0)

    @cached_property
    def _tokenizer_fingerprint(self) -> str:
        return tokenizer_fingerprint(self.tokenizer)

    def _needed(self, stage: str | None = None) -> tuple[Split, ...]:
        if stage is None:
            stage = self.trainer.state.fn.value if self.trainer is not None else "fit"
        return STAGES[stage]

    def _chosen(self, split: Split) -> np.ndarray:
        """The places of a split's rows in its table, ascending."""
        order = np.random.default_rng(SUBSET_SEED).permutation(len(self.table(split)[0]))
        limit = self.samples.get(split)
        if split in ("train", "val") and self.table("val") is self.table("train"):
            cut = self.samples["val"] or max(1, min(VAL_MOST, int(VAL_SHARE * len(order))))
            if cut >= len(order):
                raise UserError(
                    f"data.val_samples {cut} leaves nothing of the {len(order)} training rows "
                    "that validation is cut from."
                )
            order, limit = (order[:cut], None) if split == "val" else (order[cut:], limit)
        return np.sort(order[:limit])

    @property
    def num_train_batches(self) -> int:
        """Batches of an epoch, each of all processes. Known after `setup`; asking leaves a resumed loader's state."""
        return len(self._sampler("train"))

    def _sampler(self, split: Split, alone: bool = False) -> LengthGroupedBatches:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        several = self.trainer is not None and not alone
        ranks = (self.trainer.global_rank, self.trainer.world_size) if several else (0, 1)
        return LengthGroupedBatches(self.rows[split].lengths, self.batch_size, seed, split == "train", *ranks)

    def _loader(self, split: Split, alone: bool = False) -> ResumableLoader:
        return ResumableLoader(
            self.rows[split],
            self._sampler(split, alone),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def whole_loader(self, split: Split) -> ResumableLoader:
        """All rows of a split, also where several processes share them otherwise."""
        return self._loader(split, alone=True)

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train")

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        return self._loader("predict")

    def describe(self) -> dict[str, Any]:
        """For the record: rows used of each split, and the facts about the tables that they come from."""
        return {
            "rows": {split: len(rows) for split, rows in self.rows.items()},
            "tables": {split: facts for split, (_, facts) in self._tables.items()},
        }

"""Base class of instruction data sets: prompts and responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from torch import Tensor

from litpeft.data.base import FineTuneData, Split
from litpeft.data.instruction_rows import InstructionRows, Layout
from litpeft.data.packing import pack
from litpeft.data.templates import Template
from litpeft.errors import UserError

BATCH = 1000  # texts per call of the tokenizer


class Instructions(FineTuneData):
    """Prompts and responses for causal and encoder-decoder models.

    For a causal model, a row is prompt, response and end-of-text token, truncated to `max_length`. For an
    encoder-decoder model, prompt and response are truncated separately. Rows without a response, or whose truncation
    leaves none, are dropped and counted.

    Args:
        template: `alpaca`, `chat` (the tokenizer's chat template), or a YAML file with `prompt_input` and
            `prompt_no_input`.
        train_on: the tokens with loss: `response` (with its end-of-text token), or `prompt` (prompt and response).
        packing: pack several examples into one row of `max_length` tokens; attention stays within each example. Causal
            models only. `batch_size` then counts packed rows.
        options: batch size, limits and the other options of `FineTuneData`.
    """

    def __init__(
        self,
        template: str = "alpaca",
        train_on: Literal["response", "prompt"] = "response",
        packing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.template_name, self.train_on, self.packing = template, train_on, packing
        self.dropped: dict[str, int] = {}
        self.packed_rows: dict[str, int] = {}
        self.facts_of_reading: dict[str, dict[str, Any]] = {}  # split -> what `examples` left out

    def examples(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """Yield (instruction, input, response) of each row; the input may be empty, and for `predict` the response."""
        raise NotImplementedError

    def source_of_examples(self, split: Split) -> dict[str, Any] | None:
        """Return everything that `examples` depends on, for the cache key; None if there is no such split."""
        raise NotImplementedError

    def source(self, split: Split) -> dict[str, Any] | None:
        source = self.source_of_examples(split)
        return source and source | {
            "template": Template(self.template_name, self.tokenizer).source,
            "kind": "instructions",
        }

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        template, tokenizer = Template(self.template_name, self.tokenizer), self.tokenizer
        prompts, responses, texts, empty = [], [], [], 0
        end = tokenizer.eos_token or ""
        for instruction, given, response in self.examples(split):
            response = response.removesuffix(end)  # the end-of-text token follows each response anyway
            if not response.strip() and split != "predict":
                empty += 1
                continue
            prompts.append(template.prompt(instruction, given))
            responses.append(response)
            texts.append(f"{instruction}\n\n{given}" if given else instruction)
        if not prompts:
            raise UserError(f"data: the {split} rows of {type(self).__name__} have no responses to train on.")
        prompt_ids, response_ids = [], []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            options = {"verbose": False, "return_attention_mask": False}
            prompt_ids += tokenizer(prompts[part], add_special_tokens=template.adds_specials, **options)["input_ids"]
            response_ids += tokenizer(responses[part], add_special_tokens=False, **options)["input_ids"]
        ids = pa.list_(pa.int32())
        columns = {"prompt": pa.array(prompt_ids, ids), "response": pa.array(response_ids, ids), "text": texts}
        facts = {"total_rows": len(prompts) + empty, "empty_responses_dropped": empty}
        facts |= self.facts_of_reading.get(split, {})
        return datasets.Dataset(pa.table(columns | {"answer": responses})), facts

    def encoded(self, split: Split, rows: np.ndarray) -> InstructionRows:
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"data.tokenizer {self.tokenizer_name} has no end-of-text token, so no response could end; name one of "
                "its tokens as eos_token in its tokenizer_config.json."
            )
        task = self.trainer.lightning_module if self.trainer is not None else None
        encoder = getattr(task, "encoder_decoder", False)
        layout: Layout = "prompts" if split == "predict" else "pairs" if encoder else "text"
        encoded = InstructionRows(
            self.table(split)[0], rows, self.tokenizer, self.max_length, layout, self.train_on == "prompt", encoder
        )
        self.dropped[split] = len(rows) - len(encoded)
        if not len(encoded):
            raise UserError(
                f"data.max_length {self.max_length} leaves no response in any of the {split} rows; give a larger one."
            )
        if self.packing and encoder:
            raise UserError("data.packing is for causal models; leave it out.")
        if self.packing and split == "train":
            encoded.bins = pack(encoded.lengths, self.max_length)
            self.packed_rows[split] = len(encoded)
        return encoded

    def describe(self) -> dict[str, Any]:
        """Return the base class's facts, the rows dropped by truncation and, with packing, the packed rows."""
        packed = {"packed_rows": self.packed_rows} if self.packing else {}
        return super().describe() | {"dropped_without_response": self.dropped} | packed

    def prompts(self, split: Split, count: int) -> Iterator[tuple[dict[str, Tensor], list[str], list[str]]]:
        """Yield batches of the first `count` prompts of a split, with their texts and the expected responses."""
        task = self.trainer.lightning_module
        encoder = getattr(task, "encoder_decoder", False)
        table = self.table(split)[0]
        selected = self._selected_rows(split)[:count]
        rows = InstructionRows(table, selected, self.tokenizer, self.max_length, "prompts", encoder=encoder)
        for start in range(0, len(rows), self.batch_size):
            batch = rows[range(start, min(start + self.batch_size, len(rows)))]
            numbers = batch["row"].tolist()
            yield batch, [table["text"][row] for row in numbers], [table["answer"][row] for row in numbers]

"""Instructions and the responses that are to be learned: what all such sets have."""

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

BATCH = 1000  # texts that the tokenizer is given at once


class Instructions(FineTuneData):
    """Prompts and responses for causal and sequence-to-sequence models.

    A row of a causal model is the prompt, the response and the end of the text, cut to `max_length`; a model with an
    encoder reads the one and writes the other, each cut to `max_length`. A row without a response, or of which the cut
    leaves none, is dropped and counted.

    Args:
        template: `alpaca`, `chat` (the tokenizer's own), or a YAML file with `prompt_input` and `prompt_no_input`.
        train_on: which tokens carry loss: those of the `response` and its end, or also those of the `prompt`.
        packing: put several rows, whole, into one of `max_length` tokens; each keeps its own positions and attends to
            itself alone. Causal models only. `batch_size` then counts such rows.
        options: batch size, limits and the rest, as in `FineTuneData`.
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

    def examples(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """(instruction, input, response) of each row; the input may be empty, as what is to be predicted may."""
        raise NotImplementedError

    def source_of_examples(self, split: Split) -> dict[str, Any] | None:
        """What `examples` depends on; None where there is no such split."""
        raise NotImplementedError

    def source(self, split: Split) -> dict[str, Any] | None:
        own = self.source_of_examples(split)
        return own and own | {"template": Template(self.template_name, self.tokenizer).source, "kind": "instructions"}

    def tokenise(self, split: Split) -> tuple[datasets.Dataset, dict[str, Any]]:
        template, tokenizer = Template(self.template_name, self.tokenizer), self.tokenizer
        prompts, responses, texts, empty = [], [], [], 0
        for instruction, given, response in self.examples(split):
            if not response.strip() and split != "predict":
                empty += 1
                continue
            prompts.append(template.prompt(instruction, given))
            responses.append(response)
            texts.append(f"{instruction}\n\n{given}" if given else instruction)
        if not prompts:
            raise UserError(f"data: the {split} rows of {type(self).__name__} have no responses to learn.")
        prompt_ids, response_ids = [], []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            how = {"verbose": False, "return_attention_mask": False}
            prompt_ids += tokenizer(prompts[part], add_special_tokens=template.adds_specials, **how)["input_ids"]
            response_ids += tokenizer(responses[part], add_special_tokens=False, **how)["input_ids"]
        ids = pa.list_(pa.int32())
        columns = {"prompt": pa.array(prompt_ids, ids), "response": pa.array(response_ids, ids), "text": texts}
        facts = {"total_rows": len(prompts) + empty, "empty_responses_dropped": empty}
        return datasets.Dataset(pa.table(columns | {"answer": responses})), facts

    def encoded(self, split: Split, rows: np.ndarray) -> InstructionRows:
        task = self.trainer.lightning_module if self.trainer is not None else None
        pairs = getattr(task, "encoder_decoder", False)
        kind: Layout = "prompts" if split == "predict" else "pairs" if pairs else "text"
        encoded = InstructionRows(
            self.table(split)[0], rows, self.tokenizer, self.max_length, kind, self.train_on == "prompt", pairs
        )
        self.dropped[split] = len(rows) - len(encoded)
        if not len(encoded):
            raise UserError(f"data.max_length {self.max_length} leaves no response in any of the {split} rows.")
        if self.packing and pairs:
            raise UserError("data.packing is for causal models; leave it out.")
        if self.packing and split == "train":
            encoded.bins = pack(encoded.lengths, self.max_length)
            self.packed_rows[split] = len(encoded)
        return encoded

    def describe(self) -> dict[str, Any]:
        """As all sets, and rows that the cut left no response of; with packing, how many rows they were put into."""
        packed = {"packed_rows": self.packed_rows} if self.packing else {}
        return super().describe() | {"dropped_without_response": self.dropped} | packed

    def prompts(self, split: Split, count: int) -> Iterator[tuple[dict[str, Tensor], list[str], list[str]]]:
        """Batches of the first prompts of a split, with what they ask in words, and the expected responses."""
        task = self.trainer.lightning_module
        encoder = getattr(task, "encoder_decoder", False)
        table = self.table(split)[0]
        chosen = self._chosen(split)[:count]
        rows = InstructionRows(table, chosen, self.tokenizer, self.max_length, "prompts", encoder=encoder)
        for start in range(0, len(rows), self.batch_size):
            batch = rows[range(start, min(start + self.batch_size, len(rows)))]
            own = batch["row"].tolist()
            yield batch, [table["text"][row] for row in own], [table["answer"][row] for row in own]

"""The sides of `make bench-gpu`: litpeft, and Hugging Face Trainer + PEFT, each with a Llama of random weights.

Both train on the same batches, with the same learning rate, targets, rank and dtype (bf16, adapters in fp32) and fused
AdamW, and log nothing. No side reads a file, so that the benchmark runs offline.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
import transformers
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from litpeft.adapters import DoRA, LoRA, QLoRA
from litpeft.adapters.linear4bit import bitsandbytes
from litpeft.tasks import CausalLM
from litpeft.tasks.packed_rows import attends_within_documents
from tests.conftest import QUIET

SHAPES: dict[str, dict[str, int]] = {  # TinyLlama-1.1B, Llama-2-7B
    "1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    | {"num_key_value_heads": 4},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
}
TARGETS = {
    "q,v": ["q_proj", "v_proj"],
    "all-linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
STRATEGIES = {"lora": LoRA, "dora": DoRA, "qlora": QLoRA}
DOCUMENT = 256  # tokens of each document in packed rows
RANK, LR = 16, 1e-4


@dataclass(frozen=True)
class Case:
    """One combination: model shape, rows and tokens of a batch, whether rows are packed, targets, strategy."""

    shape: str
    rows: int
    tokens: int
    packed: bool
    targets: str
    strategy: str

    def __str__(self) -> str:
        packed = " packed" if self.packed else ""
        return f"{self.shape} {self.rows}x{self.tokens}{packed} {self.targets} {self.strategy}"

    def batch(self, number: int) -> dict[str, Tensor]:
        """Return batch `number`, on the CPU: the inputs of both sides."""
        ids = torch.randint(10, 1000, (self.rows, self.tokens), generator=torch.Generator().manual_seed(number))
        batch = {"input_ids": ids, "labels": ids.clone()}
        if self.packed:
            document = min(DOCUMENT, self.tokens // 2)
            batch["position_ids"] = (torch.arange(self.tokens) % document).expand(self.rows, -1).contiguous()
            batch["labels"][batch["position_ids"] == 0] = -100  # predicted from another document
        return batch


def llama(case: Case, device: torch.device) -> LlamaForCausalLM:
    """Return a Llama with random weights in bf16."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000 if case.shape != "tiny" else 1000, use_cache=False, **SHAPES[case.shape])
    with device:
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)


class RandomCausalLM(CausalLM):
    """The task of litpeft, with random weights."""

    case: Case

    def load(self, data: Any, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, list[str], list[str]]:
        model = llama(self.case, self.trainer.strategy.root_device)
        self._document_masks = self.case.packed and attends_within_documents(model.eval())
        return model, [], []


class Batches(L.LightningDataModule):
    """The batches of a case, as litpeft's collator makes them."""

    label_names = ("a", "b")
    tokenizer = SimpleNamespace(pad_token_id=0)
    batch_size = 1

    def __init__(self, case: Case, steps: int) -> None:
        super().__init__()
        self.case, self.max_length, self.num_train_batches = case, case.tokens, steps

    def _all(self) -> Iterator[dict[str, Tensor]]:
        for number in range(self.num_train_batches):
            batch = self.case.batch(number) | {"row": torch.zeros(self.case.rows, dtype=torch.int64)}
            if self.case.packed:
                starts = torch.nonzero(batch["position_ids"].flatten() == 0).flatten()
                batch["cu_seqlens"] = torch.cat([starts, torch.tensor([batch["input_ids"].numel()])]).int()
                batch["max_seqlen"] = torch.empty(int(batch["position_ids"].max()) + 1, 0)
                batch |= {"real_tokens": torch.tensor(batch["input_ids"].numel()), "samples": torch.tensor(len(starts))}
            else:
                batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            yield batch

    def train_dataloader(self) -> DataLoader:
        return DataLoader(list(self._all()), batch_size=None, pin_memory=torch.cuda.is_available())


def run_litpeft(case: Case, steps: int, on_step: Callable[[], None], **options: Any) -> str:
    """Train with litpeft and return the kernels that were used.

    Args:
        case: the combination.
        steps: number of optimizer steps.
        on_step: called after each step.
        options: further options of the task.
    """

    class Step(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            on_step()

    adapter = STRATEGIES[case.strategy](rank=RANK, alpha=RANK, targets=TARGETS[case.targets])
    optimizer = lambda groups: torch.optim.AdamW(groups, lr=LR, fused=True)  # noqa: E731
    task = RandomCausalLM("random", adapter, optimizer=optimizer, **options)
    task.case = case
    settings = QUIET | {"max_steps": steps, "gradient_clip_val": 1.0, "limit_val_batches": 0, "callbacks": [Step()]}
    settings |= {"accelerator": "cuda" if torch.cuda.is_available() else "cpu", "devices": 1}
    L.Trainer(**settings).fit(task, Batches(case, steps))
    return task.kernels_used


def quantised(model: nn.Module) -> None:
    """Replace the linear layers of the blocks by four-bit layers of bitsandbytes, as from_pretrained would."""
    library = bitsandbytes()
    for name, layer in list(model.model.layers.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        device, sizes = layer.weight.device, (layer.in_features, layer.out_features)
        new = library.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
        weight = layer.weight.data.cpu()
        new.weight = library.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
        parent, _, last = name.rpartition(".")
        setattr(model.model.layers.get_submodule(parent), last, new.to(device))
    model.is_loaded_in_4bit = True  # for PEFT


def run_peft(case: Case, steps: int, on_step: Callable[[], None], liger: bool = False) -> str:
    """Train with Hugging Face Trainer + PEFT and return the kernels that were used.

    Args:
        case: the combination.
        steps: number of optimizer steps.
        on_step: called after each step.
        liger: whether Trainer applies Liger's kernels.
    """

    class Step(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            on_step()

    model = llama(case, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if case.strategy == "qlora":
        quantised(model)
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=TARGETS[case.targets], use_dora=case.strategy == "dora",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(model, config)
    rows = [{name: t[i] for name, t in case.batch(n).items()} for n in range(steps) for i in range(case.rows)]
    with tempfile.TemporaryDirectory() as scratch:
        settings = transformers.TrainingArguments(
            output_dir=scratch, report_to=[], save_strategy="no", per_device_train_batch_size=case.rows,
            max_steps=steps, learning_rate=LR, lr_scheduler_type="constant", optim="adamw_torch_fused",
            disable_tqdm=True, use_cpu=not torch.cuda.is_available(), logging_strategy="no", max_grad_norm=1.0,
            use_liger_kernel=liger,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=model, args=settings, train_dataset=rows, callbacks=[Step()],
            data_collator=transformers.default_data_collator,
        )  # fmt: skip
        trainer.train()
    return "liger" if liger else "none"


SIDES: dict[str, Callable[[Case, int, Callable[[], None]], str]] = {
    "litpeft": lambda *given: run_litpeft(*given, kernels="none"),
    "litpeft liger": lambda *given: run_litpeft(*given, kernels="liger"),
    "litpeft compiled": lambda *given: run_litpeft(*given, kernels="none", compile_blocks=True),
    "trainer+peft": lambda *given: run_peft(*given),
    "trainer+peft liger": lambda *given: run_peft(*given, liger=True),
}

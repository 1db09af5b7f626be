"""Memory estimated without weights, compared with runs and with the events of torch's allocator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from litpeft.adapters import Adapter, DoRA, Full, LoRA, QLoRA
from litpeft.adapters.linear4bit import bitsandbytes
from litpeft.callbacks import MemoryRecorder
from litpeft.ops.row_chunks import CHUNK
from litpeft.profiling.memory.trace import Trace, trace
from litpeft.tasks import CausalLM, FineTuner, Seq2SeqLM, SequenceClassification
from litpeft.tasks.pretrained import initialise_new_parameters, load_pretrained
from tests.conftest import QUIET
from tests.peers.live_bytes import StepPeak, alive_bytes
from tests.real_models import minilm, smollm2


class OwnVision(FineTuner):
    """A user-defined task: image classification."""

    def load(self, data: Any, dtype: torch.dtype, **options: Any) -> Any:
        auto = AutoModelForImageClassification
        model, new, _ = load_pretrained(auto, self.model_name, data, dtype, num_labels=2, **options)
        initialise_new_parameters(model, new)
        return model, ["classifier"], new

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with self.autocast():
            images = batch["input_ids"]
            images = images if self.adapter.trains_base else images.to(torch.bfloat16)
            logits = self.backbone(pixel_values=images).logits
        return F.cross_entropy(logits.float(), batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=1)

    def example(self, rows: int, tokens: int) -> dict[str, Tensor]:
        return {"input_ids": torch.rand(rows, 3, 32, 32), "labels": torch.zeros(rows, dtype=torch.int64)}


class OneBatch(L.LightningDataModule):
    """The same batch in every step."""

    label_names = ("a", "b")
    tokenizer = SimpleNamespace(pad_token_id=0)
    num_train_batches = 2

    def __init__(self, batch: dict[str, Tensor], tokens: int) -> None:
        super().__init__()
        self.batch, self.max_length, self.batch_size = batch, tokens, len(batch["labels"])

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * 2, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch], batch_size=None)


class Allocator(L.Callback):
    """Record the peak of torch's allocator over two steps."""

    def __init__(self) -> None:
        self.peak = StepPeak()

    def on_train_batch_start(self, trainer: Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        if index == 0:
            self.peak.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if index == 1:
            self.peak.stop()


def estimated_and_measured(make: Callable[[], FineTuner], rows: int, tokens: int) -> tuple[Trace, dict[str, Any], int]:
    """Return the estimate, the phases of a run's record, and the allocator's peak over its two steps."""
    task = make()
    torch.manual_seed(0)
    batch = task.example(rows, tokens)
    data = OneBatch(batch, tokens)
    estimate = trace(task, data, batch, batch, accumulate=1, clip=1.0)
    elsewhere = alive_bytes() - sum(tensor.nbytes for tensor in batch.values())
    recorder, allocator = MemoryRecorder(), Allocator()
    options = QUIET | {
        "max_steps": 2,
        "gradient_clip_val": 1.0,
        "num_sanity_val_steps": 0,
        "callbacks": [recorder, allocator],
    }
    Trainer(**options).fit(task, data)
    return estimate, recorder.phases, allocator.peak.bytes - elsewhere


def tiny_t5(folder: Path) -> str:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=200, d_model=64, d_kv=16, d_ff=256, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def tiny_vit(folder: Path) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=4, num_labels=2, **sizes)).save_pretrained(folder)
    return str(folder)


ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "full": Full,
    "lora": lambda: LoRA(rank=4, targets="all-linear", dropout=0.1),
    "dora": lambda: DoRA(rank=4, targets="all-linear"),
    "qlora": lambda: QLoRA(rank=4, targets="all-linear"),
}
OPTIMIZERS: dict[str, Any] = {
    "fused": None,
    "adamw": partial(torch.optim.AdamW, lr=1e-3, fused=False),
    "sgd": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "8-bit": lambda groups: bitsandbytes().optim.AdamW8bit(groups, lr=1e-3, min_8bit_size=256),
}


def check(
    make: Callable[[], FineTuner], rows: int, tokens: int, quantised: bool, kernel_copies: bool = False
) -> tuple[Trace, dict[str, Any]]:
    """Check that the estimate is within 0.1 % of the run, or 1 % with quantised tensors; return both."""
    tolerance = 0.01 if quantised else 0.001
    estimate, phases, allocated = estimated_and_measured(make, rows, tokens)
    found = {phase: peak.tensors.bytes for phase, peak in estimate.phases.items()}
    tracked = {phase: phases[phase]["peak_tensor_bytes"] for phase in found}
    print(f"estimated {found}, tracked {tracked}, allocator {allocated:,}")
    assert found == pytest.approx(tracked, rel=2 * tolerance)
    peak = max(found["first_step"], found["train"])
    assert peak == pytest.approx(max(tracked["first_step"], tracked["train"]), rel=tolerance)
    if kernel_copies:  # bitsandbytes' 8-bit update on a CPU makes fp32 copies of a parameter's states inside its kernel
        assert peak < allocated
        return estimate, phases
    # neither estimate nor tracker sees memory allocated inside a kernel, such as some fp32 rows for DoRA's magnitude
    unseen = 8 * CHUNK if getattr(make.keywords["adapter"], "magnitude", False) else 1 << 17
    assert peak == pytest.approx(allocated, rel=tolerance, abs=unseen)
    return estimate, phases


KINDS = ("bert", "llama", "t5", "vit")
CHECKPOINTING = ("none", "non_reentrant")  # each kind and each adapter is tested with both, also in the sample


@pytest.mark.parametrize(
    ("kind", "adapter", "checkpointing"),
    [
        pytest.param(
            *(kind, adapter, CHECKPOINTING[(i + j) % 2]), marks=pytest.mark.whole if (j - i) % 4 not in (0, 1) else ()
        )
        for i, kind in enumerate(KINDS)
        for j, adapter in enumerate(ADAPTERS)
    ],
)
def test_the_peak_of_a_small_model(
    kind: str, adapter: str, checkpointing: str, tiny_model: str, tiny_llama: str, tmp_path: Path
) -> None:
    task, name = {
        "bert": (SequenceClassification, tiny_model),
        "llama": (CausalLM, tiny_llama),
        "t5": (Seq2SeqLM, tmp_path),
        "vit": (OwnVision, tmp_path),
    }[kind]
    name = {"t5": tiny_t5, "vit": tiny_vit}.get(kind, str)(name)
    make = partial(task, name, adapter=ADAPTERS[adapter](), gradient_checkpointing=checkpointing)
    check(make, 16, 48, adapter == "qlora")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_later_step_needs_the_same_memory_without_the_first(adapter: str, optimizer: str, tiny_model: str) -> None:
    task = SequenceClassification(tiny_model, adapter=ADAPTERS[adapter](), optimizer=OPTIMIZERS[optimizer])
    batch = task.example(2, 8)
    whole, later = (trace(task, OneBatch(batch, 8), batch, first_step=first) for first in (True, False))
    assert set(later.phases) == {"train"}
    assert later.phases["train"].tensors.split == whole.phases["train"].tensors.split
    assert later.phases["train"].tensors.bytes > whole.phases["first_step"].tensors.bytes


def test_a_step_has_one_batch_unless_several_are_accumulated(tiny_model: str) -> None:
    task = SequenceClassification(tiny_model, adapter=Full())
    batch = task.example(32, 64)
    one, named, two = (
        trace(task, OneBatch(batch, 64), batch, **more) for more in ({}, {"accumulate": 1}, {"accumulate": 2})
    )
    assert one == named
    assert two.phases["first_step"].tensors.bytes > one.phases["first_step"].tensors.bytes  # gradients meet a batch


@pytest.mark.parametrize("adapter", ["lora", "dora", "qlora"])
def test_the_peak_of_a_small_model_in_bf16(adapter: str, tiny_llama: str) -> None:
    """In bf16 the layers keep casts of A and B, which count as adapter weights."""
    make = partial(CausalLM, tiny_llama, adapter=ADAPTERS[adapter](), dtype="bf16")
    estimate, phases = check(make, 16, 48, adapter == "qlora")
    new_norms = 0.1 if adapter == "dora" else 0.0  # tensors made while tracking count as temporaries
    for phase in ("first_step", "train"):
        expected = estimate.phases[phase].tensors.split["adapter_weights"]
        assert phases[phase]["tensor_bytes"]["adapter_weights"] == pytest.approx(expected, rel=new_norms)
    assert phases["train"]["tensor_bytes"]["adapter_weights"] >= 1.4 * estimate.counts["adapter_bytes"]


REAL = [  # model, adapter, optimizer, rows, tokens, checkpointing
    pytest.param("minilm", "full", "fused", 16, 64, "none", marks=pytest.mark.whole),
    pytest.param("minilm", "full", "8-bit", 16, 64, "none", marks=pytest.mark.whole),
    ("minilm", "lora", "8-bit", 8, 64, "none"),
    pytest.param("minilm", "dora", "adamw", 16, 128, "none", marks=pytest.mark.whole),
    pytest.param("minilm", "qlora", "8-bit", 16, 128, "none", marks=pytest.mark.whole),
    pytest.param("smollm2", "lora", "8-bit", 4, 64, "non_reentrant", marks=pytest.mark.whole),
    ("smollm2", "qlora", "fused", 2, 64, "none"),
    pytest.param("smollm2", "qlora", "fused", 4, 128, "none", marks=pytest.mark.whole),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "adapter", "optimizer", "rows", "tokens", "checkpointing"), REAL)
def test_the_peak_of_a_real_model(
    model: str, adapter: str, optimizer: str, rows: int, tokens: int, checkpointing: str
) -> None:
    task: type[FineTuner] = SequenceClassification if model == "minilm" else CausalLM
    name = minilm() if model == "minilm" else smollm2()
    options = {
        "adapter": ADAPTERS[adapter](),
        "optimizer": OPTIMIZERS[optimizer],
        "gradient_checkpointing": checkpointing,
        "dtype": "bf16" if (model, adapter) == ("minilm", "lora") else "fp32",  # many processors have no fast bf16
    }
    quantised = adapter == "qlora" or optimizer == "8-bit"
    check(partial(task, str(name), **options), rows, tokens, quantised, (adapter, optimizer) == ("full", "8-bit"))

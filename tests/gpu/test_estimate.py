"""Estimates of GPU memory, made without a GPU, compared with runs on one; `pytest -s` prints both."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from litpeft.callbacks import MemoryRecorder
from litpeft.profiling.memory.trace import PhasePeak, trace
from litpeft.tasks import CausalLM, FineTuner, SequenceClassification
from tests.conftest import QUIET
from tests.profiling.memory.test_estimate import ADAPTERS, OPTIMIZERS, OneBatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return folders of a BERT and a Llama with random weights, large enough to dominate the memory."""
    torch.manual_seed(0)
    bert = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    llama = {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "intermediate_size": 2816}
    built = {
        "bert": BertForSequenceClassification(BertConfig(**bert)),
        "llama": LlamaForCausalLM(LlamaConfig(**llama, num_key_value_heads=4, vocab_size=32000)),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in built}
    for name, model in built.items():
        model.save_pretrained(folders[name])
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def estimated_and_measured(
    make: Callable[[], FineTuner], rows: int, tokens: int
) -> tuple[dict[str, PhasePeak], dict[str, Any]]:
    """Return the phases of the estimate, and those of a run of two steps and a validation."""
    task = make()
    batch = task.example(rows, tokens)
    data = OneBatch(batch, tokens)
    capability = torch.cuda.get_device_capability()[0]
    estimate = trace(task, data, batch, batch, "cuda", clip=1.0, capability=capability)
    recorder = MemoryRecorder()
    options = {"accelerator": "cuda", "devices": 1, "max_steps": 2, "gradient_clip_val": 1.0, "num_sanity_val_steps": 0}
    Trainer(**QUIET | options, callbacks=[recorder]).fit(task, data)
    return estimate.phases, recorder.phases


CASES = [
    (kind, adapter, optimizer, dtype, checkpointing)
    for kind in ("bert", "llama")
    for adapter, optimizer, dtype, checkpointing in [
        ("full", "fused", "bf16", "none"),
        ("full", "adamw", "fp32", "non_reentrant"),
        ("lora", "fused", "bf16", "none"),
        ("lora", "sgd", "bf16", "non_reentrant"),
        ("lora", "adamw", "fp32", "none"),
        ("dora", "fused", "bf16", "none"),
        ("qlora", "8-bit", "bf16", "none"),
        ("qlora", "fused", "bf16", "reentrant"),
    ]
]


@pytest.mark.parametrize(("kind", "adapter", "optimizer", "dtype", "checkpointing"), CASES)
def test_estimated_peaks_match_a_run(
    models: dict[str, str], kind: str, adapter: str, optimizer: str, dtype: str, checkpointing: str
) -> None:
    task = SequenceClassification if kind == "bert" else CausalLM
    options = {"dtype": dtype, "gradient_checkpointing": checkpointing}
    make = partial(task, models[kind], adapter=ADAPTERS[adapter](), optimizer=OPTIMIZERS[optimizer], **options)
    estimated, measured = estimated_and_measured(make, 8, 256)
    errors = {}
    for phase, peak in estimated.items():
        found = {"tensor": peak.tensors.bytes, "allocated": peak.allocated_bytes, "reserved": peak.reserved_bytes}
        true = {name: measured[phase][f"peak_{name}_bytes"] for name in found}
        errors[phase] = {name: found[name] / true[name] - 1 for name in found}
        line = ", ".join(f"{name} {found[name]:,} / {true[name]:,} ({errors[phase][name]:+.2%})" for name in found)
        print(f"{kind} {adapter} {optimizer} {dtype} {checkpointing} {phase}: {line}")
    assert max(abs(error["tensor"]) for error in errors.values()) < 0.01
    # sums over many rows need scratch memory, for example the gradient of DoRA's magnitude
    assert max(abs(error["allocated"]) for error in errors.values()) < (0.1 if adapter == "dora" else 0.02)
    assert max(abs(error["reserved"]) for error in errors.values()) < 0.12

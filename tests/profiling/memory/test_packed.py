"""The estimated memory of packed rows: linear in their tokens on a GPU, and that of a run on a CPU."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from litpeft.adapters import LoRA
from litpeft.callbacks import MemoryRecorder
from litpeft.profiling.memory.trace import trace
from litpeft.tasks import CausalLM
from tests.conftest import QUIET
from tests.profiling.memory.test_estimate import OneBatch


def packed(lengths: list[int]) -> OneBatch:
    """Return data of one packed row with documents of these lengths."""
    tokens = sum(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    batch: dict[str, Tensor] = {"input_ids": ids, "labels": ids, "position_ids": positions}
    batch["cu_seqlens"] = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    batch["max_seqlen"] = torch.empty(max(lengths), 0)
    batch |= {"real_tokens": torch.tensor(tokens), "samples": torch.tensor(len(lengths)), "row": torch.zeros(1)}
    data = OneBatch(batch, tokens)
    data.packing = True
    return data


def task(folder: str) -> CausalLM:
    return CausalLM(folder, LoRA(rank=4, targets="all-linear"), dtype="bf16")


def test_memory_on_a_gpu_grows_with_the_tokens_and_not_with_their_square(byte_llama: str) -> None:
    peaks = []
    for documents in (2, 4, 8):
        data = packed([256] * documents)
        peaks.append(trace(task(byte_llama), data, data.batch, device="cuda").phases["train"].tensors.bytes)
    first, second = peaks[1] - peaks[0], peaks[2] - peaks[1]
    assert second == pytest.approx(2 * first, rel=0.1)


def test_the_estimate_of_a_cpu_equals_a_run(byte_llama: str) -> None:
    data = packed([600] * 3)  # without values, all documents count as long as the longest
    estimated = trace(task(byte_llama), data, data.batch).phases["train"].tensors.bytes
    recorder = MemoryRecorder()
    Trainer(**QUIET | {"max_steps": 2, "limit_val_batches": 0, "callbacks": [recorder]}).fit(task(byte_llama), data)
    assert estimated == pytest.approx(recorder.phases["train"]["peak_tensor_bytes"], rel=0.01)

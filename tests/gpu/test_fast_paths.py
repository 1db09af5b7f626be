"""The fast paths of GPUs: packed attention in one call, Liger's kernels, compiled blocks with dropout, fp16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from litpeft.__main__ import main
from litpeft.adapters import DoRA, LoRA, QDoRA, QLoRA
from litpeft.adapters.base import trainable
from litpeft.ops import packed_attention as ours
from litpeft.ops.attention import attention
from litpeft.ops.compiled_blocks import compile_blocks
from litpeft.ops.kernels import use_kernels
from litpeft.runs.record import read_record
from tests.adapters.small_models import disturb

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("groups", [2, 8])
def test_one_call_for_all_documents_equals_a_call_for_each(groups: int, window: int | None) -> None:
    torch.manual_seed(0)
    offsets = torch.tensor([0, 300, 301, 512, 1000, 1024], dtype=torch.int32, device=CUDA)
    heads = (8, groups, groups)
    q, k, v = (torch.randn(2, n, 512, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True) for n in heads)
    module, upstream = nn.Module(), torch.randn(2, 512, 8, 64, device=CUDA, dtype=torch.bfloat16)
    module.num_key_value_groups = 8 // groups
    found = []
    for place in (offsets, offsets.cpu()):  # offsets on the CPU: each document alone
        out, _ = attention(module, q, k, v, place.expand(1, 1, 488, -1), sliding_window=window)
        found.append([out, *torch.autograd.grad(out, (q, k, v), upstream)])
    assert ours._in_one_call(q, offsets)
    for one, other in zip(*found, strict=True):
        assert float((one.float() - other.float()).norm() / other.float().norm()) < 2e-2


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, use_cache=False, **sizes))


@pytest.mark.parametrize("adapter", [LoRA, DoRA, QLoRA])
def test_liger_gives_the_logits_and_gradients_of_transformers(adapter: type[LoRA]) -> None:
    pytest.importorskip("liger_kernel.transformers.monkey_patch", exc_type=ImportError)
    ids, found = torch.arange(96, device=CUDA).view(2, 48) % 64, []
    for choice in ("none", "liger"):
        model = llama()
        adapter(rank=4, targets="all-linear").apply(model)
        disturb(model)
        model.to(CUDA).train()
        assert use_kernels(model, choice, CUDA).startswith(choice)
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        found.append([logits, *(p.grad for p in trainable(model).values())])
    use_kernels(model, "none", CUDA)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3 * float(other.abs().max()))


@pytest.mark.parametrize("adapter", [LoRA, DoRA, QLoRA])
def test_compiled_blocks_drop_the_share_that_they_should(adapter: type[LoRA]) -> None:
    ids, losses = torch.arange(96, device=CUDA).view(2, 48) % 64, {}
    for compiled in (False, True):
        model = llama().bfloat16()
        adapter(rank=4, dropout=0.2, targets="all-linear").apply(model)
        disturb(model)
        model.to(CUDA).train()
        if compiled:
            compile_blocks(model)
        squares = [model(input_ids=ids).logits.float().square().mean() for _ in range(20)]
        torch.stack(squares).mean().backward()
        assert all(p.grad.isfinite().all() for p in trainable(model).values())
        losses[compiled] = float(torch.stack(squares).mean())
    assert losses[True] == pytest.approx(losses[False], rel=0.1)


@pytest.mark.parametrize("adapter", ["Full", "LoRA", "QDoRA"])
def test_a_run_in_fp16(tmp_path: Path, byte_llama: str, adapter: str) -> None:
    arguments = [
        *("fit", "--model", "CausalLM", "--model.model_name", byte_llama, "--model.adapter", adapter),
        *("--model.dtype", "fp16", "--data", "ArithmeticInstructions", "--data.train_rows", "24"),
        *("--data.val_rows", "8", "--data.batch_size", "4", "--data.max_length", "256", "--data.packing", "true"),
        *("--trainer.accelerator", "cuda", "--trainer.enable_progress_bar", "false", "--run_dir", str(tmp_path)),
    ]
    assert main(arguments) == 0
    record = read_record(tmp_path)
    assert (record["status"], record["precision"]) == ("ok", "fp16")
    assert record["skipped_steps"] < record["steps"]


@pytest.mark.parametrize("rows", [1, 16, 2000])
@pytest.mark.parametrize("adapter", [QLoRA, QDoRA])
def test_evaluation_of_four_bit_layers_equals_their_training_mode(adapter: type[LoRA], rows: int) -> None:
    model = nn.Sequential(nn.Linear(256, 192), nn.Linear(192, 256)).bfloat16()
    adapter(rank=4, targets=["0"]).apply(model)
    disturb(model)
    model.to(CUDA)
    x = torch.randn(rows, 256, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        one, other = model.train()(x), model.eval()(x)
    assert float((one.float() - other.float()).norm() / one.float().norm()) < 1e-2

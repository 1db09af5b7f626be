"""The adapter tests on CUDA: results equal PEFT and the CPU, 4-bit weights, and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from litpeft.adapters import DoRA, LoRA, QDoRA, QLoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.ops.dropout import keep_mask
from tests.adapters.small_models import LABELS, MODELS, disturb, small
from tests.adapters.test_against_peft import STRATEGIES, compare

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_ten_steps_equal_peft(name: str, strategy: str) -> None:
    assert max(compare(name, strategy, torch.float64, "cuda").values()) < 1e-10
    assert max(compare(name, strategy, torch.float32, "cuda").values()) < 2e-5


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_4_bit_weights_equal_those_of_the_cpu(quant_type: str, double_quant: bool) -> None:
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(0)).bfloat16()
    options = {"quant_type": quant_type, "double_quant": double_quant}
    on_cpu, on_cuda = Linear4bit(weight, None, **options), Linear4bit(weight.cuda(), None, **options)
    errors = [(layer.weight.cpu() - weight).abs().float() for layer in (on_cpu, on_cuda)]
    if quant_type == "nf4":
        assert torch.equal(on_cpu.codes, on_cuda.codes.cpu())
    else:  # the two bitsandbytes kernels break ties differently: a value halfway between two codes
        assert (on_cpu.codes != on_cuda.codes.cpu()).float().mean() < 0.05
    assert ((errors[0] - errors[1]).abs() > 1e-2).float().mean() < 1e-3
    codes, on_host = on_cpu.codes.clone(), on_cpu.weight
    moved = on_cpu.cuda()
    assert torch.equal(moved.codes, codes.cuda())
    torch.testing.assert_close(moved.weight.cpu(), on_host, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("adapter", [LoRA, DoRA, QLoRA, QDoRA])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_gradients_equal_those_of_the_cpu(name: str, adapter: type[LoRA]) -> None:
    gradients = []
    for device in ("cpu", "cuda"):
        model = small(name)
        adapter(rank=4, targets=MODELS[name].targets).apply(model, head=MODELS[name].head)
        disturb(model)
        model.to(device)
        inputs = {key: value.to(device) for key, value in MODELS[name].inputs.items()}
        model(**inputs, labels=LABELS.to(device)).loss.backward()
        gradients.append({key: p.grad.cpu() for key, p in trainable(model).items()})
    for key, on_cpu in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], on_cpu, rtol=1e-3, atol=1e-4 * float(on_cpu.abs().max()) + 1e-7)


def test_a_quantised_model_is_never_complete_in_bf16_on_the_device(tmp_path: Path) -> None:
    sizes = {"vocab_size": 100, "hidden_size": 512, "num_hidden_layers": 6, "intermediate_size": 1024}
    BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=8)).save_pretrained(tmp_path)
    adapter = QLoRA()
    loading = adapter.loading(torch.device("cuda"))  # also loads bitsandbytes, before memory is measured
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16, **loading)
    adapter.apply(model, head=["classifier"])
    four_bit = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert {layer.codes.device.type for layer in four_bit} == {"cuda"}
    in_bf16 = sum(2 * layer.in_features * layer.out_features for layer in four_bit)
    assert torch.cuda.max_memory_allocated() - before < 0.6 * in_bf16


def test_a_dropout_mask_can_be_drawn_again() -> None:
    x = torch.empty(33, 47, device="cuda")
    before = torch.cuda.get_rng_state()
    assert torch.equal(keep_mask(x, 0.3, 7), keep_mask(x, 0.3, 7))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert abs(keep_mask(torch.empty(1 << 20, device="cuda"), 0.3, 8).float().mean().item() - 0.7) < 3e-3


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("adapter", [LoRA, QDoRA])
def test_gradient_checkpointing_gives_the_same_gradients_with_dropout(adapter: type[LoRA], reentrant: bool) -> None:
    gradients = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
        adapter(rank=4, dropout=0.3, targets="all-linear").apply(model)
        disturb(model)
        model.cuda().train()
        torch.manual_seed(1)
        run(model, torch.ones(8, 64, device="cuda", requires_grad=True)).square().sum().backward()
        gradients.append([p.grad for p in trainable(model).values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("adapter", ["LoRA", "DoRA", "QLoRA", "QDoRA"])
def test_the_peak_of_a_run_is_at_least_its_model(tmp_path: Path, fit_arguments: list[str], adapter: str) -> None:
    from litpeft.__main__ import main
    from litpeft.runs.record import read_record

    options = ["--model.adapter", adapter, "--model.dtype", "bf16", "--trainer.accelerator", "cuda"]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path)]) == 0
    record = read_record(tmp_path)
    assert record["status"] == "ok"
    assert record["peak_allocated_bytes"] >= record["model_bytes"]

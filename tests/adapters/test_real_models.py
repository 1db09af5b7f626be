"""Real pretrained weights: SmolLM2-135M and MiniLM compared with PEFT, and the size of their four-bit bases."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from litpeft.adapters import DoRA, LoRA, QDoRA, QLoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.linear4bit import Linear4bit
from tests.adapters.small_models import disturb
from tests.adapters.test_against_peft import copied, largest_difference
from tests.peers.bench_adapters import peak_bytes
from tests.real_models import minilm, smollm2

pytestmark = pytest.mark.slow
TEXT = "Parameter-efficient fine-tuning trains a few numbers beside many that stay as they are."


@pytest.fixture(scope="module")
def smol() -> Path:
    pytest.importorskip("gguf", reason="converting SmolLM2 needs gguf")
    return smollm2()


def tokens(folder: Path) -> torch.Tensor:
    return AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("kind", [LoRA, DoRA])
@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_real_models_equal_peft(name: str, kind: type[LoRA], request: pytest.FixtureRequest) -> None:
    if name == "smollm2":
        folder, targets, auto = request.getfixturevalue("smol"), ["q_proj", "v_proj", "down_proj"], AutoModelForCausalLM
    else:
        folder, targets, auto = minilm(), ["query", "value"], AutoModel
    mine = auto.from_pretrained(folder, dtype=torch.float32).eval()
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, use_dora=kind is DoRA)
    other = peft.get_peft_model(copy.deepcopy(mine), config).eval()
    kind(rank=8, alpha=16, targets=targets).apply(mine)
    with torch.no_grad():
        for parameter in trainable(mine).values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    both = copied(mine, other, torch.float32)
    ids = tokens(folder)
    results = [model(input_ids=ids)[0] for model in (mine, other)]
    assert largest_difference(*results) < 1e-5
    for result in results:
        result.square().mean().backward()
    scale = max(float(q.grad.abs().max()) for _, q in both.values())
    for key, (p, q) in both.items():
        assert float((p.grad - q.grad.view(p.shape)).abs().max()) < 1e-5 * max(scale, 1e-12), key


@pytest.mark.parametrize(
    ("options", "bytes_a_number"),
    [
        ({"quant_type": "nf4", "double_quant": False}, 0.5 + 4 / 64),
        pytest.param({"quant_type": "fp4", "double_quant": False}, 0.5 + 4 / 64, marks=pytest.mark.whole),
        ({"quant_type": "nf4", "double_quant": True}, 0.5 + 1 / 64 + 4 / (64 * 256)),
    ],
)
def test_smollm2_is_quantised_while_it_is_loaded(smol: Path, options: dict, bytes_a_number: float) -> None:
    adapter = QLoRA(rank=8, targets=["q_proj", "v_proj"], **options)
    kept: list[nn.Module] = []

    def load() -> None:
        quantised = adapter.loading(torch.device("cpu"))
        kept.append(AutoModelForCausalLM.from_pretrained(smol, dtype=torch.bfloat16, **quantised))

    peak = peak_bytes(load)
    model = kept[0]
    adapter.apply(model)
    description = adapter.describe(model)
    numbers = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)  # q, o; k, v; gate, up, down
    assert description["quantised"]["layers"] == 30 * 7
    assert description["quantised"]["params"] == numbers
    assert description["quantised"]["bytes"] == pytest.approx(numbers * bytes_a_number, rel=1e-4)
    rest = 2 * (49152 * 576 + 61 * 576)  # embeddings (tied to the head) and norms, in bf16
    indices = sum(buffer.nbytes for name, buffer in model.named_buffers() if "inv_freq" in name)
    assert (
        description["model_bytes"] == description["quantised"]["bytes"] + rest + description["adapter_bytes"] + indices
    )
    assert model.lm_head.weight is model.model.embed_tokens.weight
    # the memory-mapped file counts; besides the file, only one weight at a time is unquantised
    mapped = sum(file.stat().st_size for file in smol.glob("*.safetensors"))
    assert peak - mapped < description["quantised"]["bytes"] + rest + 0.1 * 2 * numbers
    assert (
        model.model.embed_tokens.weight.untyped_storage().nbytes() == 2 * 49152 * 576
    )  # the memory-mapped file is released


@pytest.mark.parametrize("kind", [pytest.param(QLoRA, marks=pytest.mark.whole), QDoRA])
def test_a_four_bit_smollm2_equals_its_dequantised_copy(smol: Path, kind: type[LoRA]) -> None:
    adapter = kind(rank=4, targets=["q_proj", "down_proj"])
    model = AutoModelForCausalLM.from_pretrained(smol, dtype=torch.float32, **adapter.loading(torch.device("cpu")))
    plain = AutoModelForCausalLM.from_pretrained(smol, dtype=torch.float32)
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            plain.get_submodule(name).weight.data = layer.weight
    twin = DoRA if kind is QDoRA else LoRA
    adapter.apply(model)
    twin(rank=4, targets=["q_proj", "down_proj"]).apply(plain)
    disturb(model)
    own, other = trainable(model), trainable(plain)
    with torch.no_grad():
        for name, parameter in own.items():
            other[name].copy_(parameter)
    ids = tokens(smol)
    losses = [m.eval()(input_ids=ids, labels=ids).loss for m in (model, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    for name, parameter in own.items():
        reference = other[name].grad
        assert float((parameter.grad - reference).abs().max()) <= 2e-4 * float(reference.abs().max()), name

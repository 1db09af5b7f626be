"""The study's own LoRA and DoRA against its formulas, written out in plain autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from litpeft.adapters import Adapter, LoRA, NormalisedUpdate
from litpeft.adapters.base import trainable
from litpeft.adapters.bases import FourBit
from litpeft.adapters.quantised_model import quantised_layers
from litpeft.errors import UserError
from tests.adapters.peft_cases import run

IDS = torch.tensor([[2, 5, 6, 7, 3, 1], [2, 8, 9, 3, 11, 1]])


class OfTheStudy(nn.Module):
    """The study's LoRA and DoRA, with the bias of the layer."""

    def __init__(self, layer: Conv1D, alpha: float, A: Tensor, rank: int, normalise: bool) -> None:
        super().__init__()
        self.layer, self.alpha, self.normalise = layer, alpha, normalise
        self.A, self.B = nn.Parameter(A), nn.Parameter(torch.zeros(rank, layer.nf))
        if normalise:
            self.m = nn.Parameter(torch.ones(1, layer.nf))

    def forward(self, x: Tensor) -> Tensor:
        low_rank_weight = self.alpha * torch.matmul(self.A, self.B)
        if self.normalise:
            norm = low_rank_weight / (low_rank_weight.norm(p=2, dim=1, keepdim=True) + 1e-9)
            low_rank_weight = self.m * norm
        return torch.matmul(x, self.layer.weight + low_rank_weight) + self.layer.bias


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, **quiet)).eval()


def losses(model: nn.Module, steps: int = 4) -> list[float]:
    optimizer, found = torch.optim.AdamW(trainable(model).values(), lr=1e-2), []
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        found.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize(
    "adapter",
    [LoRA(rank=8, alpha=4 * 8, init="normal", targets=["c_attn"]), NormalisedUpdate(targets=["c_attn"])],
    ids=["lora", "dora"],
)
def test_training_equals_that_of_the_study(adapter: Adapter) -> None:
    ours = adapter.apply(gpt2())
    theirs = gpt2().requires_grad_(False)
    for name, layer in list(theirs.named_modules()):
        if name.endswith("c_attn"):
            mine = ours.get_submodule(name)
            A = mine.lora_A.T if hasattr(mine, "lora_A") else mine.A
            assert float(A.std()) == pytest.approx(8**-0.5, rel=0.15)
            copied = A.detach().clone()
            theirs.set_submodule(name, OfTheStudy(layer, 4.0, copied, 8, isinstance(adapter, NormalisedUpdate)))
    found, expected = losses(ours), losses(theirs)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[-1] < found[0] - 0.1
    before = ours(IDS).logits
    adapter.merge(ours)
    assert type(ours.transformer.h[0].attn.c_attn) is Conv1D
    assert torch.allclose(ours(IDS).logits, before, atol=1e-5)


def test_a_normalised_update_trains_and_merges_on_four_bits() -> None:
    adapter = NormalisedUpdate(targets=["c_attn", "c_fc"])
    adapter.put_on(FourBit())
    model = adapter.apply(gpt2())
    assert len(quantised_layers(model)) == 2 * 4
    assert losses(model)[-1] < losses(model, 1)[0] + 1
    before = model(IDS).logits
    adapter.merge(model)
    assert not quantised_layers(model)
    assert torch.allclose(model(IDS).logits, before, atol=1e-5)


def test_every_verb_takes_it(tmp_path: Path, fit_arguments: list[str]) -> None:
    arguments = [*fit_arguments, "--config", "normalised", "--trainer.max_steps", "3"]
    assert run(*arguments, "--run_dir", str(tmp_path / "run"))[1] == ""
    assert "its logits differ" in run("export", str(tmp_path / "run"), str(tmp_path / "m"), "--format", "merged")[0]
    error = run("export", str(tmp_path / "run"), str(tmp_path / "a"), "--format", "adapter")[1]
    assert "PEFT has no adapter of type normalised; give --format merged." in error
    assert run("estimate", *arguments[1:], "--device", "cpu")[1] == ""


def test_the_rank_is_at_least_one() -> None:
    assert NormalisedUpdate(rank=1).settings()["rank"] == 1
    with pytest.raises(UserError, match=r"^model\.adapter\.rank must be at least 1, got 0\.$"):
        NormalisedUpdate(rank=0)
    assert NormalisedUpdate().settings() == {
        "rank": 8, "alpha": 4.0, "targets": ["query", "value"], "exclude": None, "modules_to_save": [],
    }  # fmt: skip


def test_without_the_update_the_model_is_the_base() -> None:
    adapter = NormalisedUpdate(targets=["c_attn"])
    model = adapter.apply(gpt2())
    losses(model, 2)
    before = model(IDS).logits
    with adapter.disable():
        assert torch.equal(model(IDS).logits, gpt2()(IDS).logits)
    assert torch.equal(model(IDS).logits, before)
    assert not torch.equal(before, gpt2()(IDS).logits)
    assert adapter.added(model).keys() == trainable(model).keys()

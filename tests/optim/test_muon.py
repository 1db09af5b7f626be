"""Muon trains the hidden matrices and AdamW everything else, as two optimizers by hand do."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from litpeft.__main__ import main
from litpeft.adapters import LoRA
from litpeft.errors import UserError
from litpeft.optim import WarmupCosine, build_optimizer
from litpeft.optim.build import optimizer_settings
from litpeft.runs.record import read_record
from tests.watching import check_extension, check_resume


class Model(nn.Module):
    """An embedding, a norm, two hidden layers, a convolution and a head, where only two parameters are Muon's."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.conv, self.head = nn.Conv1d(6, 6, 1), nn.Linear(6, 3)


HIDDEN = ("up.weight", "down.weight")


def groups(model: nn.Module) -> list[dict]:
    """Return parameter groups as adapters do: 1-D tensors without weight decay."""
    wide, narrow = ([p for p in model.parameters() if (p.ndim > 1) == is_wide] for is_wide in (True, False))
    return [{"params": wide}, {"params": narrow, "weight_decay": 0.0}]


def set_gradients(model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def test_each_step_equals_muon_and_adamw_by_hand() -> None:
    torch.manual_seed(0)
    ours = Model()
    by_hand = copy.deepcopy(ours)
    factory = partial(Muon, lr=0.02, momentum=0.9, weight_decay=0.05)
    optimizer = build_optimizer(factory, groups(ours), 1e-3, ours, ["head"])
    named = dict(by_hand.named_parameters())
    others = [p for name, p in named.items() if name not in HIDDEN]
    parts = [
        Muon([named[name] for name in HIDDEN], lr=0.02, momentum=0.9, weight_decay=0.05),
        AdamW([p for p in others if p.ndim > 1], lr=1e-3, weight_decay=0.01),
        AdamW([p for p in others if p.ndim == 1], lr=1e-3, weight_decay=0.0),
    ]
    schedules = [WarmupCosine(each, total_steps=6) for each in (optimizer, *parts)]
    for step in range(6):
        for model in (ours, by_hand):
            set_gradients(model, step)
        if step == 3:  # as in a resumed run
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(factory, groups(ours), 1e-3, ours, ["head"])
            schedule = WarmupCosine(optimizer, total_steps=6)
            schedule.load_state_dict(schedules[0].state_dict())
            schedules[0] = schedule
            optimizer.load_state_dict(state)
        for each in (optimizer, *parts):
            each.step()
        for each in schedules:
            each.step()
        for name, parameter in ours.named_parameters():
            expected = named[name]
            assert (
                torch.equal(parameter, expected) if name in HIDDEN else torch.allclose(parameter, expected, rtol=1e-6)
            )
    settings = optimizer_settings(optimizer)
    assert [(each["rule"], each["params"], each["initial_lr"]) for each in settings] == [
        ("Muon", 2 * 48, 0.02),
        ("AdamW", 11 * 6 + 36 + 18, 1e-3),
        ("AdamW", 2 * 6 + 8 + 6 + 6 + 3, 1e-3),
    ]


def test_adapters_of_embeddings_and_of_the_output_layer_belong_to_adamw() -> None:
    model = Model()
    model.get_output_embeddings = lambda: model.down
    adapter = LoRA(rank=2, targets=["words", "up", "down"], lora_plus_ratio=4)
    adapter.apply(model)
    optimizer = build_optimizer(partial(Muon, lr=0.02), adapter.param_groups(model), 1e-3, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: (g["rule"], g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates == {
        "up.lora_A": ("Muon", 0.02),
        "up.lora_B": ("Muon", 0.08),
        **{f"{layer}.lora_A": ("AdamW", 1e-3) for layer in ("words", "down")},
        **{f"{layer}.lora_B": ("AdamW", 4e-3) for layer in ("words", "down")},
    }


def test_without_hidden_matrices_and_with_wrong_options_it_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4))
    with pytest.raises(UserError, match="this adapter trains none"):
        build_optimizer(Muon, groups(model), 1e-3, model)
    with pytest.raises(UserError, match="model.optimizer cannot be created: momentum should be >= 0"):
        build_optimizer(partial(Muon, momentum=-1.0), groups(Model()), 1e-3, Model())


@pytest.mark.parametrize("adapter", ["Full", "QLoRA"])
def test_a_run_with_muon_resumes_bit_identically(adapter: str, tmp_path: Path, fit_arguments: list[str]) -> None:
    options = ["--model.adapter", adapter, "--model.optimizer", "torch.optim.Muon", "--model.optimizer.lr", "5e-3"]
    check_resume(fit_arguments, tmp_path, [*options, "--model.scheduler", "WarmupCosine"], 10)
    record = read_record(tmp_path / "whole")
    muon, *others = record["optimizer_settings"]
    assert record["optimizer"] == "litpeft.optim.muon.MuonAndAdamW"
    assert (muon["rule"], muon["initial_lr"], muon["momentum"]) == ("Muon", 5e-3, 0.95)
    default = {"Full": 2e-5, "QLoRA": 3e-4}[adapter]
    assert {(each["rule"], each["initial_lr"]) for each in others} == {("AdamW", default)}
    assert sum(each["params"] for each in record["optimizer_settings"]) == record["trainable_params"]


def test_a_run_with_muon_is_extended_as_if_it_had_been_longer(tmp_path: Path, fit_arguments: list[str]) -> None:
    options = ["--model.adapter", "LoRA", "--model.optimizer", "torch.optim.Muon", "--model.scheduler", "Constant"]
    check_extension(fit_arguments, tmp_path, options)


def test_memory_of_a_run_with_muon_is_estimated(fit_arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    arguments = ["estimate", *fit_arguments[1:], "--model.optimizer", "torch.optim.Muon", "--device", "cpu"]
    assert main([*arguments, "--format", "json"]) == 0
    assert '"full"' in capsys.readouterr().out

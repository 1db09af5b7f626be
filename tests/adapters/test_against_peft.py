"""PEFT as an independent oracle: every architecture, LoRA, rsLoRA and DoRA, in fp32 and float64.

Outputs, every gradient, ten optimizer steps, merged weights, and both directions of exchange on disk.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.layers import adapted_layers
from litpeft.adapters.peft_format import PREFIX, _names, _to_peft, write_adapter
from litpeft.errors import UserError
from tests.adapters.small_models import LABELS, MODELS, disturb, small

STRATEGIES: dict[str, tuple[type[LoRA], dict[str, Any]]] = {
    "lora": (LoRA, {}),
    "rslora": (LoRA, {"rslora": True}),
    "dora": (DoRA, {}),
    "lora, bias all": (LoRA, {"bias": "all"}),
    "dora, bias lora_only": (DoRA, {"bias": "lora_only"}),
}


def ours(name: str, strategy: str, **more: Any) -> tuple[nn.Module, LoRA]:
    """Return a small model with an adapter of litpeft."""
    kind, options = STRATEGIES[strategy]
    adapter = kind(rank=4, alpha=6, targets=MODELS[name].targets, **options | more)
    model = small(name)
    adapter.apply(model, head=MODELS[name].head)
    return model.eval(), adapter


def theirs(name: str, strategy: str) -> nn.Module:
    """Return the same model with the adapter of PEFT."""
    kind, options = STRATEGIES[strategy]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=list(adapted_layers(ours(name, strategy)[0])),  # litpeft resolves presets and heads
        modules_to_save=MODELS[name].head,
        use_rslora=options.get("rslora", False),
        bias=options.get("bias", "none"),
        use_dora=kind is DoRA,
    )
    return peft.get_peft_model(small(name), config).eval()


def pairs(mine: nn.Module, other: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Return the matching trainable tensors of litpeft and PEFT, by litpeft's name."""
    known = {}
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            name = name.removeprefix(PREFIX).replace("modules_to_save.default.", "")
            name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector").replace(
                ".default", ""
            )
            known[name] = parameter
    found = {own: (p, known.pop(foreign)) for own, (foreign, p) in _names(mine).items()}
    assert not known, "PEFT trains tensors that we do not"
    return found


def copied(
    mine: nn.Module, other: nn.Module, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Return both models in `dtype`, with litpeft's values in PEFT's tensors."""
    mine.to(device, dtype), other.to(device, dtype)
    layers = adapted_layers(mine)
    both = pairs(mine, other)
    with torch.no_grad():
        for name, (p, q) in both.items():
            q.copy_(_to_peft(layers, name, p))
    return both


def largest_difference(mine: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference relative to the largest number."""
    mine, other = mine.detach(), other.detach()
    return float((mine - other.view(mine.shape)).abs().max() / other.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_ten_steps_equal_peft(name: str, strategy: str) -> None:
    exact = compare(name, strategy, torch.float64)
    assert max(exact.values()) < 1e-12, exact
    rounded = compare(name, strategy, torch.float32)
    assert rounded["outputs"] < 1e-6, rounded
    # the sums have another order, and Adam divides by values near zero; float64 shows that only rounding differs
    assert max(rounded.values()) < 1e-5, rounded  # 5.1e-6 on a processor without AVX-512, which sums in another order


def compare(name: str, strategy: str, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    """Return the largest relative differences between litpeft and PEFT."""
    mine, other = ours(name, strategy)[0], theirs(name, strategy)
    disturb(mine)
    both = copied(mine, other, dtype, device)
    inputs = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in MODELS[name].inputs.items()}
    optimizers = [torch.optim.AdamW([pair[side] for pair in both.values()], lr=1e-3) for side in (0, 1)]
    report = {"outputs": 0.0, "gradients": 0.0, "ten steps": 0.0}
    for step in range(11):
        results = [model(**inputs, labels=LABELS.to(device)) for model in (mine, other)]
        distance = largest_difference(results[0].logits, results[1].logits)
        report["ten steps" if step else "outputs"] = max(report["ten steps"] if step else 0.0, distance)
        for result, optimizer in zip(results, optimizers, strict=True):
            optimizer.zero_grad()
            result.loss.backward()
        if step == 0:
            scale = max(q.grad.abs().max() for _, q in both.values())
            for p, q in both.values():
                size = max(q.grad.abs().max(), scale * 1e-3)
                report["gradients"] = max(
                    report["gradients"], float((p.grad - q.grad.view(p.shape)).abs().max() / size)
                )
        for optimizer in optimizers:
            optimizer.step()
    return report


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_equal_peft_and_layers_are_plain(name: str, strategy: str) -> None:
    kinds = {n: type(m) for n, m in small(name).named_modules()}
    mine, adapter = ours(name, strategy)
    other = theirs(name, strategy)
    disturb(mine)
    copied(mine, other, torch.float32)
    before = mine(**MODELS[name].inputs).logits
    adapter.merge(mine)
    assert {n: type(m) for n, m in mine.named_modules()} == kinds
    torch.testing.assert_close(mine(**MODELS[name].inputs).logits, before, rtol=1e-5, atol=1e-6)
    merged = other.merge_and_unload().state_dict()
    for key, tensor in mine.state_dict().items():
        torch.testing.assert_close(tensor, merged[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_a_written_adapter_and_gives_the_same_outputs(name: str, strategy: str, tmp_path: Path) -> None:
    some = next(iter(adapted_layers(ours(name, strategy)[0])))
    mine, adapter = ours(name, strategy, rank_pattern={re.escape(some): 2})
    disturb(mine)
    write_adapter(tmp_path, mine, adapter, "base")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(small(name), tmp_path, is_trainable=True).eval()
    assert not [str(w.message) for w in caught if "issing" in str(w.message) or "nexpected" in str(w.message)]
    pairs(mine, loaded)  # the same set of tensors
    found = peft.utils.load_peft_weights(str(tmp_path))
    # with bias: all, PEFT saves the biases of a head three times
    expected = {
        k
        for k in peft.get_peft_model_state_dict(loaded)
        if ".original_module." not in k and ".modules_to_save." not in k
    }
    assert found.keys() == expected
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(loaded(**MODELS[name].inputs).logits, mine(**MODELS[name].inputs).logits, **close)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_saved_by_peft_is_loaded(name: str, strategy: str, tmp_path: Path) -> None:
    other = theirs(name, strategy)
    disturb(other)
    other.save_pretrained(tmp_path)
    mine, _ = ours(name, strategy, init_from=str(tmp_path))
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(mine(**MODELS[name].inputs).logits, other(**MODELS[name].inputs).logits, **close)
    mine_again, adapter = ours(name, strategy, init_from=str(tmp_path))
    again = tmp_path / "again"
    again.mkdir()
    write_adapter(again, mine_again, adapter, "base")
    first, second = (peft.utils.load_peft_weights(str(folder)) for folder in (tmp_path, again))
    assert {k for k in first if ".original_module." not in k and ".modules_to_save." not in k} == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in second)


def test_a_mismatched_folder_is_refused_with_the_option_to_change(tmp_path: Path) -> None:
    other = theirs("bert", "lora")
    other.save_pretrained(tmp_path)

    def refused(kind: type[LoRA] = LoRA, **options: Any) -> str:
        adapter = kind(
            **{"rank": 4, "alpha": 6, "targets": MODELS["bert"].targets, "init_from": str(tmp_path)} | options
        )
        with pytest.raises(UserError) as caught:
            adapter.apply(small("bert"), head=["classifier"])
        return str(caught.value)

    assert "has rank 4, not 8; set rank" in refused(rank=8)
    assert "has scaling 1.5, not 2; set alpha" in refused(alpha=8)
    assert "it is not a DoRA adapter" in refused(DoRA)
    assert "unexpected tensors (base_model.model." in refused(targets=["query"])
    assert "it lacks" in refused(targets=[*MODELS["bert"].targets, "key"])
    assert "it lacks" in refused(bias="all")
    assert "there is no adapter_config.json" in refused(init_from=str(tmp_path / "nowhere"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for wrong, message in (
        ({"r": "4"}, "has a value that PEFT does not write"),
        ({"lora_alpha": None}, "has a value that PEFT does not write"),
        ({"init_lora_weights": "pissa"}, "PEFT changed the weights of the base"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | wrong))
        assert message in refused()
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    assert "cannot be read, it may be damaged" in refused()


def test_a_head_missing_in_the_folder_keeps_its_initial_values(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["query"])
    other = peft.get_peft_model(copy.deepcopy(small("bert")), config)
    disturb(other)
    other.save_pretrained(tmp_path)
    model = small("bert")
    before = model.classifier.weight.clone()
    LoRA(rank=4, alpha=6, targets=["query"], init_from=str(tmp_path)).apply(model, head=["classifier"])
    assert torch.equal(model.classifier.weight, before)
    assert all(layer.lora_B.abs().max() > 0 for layer in adapted_layers(model).values())
    assert set(trainable(model)) > {"classifier.weight"}

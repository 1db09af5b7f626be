"""Options and methods of PEFT that litpeft refuses, each with the reason, and the names of methods in tables."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from litpeft.adapters.peft_export import changes_base, write_peft_adapter
from litpeft.adapters.peft_options import (
    INITS,
    NEEDS_CALLS,
    OURS,
    REFUSED,
    build_config,
    check_method,
    check_options,
    compared_method,
    is_feed_forward_output,
    known_methods,
)
from litpeft.errors import UserError

OPTION = "model.adapter.options."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"init_lora_weight": True}, "init_lora_weight: LORA has no option 'init_lora_weight' (did you mean init_lora_weights?)."),
        ({"modules_to_save": ["a"]}, "modules_to_save cannot be given; use model.adapter.modules_to_save."),
        ({"task_type": "X"}, "task_type cannot be given, and litpeft sets it itself; leave it out."),
        ({"layer_replication": [[0, 1]]}, "layer_replication is not supported, because it changes the layers of the base; leave it out."),
        ({"bias": "all"}, "bias is not supported, because PEFT trains biases in the base's dtype; leave it out."),
        ({"r": 4, "init_lora_weights": "EVA"}, "init_lora_weights eva: PEFT needs a pass over sample data before training."),
        ({"init_lora_weights": "loftq"}, "init_lora_weights loftq: it changes the base by quantising it."),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights pissa_niter_16: its random factorisation could not be repeated exactly; give pissa."),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_given_is_refused_with_the_reason(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        check_options("LORA", options)
    assert str(error.value) == OPTION + sentence


@pytest.mark.parametrize(
    "options",
    [
        {}, {"r": 4, "bias": "none"}, {"layer_replication": None}, {"init_lora_weights": True},
        {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"init_lora_weights": "gaussian"},
        {"target_modules": ["q"]}, {"init_lora_weights": "evangelion"},
    ],
)  # fmt: skip
def test_other_options_are_taken(options: dict[str, Any]) -> None:
    check_options("LORA", options)


def test_each_option_that_is_listed_is_one_of_peft() -> None:
    fields = {name for kind in known_methods().values() for name in kind.__dataclass_fields__}
    assert OURS.keys() <= fields
    assert NEEDS_CALLS.keys() <= fields
    assert REFUSED.keys() <= known_methods().keys()
    for init in INITS:
        with pytest.raises(UserError, match=f"init_lora_weights {init}"):
            check_options("LORA", {"init_lora_weights": init})


@pytest.mark.parametrize("method", ["lora", "LoRA", "LORA", "Ia3"])
def test_methods_may_be_written_in_any_case(method: str) -> None:
    assert check_method(method) == method.upper()


def test_methods_that_do_not_exist_or_do_not_run_are_refused() -> None:
    for method, reason in REFUSED.items():
        with pytest.raises(UserError) as error:
            check_method(method.lower())
        assert str(error.value) == f"model.adapter.method {method}: {reason}."
    with pytest.raises(UserError) as error:
        check_method("LORRA")
    listed = ", ".join(sorted(set(known_methods()) - set(REFUSED)))
    assert (
        str(error.value) == f"model.adapter.method: PEFT has no method 'LORRA' (did you mean LORA?); it has: {listed}."
    )
    assert "LORA" in listed
    assert "POLY" not in listed


@pytest.mark.parametrize(
    ("strategy", "method"),
    [
        ("ia3", "IA3"), ("peft-ia3", "IA3"), ("prompt-tuning", "PROMPT_TUNING"), ("peft-lora", "LORA"),
        ("lora", None), ("none", None), ("frozen", None), ("qlora", None), ("dora", None), ("full", None),
    ],
)  # fmt: skip
def test_the_method_of_a_name_in_tables(strategy: str, method: str | None) -> None:
    assert compared_method(strategy) == method


def test_a_value_that_peft_refuses_is_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"^model\.adapter\.options: PEFT refuses them for LORA \(.*\); correct the option\.$"
    ):
        build_config("LORA", {"layers_pattern": "a", "target_modules": "b.*", "layers_to_transform": [1]})
    assert build_config("LORA", {"r": 4}).r == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.layer.3.output.dense", True), ("layers.0.mlp.down_proj", True), ("h.0.mlp.c_proj", True),
        ("encoder.layer.3.intermediate.dense", False), ("layers.0.mlp.up_proj", False), ("h.0.attn.c_proj", False),
        ("encoder.layer.3.attention.output.dense", False),
    ],
)  # fmt: skip
def test_the_last_layer_of_a_feed_forward_block(name: str, expected: bool) -> None:
    assert is_feed_forward_output(name) is expected


@pytest.mark.parametrize(
    ("value", "expected"), [("pissa", True), ("PiSSA", True), ("olora", True), (True, False), (None, False), ("eva", False)]
)  # fmt: skip
def test_which_initialisations_change_the_base(value: Any, expected: bool) -> None:
    assert changes_base({"init_lora_weights": value}) is expected
    assert changes_base({}) is False


def two_heads() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(2, 2), "first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})


IN_FULL = ["first.weight", "first.bias", "second.weight", "second.bias"]


def export(folder: Path, model: nn.Module, config: Any, in_full: list[str]) -> None:
    wrapper = SimpleNamespace(peft_config={"default": config})
    write_peft_adapter(folder, model, wrapper, in_full, {}, "base")


def test_what_peft_cannot_store_beside_a_method_is_refused(tmp_path: Path) -> None:
    plain = SimpleNamespace(peft_type=SimpleNamespace(value="X"))
    with pytest.raises(UserError, match=r"^PEFT stores no trained first beside X; give --format merged\.$"):
        export(tmp_path, two_heads(), plain, IN_FULL)
    model = two_heads()
    model["body"].register_parameter("new_tokens", nn.Parameter(torch.zeros(1, 2)))
    with pytest.raises(
        UserError, match=r"^PEFT stores no rows of model\.resize_embeddings beside X; give --format mer"
    ):
        export(tmp_path, model, plain, [])
    model = two_heads()
    model.add_module("also_first", nn.Linear(2, 2))
    config = SimpleNamespace(peft_type=SimpleNamespace(value="X"), modules_to_save=None)
    with pytest.raises(
        UserError, match=r"^PEFT would load the trained first into also_first too; give --format merged"
    ):
        export(tmp_path, model, config, IN_FULL[:2])
    assert list(tmp_path.iterdir()) == []


def test_an_update_on_a_base_that_was_changed_is_written_for_the_original_base(tmp_path: Path) -> None:
    """W - s B₀A₀ + s BA is W plus an update of twice the rank, and PEFT must not change the base again."""
    import peft

    for rslora in (False, True):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(8, 6, bias=False))
        original = base[0].weight.detach().clone()
        config = peft.LoraConfig(
            r=2, lora_alpha=6, target_modules=["0"], use_rslora=rslora, init_lora_weights="olora",
            rank_pattern={"none": 3}, alpha_pattern={"none": 5},
        )  # fmt: skip
        wrapper = peft.get_peft_model(base, config)
        initial = {n: t.clone() for n, t in peft.get_peft_model_state_dict(wrapper).items()}
        layer = wrapper.base_model.model[0]
        with torch.no_grad():
            layer.lora_B["default"].weight.add_(0.5)
        expected = layer(torch.eye(8)).T
        folder = tmp_path / str(rslora)
        folder.mkdir()
        write_peft_adapter(folder, wrapper.base_model.model, wrapper, [], initial, "the base")
        found = json.loads((folder / "adapter_config.json").read_text())
        assert (found["r"], found["init_lora_weights"], found["base_model_name_or_path"]) == (4, True, "the base")
        assert found["inference_mode"] is True
        assert (found["rank_pattern"], found["modules_to_save"]) == ({"none": 6}, None)
        growth = 2**0.5 if rslora else 2
        assert (found["lora_alpha"], found["alpha_pattern"]["none"]) == pytest.approx((6 * growth, 5 * growth))
        plain = nn.Sequential(nn.Linear(8, 6, bias=False))
        plain[0].weight.data.copy_(original)
        loaded = peft.PeftModel.from_pretrained(plain, str(folder))
        torch.testing.assert_close(loaded(torch.eye(8)).T, expected, rtol=0, atol=1e-5)


def test_peft_loads_adalora_with_its_zeros_and_the_head(tmp_path: Path) -> None:
    """The ranks of the last reallocation may have grown again since, so that PEFT must not leave them out."""
    import peft

    torch.manual_seed(0)
    base = nn.ModuleDict({"body": nn.Linear(8, 6), "head": nn.Linear(6, 2)})
    fresh = copy.deepcopy(base)
    options = {"init_r": 4, "target_r": 2, "total_step": 10, "tinit": 1, "tfinal": 1}
    wrapper = peft.get_peft_model(base, peft.AdaLoraConfig(target_modules=["body"], **options))
    model = wrapper.base_model.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter)) if parameter.requires_grad else None
        model["head"].weight.add_(1.0)
        model["body"].lora_E["default"][1] = 0.0
    kept = [True, False, False, True]
    wrapper.peft_config["default"].rank_pattern = {"body.lora_E": kept}
    write_peft_adapter(tmp_path, model, wrapper, ["head.weight", "head.bias"], {}, "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["modules_to_save"]) == (None, ["head"])
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).base_model.model.eval()
    x = torch.randn(3, 8)
    expected, found = (each["head"](each["body"](x)) for each in (model.eval(), loaded))
    torch.testing.assert_close(found, expected)


def test_a_method_without_modules_of_its_own_is_stored_without_their_names(tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    wrapper = peft.get_peft_model(
        LlamaForCausalLM(config), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )
    write_peft_adapter(tmp_path, wrapper.base_model, wrapper, [], {}, "the base")
    found = json.loads((tmp_path / "adapter_config.json").read_text())
    assert found["task_type"] == "CAUSAL_LM"
    assert found.get("modules_to_save") is None
    assert [t.shape for t in load_file(tmp_path / "adapter_model.safetensors").values()] == [(3, 8)]

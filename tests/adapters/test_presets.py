"""Presets mean the same in every architecture, `exclude` removes layers, and safe sub-classes of Linear are adapted."""

from __future__ import annotations

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from litpeft.adapters import LoRA, QLoRA
from litpeft.adapters.layers import ADAPTED, LINEAR, adapted_layers
from litpeft.adapters.targets import layer_type, match_targets
from litpeft.errors import UserError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 2, "head_dim": 8}
FALCON = {name: size for name, size in SIZES.items() if name not in ("head_dim", "num_key_value_heads")}
GPT_J = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 50}
OPT = SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}
QKV = ("q_proj", "k_proj", "v_proj")
# architecture -> config options, and the last part of the names that query, key, value, projection and mlp select
ARCHITECTURES = {
    "phi3": (SIZES, "qkv_proj", "qkv_proj", "qkv_proj", "o_proj", "gate_up_proj down_proj"),
    "glm4": (SIZES, *QKV, "o_proj", "gate_up_proj down_proj"),
    "gemma3_text": (SIZES, *QKV, "o_proj", "gate_proj up_proj down_proj"),
    "qwen3": (SIZES, *QKV, "o_proj", "gate_proj up_proj down_proj"),
    "opt": (OPT, *QKV, "out_proj", "fc1 fc2"),
    "gptj": (GPT_J, *QKV, "out_proj", "fc_in fc_out"),
    "gpt_neox": (SIZES, *["query_key_value"] * 3, "dense", "dense_h_to_4h dense_4h_to_h"),
    "bloom": (SIZES | {"n_layer": 2, "n_head": 4}, *["query_key_value"] * 3, "dense", "dense_h_to_4h dense_4h_to_h"),
    "falcon": (FALCON, *["query_key_value"] * 3, "dense", "dense_h_to_4h dense_4h_to_h"),
    "modernbert": (SIZES, *["Wqkv"] * 3, "Wo", "Wi Wo"),
    "deberta": (SIZES, *["in_proj"] * 3, "dense", "dense"),
    "deberta-v2": (SIZES, "query_proj", "key_proj", "value_proj", "dense", "dense"),
    "mpnet": (SIZES, "q", "k", "v", "o", "dense"),
    "albert": (SIZES | {"embedding_size": 16}, "query", "key", "value", "dense", "ffn ffn_output"),
}


def build(kind: str) -> nn.Module:
    """Return a tiny model of this architecture on the meta device."""
    options = ARCHITECTURES[kind][0]
    config = AutoConfig.for_model(kind, **options)
    with torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(config).requires_grad_(False)
        except ValueError:
            return AutoModelForMaskedLM.from_config(config).requires_grad_(False)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_presets_select_the_attention_and_the_mlp_of_every_block(kind: str) -> None:
    model = build(kind)
    selected = {}
    for preset, leaves in zip(("query", "key", "value", "projection", "mlp"), ARCHITECTURES[kind][1:], strict=True):
        names = match_targets(model, [preset], tuple(ADAPTED), LINEAR)
        assert {name.rpartition(".")[2] for name in names} == set(leaves.split()), names
        blocks = {match[1] for name in names if (match := re.search(r"\.(\d+)\.", name))}
        assert len(blocks) == (1 if kind == "albert" else 2), names  # ALBERT's layers share one block
        selected[preset] = set(names)
    assert not selected["mlp"] & (selected["query"] | selected["key"] | selected["value"] | selected["projection"])
    assert not selected["projection"] & selected["query"]


def test_excluded_layers_are_not_adapted() -> None:
    model = build("qwen3")
    every = set(match_targets(model, "all-linear", tuple(ADAPTED), LINEAR))
    without_mlp = set(match_targets(model, "all-linear", tuple(ADAPTED), LINEAR, ["mlp"]))
    assert every - without_mlp == set(match_targets(model, ["mlp"], tuple(ADAPTED), LINEAR))
    without_block = set(match_targets(model, "all-linear", tuple(ADAPTED), LINEAR, r"model\.layers\.0\..*"))
    assert every - without_block == {name for name in every if ".0." in name}
    assert match_targets(model, ["q_proj", "k_proj"], tuple(ADAPTED), LINEAR, "k_proj") == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    ]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["dt_proj"], "model.adapter.exclude 'dt_proj' matches none of the selected layers"),
        (["q_proj"], "model.adapter.exclude leaves no layer of model.adapter.targets"),
        ("(q_proj", r"model.adapter.exclude '\(q_proj' is not a regular expression"),
    ],
)
def test_a_useless_exclusion_is_refused(exclude: list[str] | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        match_targets(build("qwen3"), ["q_proj"], tuple(ADAPTED), LINEAR, exclude)


def test_the_vision_tower_of_a_multimodal_model_is_left_alone() -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = Gemma3Config(text_config=SIZES, vision_config=vision | {"image_size": 28, "patch_size": 14})
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config).requires_grad_(False)
    assert [name for name, module in model.named_modules() if "vision" in name and type(module) is nn.Linear]
    for targets in ("all-linear", ["query", "value"]):
        names = match_targets(model, targets, tuple(ADAPTED), LINEAR)
        assert all(name.startswith("model.language_model.") for name in names)
        assert len(names) == (14 if targets == "all-linear" else 4)


def falcon() -> nn.Module:
    torch.manual_seed(0)
    return FalconForCausalLM(FalconConfig(**FALCON)).eval()


def test_falcons_linear_layers_are_adapted_as_by_peft() -> None:
    ids = torch.tensor([[1, 5, 6, 7]])
    ours, theirs = falcon(), falcon()
    LoRA(rank=4, alpha=8, targets=["query_key_value"]).apply(ours)
    theirs = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=["query_key_value"]))
    torch.manual_seed(1)
    for name, layer in adapted_layers(ours).items():
        peft_layer = theirs.get_submodule(f"base_model.model.{name}")
        for letter in "AB":
            values = torch.randn_like(getattr(layer, f"lora_{letter}"))
            getattr(layer, f"lora_{letter}").data.copy_(values)
            getattr(peft_layer, f"lora_{letter}")["default"].weight.data.copy_(values)
    assert len(adapted_layers(ours)) == 2
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_falcons_linear_layers_are_quantised(tmp_path) -> None:
    falcon().save_pretrained(tmp_path)
    adapter = QLoRA(targets=["query_key_value"])
    model = FalconForCausalLM.from_pretrained(tmp_path, **adapter.loading(torch.device("cpu")))
    adapter.apply(model)
    assert adapter.describe(model)["quantised"]["layers"] == 8  # four linear layers in each of two blocks
    assert not [name for name, module in model.named_modules() if layer_type(module) is nn.Linear and name != "lm_head"]

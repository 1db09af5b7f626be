"""Methods of PEFT on a small model: their names, what they refuse, and what they get if nothing is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from litpeft.adapters import Peft
from litpeft.adapters.base import trainable
from litpeft.adapters.peft_options import find_targets
from litpeft.errors import UserError
from tests.adapters.small_models import IDS, disturb, small

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def bert() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"method": "IA3"}, "ia3"), ({"method": "lora"}, "peft-lora"), ({"method": "LORA", "options": None}, "peft-lora"),
        ({"method": "LORA", "options": {"use_dora": True}}, "peft-dora"),
        ({"method": "LORA", "options": {"init_lora_weights": "PiSSA"}}, "pissa-lora"),
        ({"method": "LORA", "options": {"init_lora_weights": True}}, "peft-lora"),
        ({"method": "LORA", "options": {"init_lora_weights": "olora", "use_dora": True}}, "olora-dora"), ({}, "peft"),
    ],
)  # fmt: skip
def test_the_name_of_a_method(options: dict[str, Any], name: str) -> None:
    assert Peft.strategy_name(options) == name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "LORA", "options": {"target_modules": ["q"]}, "targets": ["k"]}, "give model.adapter.targets or model.adapter.options.target_modules, not both."),
        ({"method": "PROMPT_TUNING", "targets": ["q"]}, "model.adapter.targets: PROMPT_TUNING has no targets; leave it out."),
        ({"method": "PREFIX_TUNING", "layers": [0]}, "model.adapter.layers: PREFIX_TUNING has no targets; leave it out."),
        ({"method": "ADAPTION_PROMPT", "exclude": ["q"]}, "model.adapter.exclude: ADAPTION_PROMPT has no targets; leave it out."),
        ({"method": "TRAINABLE_TOKENS"}, "model.adapter.options.token_indices: give the ids of the tokens to train, such as '[5, 7]'."),
        ({"method": "ADALORA", "options": {"init_r": 8, "target_r": 8}}, "model.adapter.options.target_r 8 must be smaller than init_r 8, because ADALORA takes ranks away during training; give a larger init_r."),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_a_method_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Peft(**arguments)
    assert str(error.value) == sentence


def test_options_at_the_limits_are_taken() -> None:
    assert Peft("ADALORA", {"init_r": 9, "target_r": 8}).settings()["options"] == {"init_r": 9, "target_r": 8}
    adapter = Peft("LORA", {"target_modules": {"k_proj", "a_proj"}}, dtype="fp32")
    assert (adapter.targets, adapter.dtype, adapter.options) == (["a_proj", "k_proj"], None, {})
    assert Peft("LORA", {"target_modules": "k.*"}).targets == "k.*"
    with pytest.raises(
        UserError, match=r"^model\.adapter Peft does not run with fsdp2; give --trainer\.strategy ddp\.$"
    ):
        adapter.check_sharding()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in trainable(model).items()}


def test_what_methods_have_if_nothing_is_said() -> None:
    prompt = shapes(Peft("PROMPT_TUNING").apply(llama()))
    assert list(prompt.values()) == [(20, 16)]
    assert list(shapes(Peft("PROMPT_TUNING", {"num_virtual_tokens": 3}).apply(llama())).values()) == [(3, 16)]
    adaption = shapes(Peft("ADAPTION_PROMPT").apply(llama()))
    assert [shape for shape in adaption.values() if len(shape) == 3] == [(1, 10, 16)] * 3
    few = shapes(Peft("ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 2}).apply(llama()))
    assert [shape for shape in few.values() if len(shape) == 3] == [(1, 4, 16)] * 2
    lora = shapes(Peft("LORA", {"r": 2}).apply(llama()))
    assert {name.split(".")[-4] for name in lora} == {"q_proj", "v_proj"}
    assert len(shapes(Peft("LORA", {"r": 2}, layers=[1]).apply(llama()))) == 4
    assert len(shapes(Peft("LORA", {"r": 2}, layers="1-").apply(llama()))) == 8


@pytest.mark.parametrize("named", [False, True])
def test_ia3_scales_the_input_of_the_last_layer_of_a_feed_forward_block(named: bool) -> None:
    options = {"feedforward_modules": ["down_proj"]} if named else {}
    found = shapes(Peft("IA3", options, targets=["k_proj", "v_proj", "down_proj"]).apply(llama()))
    for name, shape in found.items():
        assert max(shape) == (24 if "down_proj" in name else 16), name
    other = shapes(Peft("IA3", {"feedforward_modules": ["k_proj"]}, targets=["k_proj", "down_proj"]).apply(llama()))
    assert {max(shape) for name, shape in other.items() if "down_proj" in name} == {16}  # its outputs


def test_two_models_draw_the_same_sparse_mask() -> None:
    first, second = (Peft("SHIRA", {"r": 2}).apply(llama()) for _ in range(2))
    state = [model.state_dict() for model in (first, second)]
    assert all(torch.equal(tensor, state[1][name]) for name, tensor in state[0].items())


def test_a_model_with_an_adapter_of_peft_is_refused() -> None:
    model = Peft("LORA", {"r": 2}).apply(llama())
    with pytest.raises(
        UserError, match=r"^model\.adapter Peft: the model already has an adapter of PEFT; load the model a"
    ):
        Peft("IA3").apply(model)


def test_a_prompt_is_trained_with_the_head_of_a_classifier() -> None:
    model = Peft("PROMPT_TUNING").apply(bert(), head=["classifier"])
    assert {name.partition(".")[0] for name in trainable(model)} == {"prompt_encoder", "classifier"}


def test_the_tensors_of_a_method_have_the_dtype_that_was_asked_for() -> None:
    for dtype, expected in ((None, torch.float32), ("bf16", torch.bfloat16)):
        model = Peft("LORA", {"r": 2}, dtype=dtype).apply(bert().bfloat16(), head=["classifier"])
        found = {name: parameter.dtype for name, parameter in trainable(model).items()}
        assert {kind for name, kind in found.items() if "lora" in name} == {expected}
        assert {kind for name, kind in found.items() if "classifier" in name} == {torch.float32}


NORMS = {f"model.layers.{n}.{leaf}" for n in range(3) for leaf in ("input_layernorm", "post_attention_layernorm")}


@pytest.mark.parametrize(
    ("method", "targets", "exclude", "expected"),
    [
        ("LN_TUNING", None, None, NORMS | {"model.norm"}),
        ("LN_TUNING", ["input_layernorm"], None, {name for name in NORMS if "input" in name}),
        ("TRAINABLE_TOKENS", None, None, {"model.embed_tokens"}),
        ("TRAINABLE_TOKENS", ["lm_head"], None, {"lm_head"}),
        ("IA3", None, None, {f"model.layers.{n}.{leaf}" for n in range(3) for leaf in ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")}),
        ("IA3", ["q_proj"], None, {f"model.layers.{n}.self_attn.q_proj" for n in range(3)}),
        ("LORA", None, None, {f"model.layers.{n}.self_attn.{leaf}_proj" for n in range(3) for leaf in "qv"}),
        ("LORA", None, ["1.self_attn.q_proj"], {f"model.layers.{n}.self_attn.{leaf}_proj" for n in range(3) for leaf in "qv"} - {"model.layers.1.self_attn.q_proj"}),
    ],
)  # fmt: skip
def test_the_layers_of_a_method(method: str, targets: Any, exclude: Any, expected: set[str]) -> None:
    assert set(find_targets(llama().requires_grad_(False), method, targets, exclude)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_merged_norms_have_the_dtype_of_the_base(name: str, dtype: torch.dtype) -> None:
    adapter = Peft("LN_TUNING")
    model = adapter.apply(small(name).to(dtype)).eval()
    disturb(model)
    trained = model(IDS).logits
    adapter.merge(model)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(model(IDS).logits, trained, rtol=rounding, atol=rounding)

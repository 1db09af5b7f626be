"""What `model.base` may be: each configuration of transformers gives the base with its numbers, or one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, HqqConfig

from litpeft.adapters import LoRA
from litpeft.adapters.base_options import base_name, base_on_disk, put_on_base, read_base, unquantised_shapes
from litpeft.adapters.bases import EightBit, FourBit, Hqq
from litpeft.errors import UserError

FOUR = {"name": "nf4", "quant_type": "nf4", "double_quant": True, "compute_dtype": None, "on_unavailable": "error"}
EIGHT = {"name": "int8", "threshold": 6.0, "skip": ["head"]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("nf4", FOUR | {"skip": ["head"]}),
        ("fp4", FOUR | {"name": "fp4", "quant_type": "fp4", "skip": ["head"]}),
        ("int8", EIGHT),
        (EightBit(2.5, ["query"]), {"name": "int8", "threshold": 2.5, "skip": ["query"]}),
        (BitsAndBytesConfig(load_in_8bit=True), EIGHT),
        (
            BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=3.0, llm_int8_skip_modules=["score"]),
            {"name": "int8", "threshold": 3.0, "skip": ["score"]},
        ),
        (BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[]), EIGHT | {"skip": []}),
        (
            BitsAndBytesConfig(load_in_4bit=True),  # fp4 in one step is the default of bitsandbytes
            FOUR | {"name": "fp4", "quant_type": "fp4", "double_quant": False, "skip": ["head"]},
        ),
        (
            BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
            FOUR | {"skip": ["head"]},
        ),
        (
            {"class_path": "transformers.BitsAndBytesConfig", "init_args": {"load_in_8bit": True}},
            EIGHT,
        ),
        (  # as the command line gives it
            {"class_path": "litpeft.adapters.bases.EightBit", "init_args.threshold": 2.0, "skip": []},
            {"name": "int8", "threshold": 2.0, "skip": []},
        ),
        ("litpeft.adapters.bases.EightBit", EIGHT),
    ],
)
def test_a_base_has_the_numbers_of_its_configuration(value: Any, expected: dict[str, Any]) -> None:
    assert read_base(value).settings() == expected
    assert base_name(value) == expected["name"]


def test_without_a_base_nothing_is_quantised() -> None:
    adapter = LoRA()
    assert read_base(None) is base_name(None) is put_on_base(adapter, None) is None
    assert (adapter.name, adapter.quantises, adapter.loading(torch.device("cpu"))) == ("lora", False, {})
    base = put_on_base(adapter, "int8")
    assert (adapter.name, adapter.quantises, base.settings()) == ("lora-int8", True, EIGHT)
    with pytest.raises(UserError, match=r"^model\.base int8: LoRA quantises the base itself; give LoRA or DoRA inste"):
        put_on_base(adapter, "int8")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"nbits": 4, "group_size": 64, "axis": 1, "skip": ["head"]}),
        ({"nbits": 3, "group_size": 32, "axis": 0}, {"nbits": 3, "group_size": 32, "axis": 0, "skip": ["head"]}),
        ({"skip_modules": ["query"]}, {"nbits": 4, "group_size": 64, "axis": 1, "skip": ["query"]}),
    ],
)
def test_hqq_has_the_numbers_of_its_configuration(options: dict[str, Any], expected: dict[str, Any]) -> None:
    pytest.importorskip("hqq", reason="the package hqq is not installed")
    base = read_base(HqqConfig(**options))
    assert isinstance(base, Hqq)
    assert base.settings() == {"name": "hqq"} | expected
    with pytest.raises(UserError, match=r"^model\.base hqq cannot be estimated"):
        base.can_quantise(torch.device("meta"))
    assert all(base.can_quantise(torch.device(kind)) for kind in ("cpu", "cuda", "mps", "xpu"))


def test_hqq_without_options_is_four_bits_in_groups_of_64() -> None:
    pytest.importorskip("hqq", reason="the package hqq is not installed")
    assert Hqq().settings() == {"name": "hqq", "nbits": 4, "group_size": 64, "axis": 1, "skip": ["head"]}
    dynamic = HqqConfig(dynamic_config={"self_attn.q_proj": {"nbits": 4, "group_size": 64}})
    with pytest.raises(UserError, match=r"^model\.base transformers\.HqqConfig: dynamic_config is not supported"):
        read_base(dynamic)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            "int9",
            "model.base: there is no base 'int9' (did you mean int8?); give nf4, fp4, int8, or the class path of a "
            "quantisation configuration such as transformers.QuantoConfig.",
        ),
        (
            7,
            "model.base: int is no quantisation configuration of transformers; give nf4, fp4, int8 or a class such as "
            "transformers.QuantoConfig.",
        ),
        (
            {"init_args": {"nbits": 4}},
            "model.base must be a name, or have a class_path; give --model.base.class_path too.",
        ),
        (
            "no_such.package.Config",
            "model.base no_such.package.Config needs the package no_such, which is not installed; run: pip install "
            "no_such.",
        ),
        (
            "litpeft.adapters.bases.NoSuchBase",
            "model.base: there is no class litpeft.adapters.bases.NoSuchBase (module 'litpeft.adapters.bases' has no "
            "attribute 'NoSuchBase').",
        ),
        ("no.", "model.base no. needs the package no, which is not installed; run: pip install no."),
        (
            {"class_path": "litpeft.adapters.bases.EightBit", "init_args": {"thresold": 1.0}},
            "model.base: EightBit has no option 'thresold' (did you mean threshold?).",
        ),
        (
            {"class_path": "transformers.BitsAndBytesConfig", "init_args": {"load_in_4bit": True, "bnb_4bit_quant_type": 1}},
            "model.base transformers.BitsAndBytesConfig: bnb_4bit_quant_type must be a string.",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_the_whole_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read_base(value)
    assert str(error.value) == sentence


def test_the_base_of_files_on_the_disk_is_that_of_bitsandbytes_only() -> None:
    eight = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0)
    for config in (eight, eight.to_dict()):
        base = base_on_disk(config)
        assert isinstance(base, EightBit)
        assert base.settings() == EIGHT | {"threshold": 4.0}
    assert isinstance(base_on_disk(BitsAndBytesConfig(load_in_4bit=True).to_dict()), FourBit)
    assert base_on_disk({"quant_method": "gptq", "bits": 4}) is None
    assert base_on_disk({}) is None


def test_files_of_bitsandbytes_have_the_shapes_of_the_model() -> None:
    def meta(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shapes = {"model.layers.0.q.weight": (8, 4), "model.layers.0.q.bias": (8,), "model.layers.0.k.weight": (6, 4)}
    shapes |= {"model.layers.0.v.weight": (2, 4)}
    files = {
        "layers.0.q.weight": meta(16, 1),  # four bits: the first part of the name is missing
        "layers.0.q.weight.absmax": meta(2),
        "layers.0.q.weight.quant_map": meta(16),
        "layers.0.q.bias": meta(8, dtype=torch.float16),
        "model.layers.0.k.weight": meta(6, 4, dtype=torch.int8),  # eight bits
        "model.layers.0.k.SCB": meta(6),
        "model.layers.0.k.weight_format": meta(),
        "head.model.layers.0.v.weight": meta(4, 1),  # there is a part more
        "head.model.layers.0.v.weight.absmax": meta(1),
        "other.weight": meta(4, 1),  # of no layer of the model
        "other.weight.absmax": meta(1),
        "norm.weight": meta(4, dtype=torch.float16),
    }
    plain, layers = unquantised_shapes(files, {name: torch.Size(shape) for name, shape in shapes.items()})
    assert {name: (tuple(tensor.shape), tensor.device.type) for name, tensor in plain.items()} == {
        "layers.0.q.weight": ((8, 4), "meta"),
        "layers.0.q.bias": ((8,), "meta"),
        "model.layers.0.k.weight": ((6, 4), "meta"),
        "head.model.layers.0.v.weight": ((2, 4), "meta"),
        "norm.weight": ((4,), "meta"),
    }
    assert layers == ["model.layers.0.q", "model.layers.0.k", "model.layers.0.v"]

"""Adapters in PEFT's format: what the file says is what was trained, and an adapter that does not fit is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.layers import adapted_layers
from litpeft.adapters.peft_config import CONFIG
from litpeft.adapters.peft_format import PREFIX, TENSORS, load_adapter, write_adapter
from litpeft.errors import UserError
from tests.adapters.small_models import MODELS, disturb, small

BIASED = {"bias": "lora_only", "targets": ["query", "value"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"targets": ["query", "value"]},
    "rslora": {"rslora": True, "targets": ["query"]},
    "patterns": {"rank_pattern": {r".*layer\.0.*query": 2}, "alpha_pattern": {r".*layer\.1.*value": 5}, "targets": ["query", "value"]},
    "biases": BIASED,
    "embedding": {"targets": ["word_embeddings", "query"]},
}  # fmt: skip


def adapted(kind: type = LoRA, seed: int = 0, **options: Any) -> tuple[nn.Module, LoRA]:
    """Return a small BERT with an adapter whose values look trained."""
    model = small("bert")
    adapter = kind(**{"rank": 4, "alpha": 6} | options)
    adapter.apply(model, head=MODELS["bert"].head)
    torch.manual_seed(seed)
    for layer in adapted_layers(model).values():
        disturb(layer)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model.eval(), adapter


def written(folder: Path, **options: Any) -> tuple[nn.Module, LoRA, dict[str, Any]]:
    model, adapter = adapted(**options)
    write_adapter(folder, model, adapter, "base")
    return model, adapter, json.loads((folder / CONFIG).read_text())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_what_is_written_is_read_with_the_same_outputs(tmp_path: Path, kind: type, name: str) -> None:
    if kind is DoRA and name == "biases":
        pytest.skip("DoRA has no option for biases")
    model, adapter, config = written(tmp_path, kind=kind, **OPTIONS[name])
    other, _ = adapted(kind=kind, seed=1, **OPTIONS[name])
    inputs = MODELS["bert"].inputs
    with torch.no_grad():
        assert not torch.allclose(other(**inputs).logits, model(**inputs).logits, atol=1e-3)
        load_adapter(tmp_path, other, adapter)
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    assert config["use_dora"] == (kind is DoRA)
    # the rank and the scaling of each layer, as PEFT reads them
    for layer_name, layer in adapted_layers(model).items():
        rank = config["rank_pattern"].get(layer_name.replace(".", r"\."), config["r"])
        alpha = config["alpha_pattern"].get(layer_name.replace(".", r"\."), config["lora_alpha"])
        assert rank == layer.rank == layer.lora_A.shape[0]
        scaling = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
        assert scaling == pytest.approx(layer.scaling)
        assert layer_name in config["target_modules"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 7}, "has scaling 1.5, not 1.75; set alpha or rslora"),
        ({"rslora": True}, "has scaling 1.5, not 3; set alpha or rslora"),
        ({"rank": 2, "alpha": 3}, "has rank 4, not 2; set rank or rank_pattern"),
        ({"targets": ["query", "value", "key"]}, "it lacks 4 tensors"),
        ({"targets": ["query"]}, "it has 4 unexpected tensors"),
        ({"kind": DoRA}, "it is not a DoRA adapter"),
    ],
)
def test_an_adapter_with_other_options_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    written(tmp_path, targets=["query", "value"])
    model, adapter = adapted(**{"targets": ["query", "value"]} | options)
    before = {name: parameter.clone() for name, parameter in trainable(model).items()}
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path, model, adapter)
    assert all(torch.equal(before[name], parameter) for name, parameter in trainable(model).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_values_that_are_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    model, adapter, _ = written(tmp_path, targets=["query"])
    tensors = load_file(tmp_path / TENSORS)
    name = next(name for name in tensors if name.startswith(PREFIX) and name.endswith("lora_B.weight"))
    tensors[name][1, 1] = value
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(UserError, match="has NaN or infinite values"):
        load_adapter(tmp_path, model, adapter)


def test_an_adapter_without_a_head_leaves_the_head_of_the_model(tmp_path: Path) -> None:
    _, _, _ = written(tmp_path, targets=["query"])
    tensors = load_file(tmp_path / TENSORS)
    save_file({name: tensor for name, tensor in tensors.items() if "classifier" not in name}, tmp_path / TENSORS)
    model, adapter = adapted(seed=1, targets=["query"])
    head = model.classifier.weight.clone()
    load_adapter(tmp_path, model, adapter)
    assert torch.equal(model.classifier.weight, head)
    found = model.bert.encoder.layer[0].attention.self.query.lora_A
    assert torch.equal(found, tensors[f"{PREFIX}bert.encoder.layer.0.attention.self.query.lora_A.weight"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"peft_type": "IA3"}, "its type is IA3, not LORA"),
        ({"peft_type": "OFT"}, "its type is OFT, not LORA"),
        ({"lora_bias": True}, "its option lora_bias is not supported"),
        ({"use_qalora": True, "layer_replication": [[0, 1]]}, "its option layer_replication is not supported"),
        ({"trainable_token_indices": [3]}, "it trains the rows of other tokens (trainable_token_indices)"),
        *(
            ({"init_lora_weights": init}, f"init_lora_weights is {init}, so PEFT changed the weights of the base before training")
            for init in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga")
        ),
        ({"use_dora": True}, "it is a DoRA adapter"),
        ({"r": "four"}, None),
        ({"rank_pattern": {"query": 2}}, "bert.encoder.layer.0.attention.self.query has rank 2, not 4; set rank or rank_pattern"),
    ],
)  # fmt: skip
def test_a_file_of_another_adapter_is_refused_in_one_sentence(
    change: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    model, adapter, config = written(tmp_path, targets=["query"])
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(UserError) as error:
        load_adapter(tmp_path, model, adapter)
    start = f"model.adapter.init_from {tmp_path} does not fit: "
    assert str(error.value).startswith(start)
    assert reason is None or str(error.value) == f"{start}{reason}."


@pytest.mark.parametrize("change", [{"lora_bias": False}, {"init_lora_weights": "gaussian"}, {"use_qalora": None}])
def test_options_of_peft_that_are_off_or_concern_only_the_start_do_not_matter(
    change: dict[str, Any], tmp_path: Path
) -> None:
    model, adapter, config = written(tmp_path, targets=["query"])
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    load_adapter(tmp_path, model, adapter)


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    model, adapter, config = written(tmp_path, targets=["query"])
    start = f"model.adapter.init_from {tmp_path}"
    weights = (tmp_path / TENSORS).read_bytes()
    for content, expected in (
        ("[]", f"{start}: {CONFIG} is not a JSON object."),
        ("{", f"{start} cannot be read, it may be damaged: "),
        (None, f"{start}: there is no {CONFIG}; give the folder of an adapter that PEFT has saved."),
    ):
        (tmp_path / CONFIG).write_text(content) if content else (tmp_path / CONFIG).unlink()
        with pytest.raises(UserError) as error:
            load_adapter(tmp_path, model, adapter)
        assert str(error.value).startswith(expected)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / TENSORS).write_bytes(weights[:-9])
    with pytest.raises(UserError, match="cannot be read, it may be damaged"):
        load_adapter(tmp_path, model, adapter)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(UserError, match=f"there is no {TENSORS}; give the folder"):
        load_adapter(tmp_path, model, adapter)


def test_a_head_must_be_there_whole_and_every_tensor_in_its_shape(tmp_path: Path) -> None:
    model, adapter, _ = written(tmp_path, targets=["query"])
    tensors = load_file(tmp_path / TENSORS)
    head = sorted(name for name in tensors if "classifier" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != head[0]}, tmp_path / TENSORS)
    with pytest.raises(UserError, match=rf"it lacks 1 tensors \({head[0]}, \.\.\.\); set targets, layers or bias"):
        load_adapter(tmp_path, model, adapter)
    save_file(tensors | {head[1]: tensors[head[1]][:-1].contiguous()}, tmp_path / TENSORS)
    with pytest.raises(UserError, match=rf"{head[1]} has the shape .*, not that of classifier\."):
        load_adapter(tmp_path, model, adapter)
    copies = {
        f"{PREFIX}classifier.original_module.weight": torch.zeros(1),
        f"{PREFIX}classifier.modules_to_save.x": torch.zeros(1),
    }
    save_file(tensors | copies, tmp_path / TENSORS)  # with bias: all, PEFT saves a head three times
    load_adapter(tmp_path, model, adapter)
    save_file(tensors | {f"{PREFIX}more": torch.zeros(1)}, tmp_path / TENSORS)
    with pytest.raises(UserError, match=rf"it has 1 unexpected tensors \({PREFIX}more, \.\.\.\)"):
        load_adapter(tmp_path, model, adapter)


def test_the_most_common_rank_and_alpha_stand_once_and_the_others_by_name(tmp_path: Path) -> None:
    pattern = {r"layer\.0.*query": 2}
    _, _, config = written(tmp_path, rank=4, alpha=6, rank_pattern=pattern, targets=["query", "value"], dropout=0.25)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["bias"]) == (4, 6, 0.25, "none")
    assert config["rank_pattern"] == {r"bert\.encoder\.layer\.0\.attention\.self\.query": 2}
    assert config["alpha_pattern"] == {}
    assert (config["peft_type"], config["task_type"], config["base_model_name_or_path"]) == ("LORA", "SEQ_CLS", "base")
    assert (config["inference_mode"], config["init_lora_weights"], config["fan_in_fan_out"]) == (True, True, False)
    assert (config["modules_to_save"], config["target_parameters"]) == (["classifier"], None)
    assert config["trainable_token_indices"] is None


@pytest.mark.parametrize(
    ("options", "adapter", "sentence"),
    [
        ({"dilation": 2}, LoRA, "PEFT ignores the dilation and padding mode of layer; give --format merged."),
        ({"padding_mode": "circular", "padding": 1}, LoRA, "PEFT ignores the dilation and padding mode of layer; give --format merged."),
        ({"groups": 2}, DoRA, "PEFT's DoRA computes the norm of the grouped convolution layer differently; give --format merged."),
        ({"groups": 2}, LoRA, None), ({"padding": 1, "stride": 2}, DoRA, None),
    ],
)  # fmt: skip
def test_a_convolution_that_peft_computes_differently_is_not_written(
    options: dict[str, Any], adapter: type[LoRA], sentence: str | None, tmp_path: Path
) -> None:
    model = nn.ModuleDict({"layer": nn.Conv2d(4, 4, 3, **options)})
    made = adapter(rank=2, targets=["layer"])
    made.apply(model)
    if sentence is None:
        write_adapter(tmp_path, model, made, "base")
        return
    with pytest.raises(UserError) as error:
        write_adapter(tmp_path, model, made, "base")
    assert str(error.value) == sentence
    assert list(tmp_path.iterdir()) == []


def test_a_head_whose_name_ends_another_name_is_not_written(tmp_path: Path) -> None:
    """PEFT compares the end of a name, even in the middle of a part."""
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("layer", "score", "my_score")})
    adapter = LoRA(rank=2, targets=["layer"])
    adapter.apply(model, head=["score"])
    with pytest.raises(
        UserError, match=r"^PEFT would load the trained score into my_score too; give --format merged\.$"
    ):
        write_adapter(tmp_path, model, adapter, "base")

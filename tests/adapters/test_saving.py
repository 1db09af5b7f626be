"""Adapters that are saved and loaded in Python: in PEFT's format, or in litpeft's own where PEFT has no such adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
)

from litpeft.adapters import Adapter, DoRA, Full, LoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.base_options import read_base
from litpeft.errors import UserError

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
IDS = torch.randint(4, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def bert() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**WIDTH)).eval()


def squeezebert() -> nn.Module:
    torch.manual_seed(0)
    return SqueezeBertForSequenceClassification(SqueezeBertConfig(**WIDTH, embedding_size=32)).eval()


def trained(model: nn.Module, adapter: Adapter) -> nn.Module:
    """Return the model with the adapter, whose tensors have values."""
    adapter.apply(model, head=["classifier"])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize(
    ("make", "adapter", "in_peft_format"),
    [
        (bert, lambda: LoRA(rank=4, alpha=2.0, targets=["query"], rank_pattern={"0.attention.self.query": 2}), True),
        (bert, lambda: DoRA(rank=2, targets=["query", "value"], dropout=0.25), True),
        (squeezebert, lambda: LoRA(rank=4, targets=["query"]), True),
        (squeezebert, lambda: DoRA(rank=4, targets=["query"]), False),  # PEFT computes another norm for grouped layers
    ],
)
def test_a_saved_adapter_is_loaded_with_its_options_and_its_tensors(
    make: Any, adapter: Any, in_peft_format: bool, tmp_path: Path
) -> None:
    saved = adapter()
    model = trained(make(), saved)
    expected = model(IDS).logits
    folder = saved.save(tmp_path / "adapter", model)
    assert ("adapter_config.json" in {path.name for path in folder.iterdir()}) == in_peft_format
    again = make()
    loaded = type(saved).load(folder, again)
    torch.testing.assert_close(again.eval()(IDS).logits, expected, rtol=0, atol=1e-6)
    assert loaded.settings() == saved.settings()
    assert trainable(again).keys() == trainable(model).keys()
    for name, tensor in trainable(again).items():
        torch.testing.assert_close(tensor, trainable(model)[name], rtol=0, atol=0)


def test_nothing_is_left_of_an_export_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: LoRA, folder: Path, model: nn.Module, base_name: str) -> None:
        (folder / "adapter_config.json").write_text("{}")
        (folder / "more").mkdir()
        raise UserError("PEFT has no such adapter.")

    monkeypatch.setattr(LoRA, "export", fails)
    adapter = LoRA(rank=2, targets=["query"])
    model = trained(bert(), adapter)
    folder = adapter.save(tmp_path / "adapter", model)
    assert not {"adapter_config.json", "more"} & {path.name for path in folder.iterdir()}
    again = bert()
    LoRA.load(folder, again)
    torch.testing.assert_close(again.eval()(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_a_saved_adapter_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    adapter = LoRA(rank=2, targets=["query"])
    model = trained(bert(), adapter)
    folder = adapter.save(tmp_path / "adapter", model)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.mul_(2)
    adapter.save(folder, model)
    again = bert()
    LoRA.load(folder, again)
    torch.testing.assert_close(again.eval()(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="holds other files; give a new folder"):
        adapter.save(tmp_path / "mine", model)
    settings = next(path for path in folder.iterdir() if path.suffix == ".json" and path.name != "adapter_config.json")
    settings.write_text(json.dumps({"class": "x"}))
    with pytest.raises(UserError, match=f"{settings.name} is damaged"):
        LoRA.load(folder, bert())


def on(base: str | None) -> nn.Module:
    """Return a model whose frozen layers are held in a base."""
    model = bert().requires_grad_(False)
    if base is not None:
        read_base(base).quantise(model)
    return model


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        ("int8", "nf4", "was trained on a base in int8, and the model is in nf4."),
        ("int8", None, "was trained on a base in int8, and the model is not quantised; load the model again in the same way."),
        (None, "int8", "was trained on a base in its own dtype, and the model is in int8; load the model again in the same way."),
        ("int8", "int8", None),
        (None, None, None),
    ],
)  # fmt: skip
def test_an_adapter_is_loaded_onto_the_base_on_which_it_was_trained(
    before: str | None, now: str | None, sentence: str | None, tmp_path: Path
) -> None:
    adapter = LoRA(rank=2, targets=["query"])
    folder = adapter.save(tmp_path / "adapter", trained(on(before), adapter))
    if sentence is None:
        LoRA.load(folder, on(now))
        return
    with pytest.raises(UserError) as error:
        LoRA.load(folder, on(now))
    assert str(error.value) == f"{folder} {sentence}"


def test_what_is_wrong_with_a_folder_or_a_model_is_said(tmp_path: Path) -> None:
    adapter = LoRA(rank=2, targets=["query"])
    cases = [
        (lambda: adapter.save(tmp_path / "a"), "LoRA is not applied to a model: call apply(model) first, or give the model."),
        (lambda: adapter.save(tmp_path / "a", bert()), "BertForSequenceClassification has no adapter LoRA, or it was merged already."),
        (lambda: LoRA.load(tmp_path, bert()), f"{tmp_path} holds no adapter: it has neither litpeft_adapter.json nor adapter_config.json."),
    ]  # fmt: skip
    for call, sentence in cases:
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value) == sentence
    model = trained(bert(), adapter)
    folder = adapter.save(tmp_path / "a")  # the model that it was applied to
    with pytest.raises(
        UserError, match="holds the adapter litpeft.adapters.lora.LoRA; call load of that class, or import"
    ):
        DoRA.load(folder, bert())
    Adapter.load(folder, bert())
    settings = json.loads((folder / "litpeft_adapter.json").read_text())
    assert (settings["class"], settings["head"], settings["new"], settings["base"]) == (
        "litpeft.adapters.lora.LoRA", ["classifier"], [], None,
    )  # fmt: skip
    assert settings["options"]["targets"] == ["query"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="holds other files; give a new folder"):
        adapter.save(tmp_path / "file", model)
    (tmp_path / "empty").mkdir()
    adapter.save(tmp_path / "empty", model)
    adapter.merge(model)
    with pytest.raises(UserError, match="has no adapter LoRA, or it was merged already"):
        adapter.save(tmp_path / "b", model)


def test_without_its_adapter_a_model_is_the_base_with_the_trained_head() -> None:
    adapter = LoRA(rank=2, targets=["query"])
    model = trained(bert(), adapter)
    plain = bert()
    plain.classifier.load_state_dict(model.classifier.state_dict())
    before = model(IDS).logits
    with adapter.disable() as same:
        assert same is model
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-6)
    assert torch.equal(model(IDS).logits, before)
    for other, sentence in (
        (Full(), "Full trains bert.embeddings.word_embeddings.weight, whose earlier values are not kept; load the base again instead of disable()."),
        (LoRA(rank=2, modules_to_save=["pooler"]), "LoRA trains bert.pooler.dense.weight, whose earlier values are not kept; load the base again instead of disable()."),
    ):  # fmt: skip
        model = trained(bert(), other)
        with pytest.raises(UserError) as error, other.disable():
            pass
        assert str(error.value) == sentence

"""The layers that targets and presets select, on the real architectures with meta tensors."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.layers import ADAPTED, LINEAR
from litpeft.adapters.targets import in_blocks, match_targets
from litpeft.errors import UserError

BUILD = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(num_hidden_layers=2)),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(num_hidden_layers=2)),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(tf.DistilBertConfig(n_layers=2)),
    "llama": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(num_hidden_layers=2)),
    "mistral": lambda: tf.MistralForSequenceClassification(tf.MistralConfig(num_hidden_layers=2)),
    "qwen2": lambda: tf.Qwen2ForSequenceClassification(tf.Qwen2Config(num_hidden_layers=2)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(num_hidden_layers=2)),
    "t5": lambda: tf.T5ForSequenceClassification(tf.T5Config(num_layers=2, num_decoder_layers=2)),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(num_hidden_layers=2)),
    "gpt2": lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(n_layer=2)),
}
# layers that each preset selects in a model of two blocks (T5: two encoder blocks, two decoder blocks)
EXPECTED = {
    "bert": {"query": 2, "key": 2, "value": 2, "projection": 2, "mlp": 4, "head": 1, "all-linear": 13},
    "roberta": {"query": 2, "key": 2, "value": 2, "projection": 2, "mlp": 4, "head": 2, "all-linear": 12},
    "distilbert": {"query": 2, "key": 2, "value": 2, "projection": 2, "mlp": 4, "head": 2, "all-linear": 12},
    "llama": {"query": 2, "key": 2, "value": 2, "projection": 2, "mlp": 6, "head": 1, "all-linear": 14},
    "mistral": {"query": 2, "key": 2, "value": 2, "projection": 2, "mlp": 6, "head": 1, "all-linear": 14},
    "qwen2": {"query": 2, "key": 2, "value": 2, "projection": 2, "mlp": 6, "head": 1, "all-linear": 14},
    "qwen3": {"query": 2, "key": 2, "value": 2, "projection": 2, "mlp": 6, "head": 1, "all-linear": 14},
    "t5": {"query": 6, "key": 6, "value": 6, "projection": 6, "mlp": 8, "head": 2, "all-linear": 32},
    "vit": {"query": 2, "key": 2, "value": 2, "projection": 2, "mlp": 4, "head": 1, "all-linear": 12},
    "gpt2": {"query": 2, "projection": 2, "mlp": 4, "head": 1, "all-linear": 8},
}


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {name: build().requires_grad_(False) for name, build in BUILD.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_presets_select_the_same_layers_in_every_architecture(models: dict[str, nn.Module], name: str) -> None:
    kinds = (nn.Linear, Conv1D)
    found = {preset: len(match_targets(models[name], [preset], kinds)) for preset in EXPECTED[name]}
    assert found == EXPECTED[name]


def test_a_suffix_matches_whole_parts_only(models: dict[str, nn.Module]) -> None:
    names = match_targets(models["bert"], ["output.dense"], (nn.Linear,))
    assert len(names) == 4  # attention.output.dense and output.dense
    with pytest.raises(UserError):
        match_targets(models["bert"], ["utput.dense"], (nn.Linear,))


def test_a_string_is_a_regular_expression_over_whole_names(models: dict[str, nn.Module]) -> None:
    assert match_targets(models["bert"], r".*layer\.1.*query", (nn.Linear,)) == [
        "bert.encoder.layer.1.attention.self.query"
    ]
    with pytest.raises(UserError, match="not a regular expression"):
        match_targets(models["bert"], "(", (nn.Linear,))


def test_a_target_without_a_match_lists_the_layers(models: dict[str, nn.Module]) -> None:
    with pytest.raises(UserError, match=r"'c_attn' matches no layer of BertFor.*attention.self.query \(2\)"):
        match_targets(models["bert"], ["c_attn"], (nn.Linear,))


def test_an_unsupported_layer_type_is_refused(models: dict[str, nn.Module]) -> None:
    with pytest.raises(
        UserError, match=r"matches transformer.h.0.attn.c_attn, a Conv1D, but this adapter acts on: Linear"
    ):
        match_targets(models["gpt2"], ["c_attn"], (nn.Linear,))


def test_embeddings_and_convolutions_are_matched_by_name_and_not_by_all_linear(models: dict[str, nn.Module]) -> None:
    kinds = tuple(ADAPTED)
    assert match_targets(models["vit"], ["patch_embeddings.projection"], kinds, LINEAR) == [
        "vit.embeddings.patch_embeddings.projection"
    ]
    assert match_targets(models["gpt2"], ["wte"], kinds, LINEAR) == ["transformer.wte"]
    assert len(match_targets(models["gpt2"], "all-linear", kinds, LINEAR)) == EXPECTED["gpt2"]["all-linear"]


def test_every_target_of_a_list_has_to_match_and_one_word_is_a_suffix(models: dict[str, nn.Module]) -> None:
    with pytest.raises(UserError, match="'valeu' matches no layer"):
        match_targets(models["bert"], ["query", "valeu"], (nn.Linear,))
    assert match_targets(models["bert"], "query", (nn.Linear,)) == match_targets(
        models["bert"], ["query"], (nn.Linear,)
    )
    both = match_targets(models["bert"], ["all-linear", "word_embeddings"], (nn.Linear, nn.Embedding), (nn.Linear,))
    assert len(both) == EXPECTED["bert"]["all-linear"] + 1


def test_a_target_without_a_match_counts_the_layers_by_their_names_within_a_block() -> None:
    blocks = [nn.ModuleDict({"query": nn.Linear(2, 2), "norm": nn.LayerNorm(2)}) for _ in range(2)]
    model = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "head": nn.Linear(2, 2)}).requires_grad_(False)
    with pytest.raises(UserError) as error:
        match_targets(model, ["value"], (nn.Linear,))
    assert str(error.value) == (
        "model.adapter.targets 'value' matches no layer of ModuleDict; it has: query (2), head."
    )
    with pytest.raises(UserError, match=r"matches no layer of LayerNorm; it has: none\.$"):
        match_targets(nn.LayerNorm(2), "all-linear", (nn.Linear,))
    with pytest.raises(UserError) as error:
        match_targets(model, "norm", (nn.Linear, nn.Embedding))
    assert str(error.value) == (
        "model.adapter.targets ['norm'] matches blocks.0.norm, a LayerNorm, but this adapter acts on: Linear, Embedding."
    )


def test_layers_may_be_left_out_of_the_selection_but_not_all_of_them() -> None:
    blocks = [nn.ModuleDict({"query": nn.Linear(2, 2), "key": nn.Linear(2, 2)}) for _ in range(2)]
    model = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "score": nn.Linear(2, 2)}).requires_grad_(False)

    def names(targets: list[str] | str, exclude: list[str] | str | None = None) -> list[str]:
        return match_targets(model, targets, (nn.Linear,), exclude=exclude)

    assert names("all-linear") == ["blocks.0.query", "blocks.0.key", "blocks.1.query", "blocks.1.key"]  # no head
    assert names("all-linear", "key") == ["blocks.0.query", "blocks.1.query"]
    assert names("all-linear", ["0.key", "1.query"]) == ["blocks.0.query", "blocks.1.key"]
    assert names("all-linear", r"blocks\.1\..*") == ["blocks.0.query", "blocks.0.key"]
    assert names(["query", "score"]) == ["blocks.0.query", "blocks.1.query", "score"]
    for exclude, sentence in (
        (["query", "val"], "model.adapter.exclude 'val' matches none of the selected layers."),
        (["query", "key"], "model.adapter.exclude leaves no layer of model.adapter.targets; exclude fewer layers."),
        ("(", "model.adapter.exclude '(' is not a regular expression: "),
    ):
        with pytest.raises(UserError) as error:
            names("all-linear", exclude)
        assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [([0], "a0"), ([0, 2], "a0 a2"), ("1-", "a1 a2"), ("0-1", "a0 a1"), ("2-2", "a2")],
)
def test_blocks_are_chosen_by_number(layers: list[int] | str, expected: str) -> None:
    names = {f"layer.{number}.a": f"a{number}" for number in range(3)} | {"head.a": "head"}
    assert " ".join(names[name] for name in in_blocks(list(names), layers)) == expected


@pytest.mark.parametrize(
    ("names", "layers", "sentence"),
    [
        (["l.0.a", "l.2.a"], [1], "model.adapter.layers [1]: the targets are in blocks 0 to 2."),
        (["l.0.a"], [], "model.adapter.layers []: the targets are in blocks 0 to 0."),
        (["a"], [0], "model.adapter.layers [0]: no target is in a numbered block."),
        (["l.0.a"], "0-1", "model.adapter.layers [0, 1]: the targets are in blocks 0 to 0."),
        (["l.3.a"], "4-", "model.adapter.layers []: the targets are in blocks 0 to 3."),
        (["l.3.a"], "-4", "model.adapter.layers must be a list of numbers or first-last, got '-4'."),
    ],
)
def test_blocks_that_do_not_exist_are_refused(names: list[str], layers: list[int] | str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        in_blocks(names, layers)
    assert str(error.value) == sentence

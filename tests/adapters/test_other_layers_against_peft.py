"""PEFT as an oracle for embeddings that scale their output (Gemma 3, BART) and nn.Conv1d (SqueezeBERT)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
)

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.layers import AdaptedConv1d, AdaptedEmbedding
from litpeft.adapters.peft_format import load_adapter, write_adapter
from litpeft.errors import UserError

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IDS = torch.randint(4, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def gemma() -> nn.Module:
    sizes = WIDTH | {"vocab_size": 50, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, tie_word_embeddings=False))


def bart() -> nn.Module:
    sizes = {"vocab_size": 50, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
    sizes |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
    return BartForConditionalGeneration(BartConfig(**sizes, decoder_start_token_id=3, scale_embedding=True))


def squeezebert() -> nn.Module:
    return SqueezeBertForSequenceClassification(SqueezeBertConfig(**WIDTH, vocab_size=50, embedding_size=32))


CASES: dict[str, tuple[Callable[[], nn.Module], list[str], list[str], type[nn.Module]]] = {
    "gemma": (gemma, ["embed_tokens", "q_proj"], [], AdaptedEmbedding),
    "bart": (bart, ["embed_tokens", "q_proj"], [], AdaptedEmbedding),
    "squeezebert": (squeezebert, ["query", "value"], ["classifier"], AdaptedConv1d),
}


@pytest.mark.parametrize("kind", [LoRA, DoRA])
@pytest.mark.parametrize("name", CASES)
def test_logits_and_merged_weights_equal_those_of_peft(name: str, kind: type[LoRA], tmp_path: Path) -> None:
    make, targets, head, layer = CASES[name]

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return make().eval()

    model, adapter = fresh(), kind(rank=4, targets=targets)
    before = model(IDS).logits
    adapter.apply(model, head=head)
    assert any(isinstance(module, layer) for module in model.modules())
    torch.testing.assert_close(model(IDS).logits, before, rtol=0, atol=1e-6)
    for parameter_name, parameter in trainable(model).items():
        if parameter_name.endswith(("lora_A", "lora_B")):
            nn.init.normal_(parameter, std=0.1)
    trained = model(IDS).logits
    assert (trained - before).abs().max() > 1e-5
    if name == "squeezebert" and kind is DoRA:  # its layers have four groups
        with pytest.raises(UserError, match="PEFT's DoRA computes the norm of the grouped convolution"):
            write_adapter(tmp_path, model, adapter, "base")
    else:
        write_adapter(tmp_path, model, adapter, "base")
        theirs = peft.PeftModel.from_pretrained(fresh(), str(tmp_path)).eval()
        torch.testing.assert_close(theirs(IDS).logits, trained, rtol=0, atol=1e-6)
        again = fresh()
        load_adapter(tmp_path, again, (other := kind(rank=4, targets=targets)).apply(again, head=head) and other)
        for parameter_name, parameter in trainable(again).items():
            torch.testing.assert_close(parameter, trainable(model)[parameter_name], rtol=0, atol=0)
    adapter.merge(model)
    plain = fresh()
    plain.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(model(IDS).logits, trained, rtol=0, atol=1e-6)
    if name != "bart":  # whose tied output keeps the unscaled embedding
        torch.testing.assert_close(plain(IDS).logits, trained, rtol=0, atol=1e-6)


def test_doras_norm_of_two_groups_is_refused_too(tmp_path: Path) -> None:
    groups = dict.fromkeys(("q_groups", "k_groups", "v_groups", "post_attention_groups"), 2)
    config = SqueezeBertConfig(**WIDTH, **groups, vocab_size=50, embedding_size=32)
    adapter = DoRA(rank=4, targets=["query"])
    model = adapter.apply(SqueezeBertForSequenceClassification(config))
    with pytest.raises(UserError, match="PEFT's DoRA computes the norm of the grouped convolution"):
        write_adapter(tmp_path, model, adapter, "base")


def test_the_projection_inside_torchs_attention_is_left_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.dense = nn.MultiheadAttention(16, 2), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dense(self.attention(x, x, x)[0])

    block = LoRA(rank=2, targets="all-linear").apply(Block())
    assert set(trainable(block)) == {"dense.lora_A", "dense.lora_B"}
    with pytest.raises(UserError, match="'out_proj' matches no layer of Block"):
        LoRA(rank=2, targets=["out_proj"]).apply(Block())

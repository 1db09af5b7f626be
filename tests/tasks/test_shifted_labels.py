"""Decoder inputs of encoder-decoder models: the model's own shift of the labels, also without a public method for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from litpeft.tasks.seq2seq_lm import _decoder_inputs

SIZES = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 50}
SIZES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32}
TOKENS = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "bos_token_id": 0}
MODELS = {
    "bart": lambda: BartForConditionalGeneration(BartConfig(**SIZES, **TOKENS)),
    "blenderbot": lambda: BlenderbotForConditionalGeneration(BlenderbotConfig(**SIZES, **TOKENS)),
    "m2m100": lambda: M2M100ForConditionalGeneration(M2M100Config(**SIZES, **TOKENS)),
    "mbart": lambda: MBartForConditionalGeneration(MBartConfig(**SIZES, **TOKENS)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, vocab_size=50, decoder_start_token_id=0)
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_equals_the_loss_of_the_models_own_forward(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    ids = torch.randint(3, 50, (2, 7))
    labels: Tensor = torch.randint(3, 50, (2, 5))
    labels[0, 3:] = -100
    expected = model(input_ids=ids, labels=labels.clone()).loss
    logits = model(input_ids=ids, decoder_input_ids=_decoder_inputs(model, labels.clone())).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)

"""Small random models of every architecture that the presets cover, with inputs and the names of their heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

IDS = torch.tensor([[2, 5, 6, 7, 3, 1], [2, 8, 9, 3, 11, 1]])
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 2])
TEXT = {"vocab_size": 50, "num_labels": 3, "pad_token_id": 0}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Small:
    """A function that builds a model, the names of its head, targets of each layer type, and its inputs."""

    make: Callable[[], nn.Module]
    head: list[str]
    targets: list[str]
    inputs: dict[str, Tensor]


def _t5() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    return T5ForSequenceClassification(T5Config(**TEXT, **sizes, eos_token_id=1, decoder_start_token_id=0))


def _gpt2() -> nn.Module:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 1}
    return GPT2ForSequenceClassification(GPT2Config(**TEXT, **sizes, **quiet))


MODELS = {
    "bert": Small(
        lambda: BertForSequenceClassification(BertConfig(**TEXT, **WIDE, **QUIET)),
        ["classifier"],
        ["query", "value", "dense", "word_embeddings"],
        {"input_ids": IDS},
    ),
    "roberta": Small(
        lambda: RobertaForSequenceClassification(RobertaConfig(**TEXT, **WIDE, **QUIET)),
        ["classifier"],
        ["query", "value", "mlp"],
        {"input_ids": IDS},
    ),
    "distilbert": Small(
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(**TEXT, dim=32, n_layers=2, n_heads=4, hidden_dim=64, dropout=0.0, attention_dropout=0.0)
        ),
        ["pre_classifier", "classifier"],
        ["query", "value"],
        {"input_ids": IDS},
    ),
    "gpt2": Small(_gpt2, ["score"], ["c_attn", "c_proj", "wte"], {"input_ids": IDS}),
    "llama": Small(
        lambda: LlamaForSequenceClassification(LlamaConfig(**TEXT, **WIDE, num_key_value_heads=2, attention_bias=True)),
        ["score"],
        ["q_proj", "v_proj", "down_proj"],
        {"input_ids": IDS},
    ),
    "t5": Small(_t5, ["classification_head"], ["q", "v", "wo"], {"input_ids": IDS}),
    "vit": Small(
        lambda: ViTForImageClassification(ViTConfig(**WIDE, **QUIET, image_size=8, patch_size=4, num_labels=3)),
        ["classifier"],
        ["q_proj", "v_proj", "patch_embeddings.projection"],
        {"pixel_values": PIXELS},
    ),
}


def small(name: str, seed: int = 0) -> nn.Module:
    """Return a model of this architecture; equal seeds give equal models."""
    torch.manual_seed(seed)
    return MODELS[name].make().eval()


def disturb(model: nn.Module, seed: int = 0) -> None:
    """Change every trainable tensor as training would: B is not zero, and magnitudes are not the norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))

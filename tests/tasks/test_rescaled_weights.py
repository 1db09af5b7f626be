"""RWKV halves weights layer by layer for inference, which would leave out an adapter's: it is switched off."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, RwkvConfig, RwkvForCausalLM

from litpeft.tasks.pretrained import load_pretrained


def test_weights_are_not_rescaled_for_inference(tmp_path: Path, tiny_llama: str) -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "vocab_size": 25,
        "context_length": 64,
        "attention_hidden_size": 32,
    }
    RwkvForCausalLM(RwkvConfig(**sizes, rescale_every=1)).save_pretrained(tmp_path)
    data = SimpleNamespace(max_length=16)
    model, *_ = load_pretrained(AutoModelForCausalLM, str(tmp_path), data, torch.float32)
    ids, before = torch.tensor([[1, 2, 3]]), {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.train()(ids)
        model.eval()(ids)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    other, *_ = load_pretrained(AutoModelForCausalLM, tiny_llama, data, torch.float32)
    assert not hasattr(other.config, "rescale_every")

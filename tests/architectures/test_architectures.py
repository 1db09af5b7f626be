"""Tiny random models of many architectures: fit, export to PEFT and merged export, for LoRA, DoRA and QLoRA in bf16.

`export` itself loads each folder with PEFT or transformers and compares logits, so exit code 0 proves the export. The sample
runs with the other tests; `make architectures` runs the whole matrix.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from litpeft.__main__ import main
from litpeft.runs.record import read_record
from tests.conftest import write_sentences

BASE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BASE |= {"vocab_size": 30, "pad_token_id": 0, "max_position_embeddings": 130}
TEXT = BASE | {"bos_token_id": 2, "eos_token_id": 3}
GROUPED = TEXT | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
GPT_J = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 30, "n_positions": 130}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 30}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 130}
BART |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 30, "pad_token_id": 0}
T5 |= {"decoder_start_token_id": 0, "eos_token_id": 3}
DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "vocab_size": 30,
    "max_position_embeddings": 130,
}
FUNNEL = {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "vocab_size": 30, "block_sizes": [1, 1]}

DECODERS: dict[str, dict[str, Any]] = {
    **{"qwen2": GROUPED, "qwen3": HEADS, "gemma2": HEADS, "phi3": GROUPED, "gpt_neox": TEXT, "falcon": TEXT},
    **{"opt": TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32}, "bloom": TEXT | {"n_layer": 2, "n_head": 4}},
    **{"codegen": GPT_J, "gptj": GPT_J, "mixtral": HEADS | {"num_local_experts": 4}, "stablelm": GROUPED},
    **{"olmo2": HEADS, "granite": HEADS, "cohere": HEADS},
}
ENCODERS: dict[str, dict[str, Any]] = {
    **{"deberta": BASE, "deberta-v2": BASE, "modernbert": TEXT | {"cls_token_id": 2, "sep_token_id": 3}, "mpnet": TEXT},
    **{"albert": BASE | {"embedding_size": 16}, "electra": BASE | {"embedding_size": 32}, "xlm-roberta": TEXT},
    **{"camembert": TEXT, "distilbert": DISTILBERT, "funnel": FUNNEL},
    "big_bird": TEXT | {"attention_type": "original_full"},
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {"bart": BART, "t5": T5}
ARCHITECTURES = DECODERS | ENCODERS | ENCODER_DECODERS
SAMPLE = ("phi3", "falcon", "modernbert", "xlm-roberta", "bart")
ADAPTERS = {
    "lora": ["LoRA", "--model.adapter.targets", "[query,value]"],
    "dora": ["DoRA", "--model.adapter.targets", "all-linear"],
    "qlora": ["QLoRA", "--model.adapter.targets", "all-linear"],
}
SPECIAL = {  # further options: names that no preset has, layers that the model does not use
    ("funnel", "lora"): ["--model.adapter.targets", "[q_head,v_head]"],
    ("big_bird", "dora"): ["--model.adapter.exclude", "[pooler]"],
    ("big_bird", "qlora"): ["--model.adapter.exclude", "[pooler]"],
}
WHOLE = pytest.mark.skipif("LITPEFT_ARCHITECTURES" not in os.environ, reason="make architectures runs the whole matrix")


def write_model(kind: str, folder: Path, tokenizer: str) -> None:
    """Write a tiny random model without a head, and a tokenizer."""
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    auto = AutoModelForSequenceClassification if kind in ENCODERS else AutoModelForCausalLM
    auto = AutoModelForSeq2SeqLM if kind in ENCODER_DECODERS else auto
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **ARCHITECTURES[kind]))
    head = ("classifier", "pooler", "head", "score") if kind in ENCODERS else ()
    state = {name: tensor for name, tensor in model.state_dict().items() if not head or not name.startswith(head)}
    model.save_pretrained(folder, state_dict=state)


def data_options(kind: str, folder: Path) -> list[str]:
    """Return the task and data options for an architecture, with files written to the folder."""
    if kind in ENCODERS:
        train, val = write_sentences(folder / "train.tsv", 32), write_sentences(folder / "val.tsv", 16, seed=1)
        return [
            "--model",
            "SequenceClassification",
            "--data",
            "SST2",
            "--data.train_file",
            train,
            "--data.val_file",
            val,
        ]
    rows = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("good", "bad", "fine", "dull") * 4]
    (folder / "rows.json").write_text(json.dumps(rows))
    task = "Seq2SeqLM" if kind in ENCODER_DECODERS else "CausalLM"
    files = ["--data.train_file", str(folder / "rows.json"), "--data.val_file", str(folder / "rows.json")]
    return ["--model", task, "--data", "Alpaca", *files]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    "kind", [name if name in SAMPLE else pytest.param(name, marks=WHOLE) for name in ARCHITECTURES]
)
def test_an_architecture_trains_and_its_exports_are_proved(
    kind: str, adapter: str, tmp_path: Path, tiny_model: str, tiny_llama: str
) -> None:
    write_model(kind, tmp_path / "model", tiny_model if kind in ENCODERS else tiny_llama)
    task, name, *data = data_options(kind, tmp_path)
    arguments = [
        *("fit", task, name, "--model.model_name", str(tmp_path / "model"), *data, "--data.max_length", "64"),
        *("--model.adapter", *ADAPTERS[adapter], *SPECIAL.get((kind, adapter), [])),
        *("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2", "--data.batch_size", "4"),
        *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]
    assert main([*arguments, "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    assert (record["status"], record["steps"], record["precision"]) == ("ok", 2, "bf16")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--format", "adapter"]) == 0
    fp32 = ["--dtype", "fp32"] if kind == "deberta" else []  # transformers cannot run DeBERTa v1 in bf16
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "merged"), "--format", "merged", *fp32]) == 0

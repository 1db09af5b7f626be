"""Weights that an adapter leaves out (experts that are no targets, a vision part) are counted, recorded and printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
)

from litpeft.__main__ import main
from litpeft.runs.record import read_record


def arguments(folder: Path) -> list[str]:
    rows = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("good", "bad") * 4]
    (folder / "rows.json").write_text(json.dumps(rows))
    return [
        *("fit", "--model", "CausalLM", "--model.model_name", str(folder / "model"), "--data", "Alpaca"),
        *("--data.train_file", str(folder / "rows.json"), "--data.val_file", str(folder / "rows.json")),
        *("--data.batch_size", "4", "--data.max_length", "64", "--trainer.max_steps", "1", "--trainer.accelerator"),
        *("cpu", "--trainer.enable_progress_bar", "false", "--run_dir", str(folder / "run")),
    ]


@pytest.mark.parametrize("adapter", ["LoRA", "QLoRA"])
def test_experts_outside_of_the_adapter_are_said_and_recorded(
    adapter: str, tiny_llama: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = MixtralConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, num_local_experts=4, pad_token_id=0, eos_token_id=3, **sizes
    )
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    assert main([*arguments(tmp_path), "--model.adapter", adapter]) == 0
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    record = read_record(tmp_path / "run")
    summary, said = record["adapter_summary"], capsys.readouterr().err
    name = "model.layers.0.mlp.experts.gate_up_proj"
    if adapter == "LoRA":
        found = {"params": experts, "bytes": 2 * experts, "dtype": "bfloat16", "example": name}
        assert summary["not_adapted"]["experts"] == found
        share = f"{experts / record['total_params']:.0%}"
        assert f"litpeft: experts ({name}, ...): {share} of the parameters; not adapted, in bfloat16; to adapt" in said
    else:
        assert "experts" not in summary["not_adapted"]
        assert "litpeft: experts" not in said
        assert summary["quantised"]["params"] > experts
        stored = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n or n.endswith("_proj.weight"))
        assert summary["quantised"]["params"] == stored


def test_a_vision_part_is_said_and_recorded(tiny_llama: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = sizes | {"vocab_size": len(tokenizer), "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = Gemma3Config(text_config=text, vision_config=sizes | {"image_size": 28, "patch_size": 14})
    model = Gemma3ForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "model")
    assert main([*arguments(tmp_path), "--model.adapter", "LoRA", "--model.adapter.targets", "all-linear"]) == 0
    vision = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" in n or "projector" in n)
    record = read_record(tmp_path / "run")
    found = record["adapter_summary"]["not_adapted"]["outside the text part"]
    assert (found["params"], found["dtype"]) == (vision, "bfloat16")
    assert record["adapter_summary"]["adapted_layers"]["q_proj"] == 2
    assert f"{vision / record['total_params']:.0%} of the parameters; not adapted" in capsys.readouterr().err

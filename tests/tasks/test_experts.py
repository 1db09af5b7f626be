"""Mixtures of experts: the expert weights, which no adapter reaches yet, are counted, recorded and printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from litpeft.__main__ import main
from litpeft.runs.record import read_record


@pytest.mark.parametrize("adapter", ["LoRA", "QLoRA"])
def test_expert_weights_outside_of_the_adapter_are_said_and_recorded(
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
    rows = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("good", "bad") * 4]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = [
        *("fit", "--model", "CausalLM", "--model.model_name", str(tmp_path / "model"), "--data", "Alpaca"),
        *("--data.train_file", str(tmp_path / "rows.json"), "--data.val_file", str(tmp_path / "rows.json")),
        *("--data.batch_size", "4", "--data.max_length", "64", "--model.adapter", adapter, "--trainer.max_steps", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "run")),
    ]
    assert main(arguments) == 0
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    record = read_record(tmp_path / "run")
    summary = record["adapter_summary"]["not_adapted"]
    assert (summary["params"], summary["bytes"], summary["dtype"]) == (experts, 2 * experts, "bfloat16")
    share = f"{experts / record['total_params']:.0%}"
    message = f"litpeft: warning: experts hold {share} of the parameters (model.layers.0.mlp.experts.gate_up_proj, ...)"
    assert message in capsys.readouterr().err

"""What a merged model keeps: the digits of fp32, where an answer ends, and two weights that were one before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from litpeft.__main__ import main
from litpeft.commands.export_check import _random_ids

FAST = ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2", "--trainer.max_steps", "4"]


def test_an_fp32_export_of_a_bf16_run_is_not_rounded_to_bf16(tmp_path: Path, fit_arguments: list[str]) -> None:
    run = tmp_path / "run"
    bf16 = ["bf16" if word == "fp32" else word for word in fit_arguments]
    assert main([*bf16, "--model.adapter", "LoRA", *FAST, "--run_dir", str(run)]) == 0
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "merged", "--dtype", "fp32"]) == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    merged = [tensor for name, tensor in tensors.items() if name.endswith("query.weight")]
    assert merged
    for weight in merged:
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, weight.bfloat16().float())


def test_a_merged_model_with_other_logits_is_refused(
    tmp_path: Path, fit_arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def damage(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(-1.0)

    run = tmp_path / "run"
    assert main([*fit_arguments, "--model.adapter", "LoRA", *FAST, "--run_dir", str(run)]) == 0
    monkeypatch.setattr("litpeft.adapters.base.merge_new_tokens", damage)
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "merged"]) == 2
    assert "the logits of the merged model differ by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def chat(tmp_path: Path, byte_llama: str) -> list[str]:
    """Return the arguments of a fit on conversations, whose answers end with the end of the text."""
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"say {i}", "response": f"{i}"}) for i in range(12)))
    return [
        *("fit", "--model", "CausalLM", "--model.model_name", byte_llama, "--model.dtype", "fp32", "--data"),
        *("Conversations", "--data.train_file", str(file), "--data.val_samples", "4", "--data.batch_size", "2"),
        *("--data.max_length", "128", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
        *(*FAST, "--run_dir", str(tmp_path / "run")),
    ]


def test_a_changed_head_is_no_longer_tied_to_the_embeddings(tmp_path: Path, chat: list[str], byte_llama: str) -> None:
    targets = ["--model.adapter", "LoRA", "--model.adapter.targets", "[q_proj,lm_head]"]
    assert main([*chat, *targets]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "merged"]) == 0
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (byte_llama, tmp_path / "out"))
    assert before.config.tie_word_embeddings
    # transformers also compares the two tensors; llama.cpp and vLLM leave out the head of a tied model
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert torch.equal(after.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert not torch.equal(after.get_output_embeddings().weight, before.get_output_embeddings().weight)


def test_an_exported_model_ends_its_answers_as_in_training(tmp_path: Path, chat: list[str], byte_llama: str) -> None:
    """The model's own end is a letter, as in many base models whose tokenizer was changed for chats."""
    base = shutil.copytree(byte_llama, tmp_path / "base")
    settings = base / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": 7}))
    chat[chat.index(byte_llama)] = str(base)
    assert main([*chat, "--model.adapter", "LoRA"]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "merged"]) == 0
    assert AutoModelForCausalLM.from_pretrained(base).generation_config.eos_token_id == 7
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == 0


@pytest.mark.parametrize(("pad", "end"), [(0, 2), (3, 3), (None, 1), (2, [4, 5]), (None, None)])
def test_the_texts_of_a_check_differ_and_end_where_a_text_ends(pad: int | None, end: Any) -> None:
    config = LlamaConfig(vocab_size=9, pad_token_id=pad, eos_token_id=end)
    ids = _random_ids(config)
    assert ids.shape == (4, 16)
    inside = ids[:, :-1] if isinstance(end, int) else ids
    special = {token for token in (pad, end) if isinstance(token, int)}
    assert set(inside.flatten().tolist()) == set(range(9)) - special
    assert len({tuple(row) for row in ids.tolist()}) == 4
    if isinstance(end, int):
        assert ids[:, -1].tolist() == [end] * 4


def test_an_export_without_a_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    sentence = "litpeft export: the following arguments are required: --format; see litpeft export --help."
    assert sentence in capsys.readouterr().err

"""Tasks and their backbone: gradient checkpointing, and four-bit weights from the file to the run record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from litpeft.__main__ import main
from litpeft.adapters.layers import adapted_layers
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from litpeft.tasks import FineTuner

ADAPTERS = {
    "none": ["Full"],
    "lora": ["LoRA", "--model.adapter.dropout", "0.2"],
    "dora": ["DoRA"],
    "qdora-nf4": ["QDoRA", "--model.adapter.targets", "all-linear"],
}


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_checkpoint(folder) / "trainable.safetensors")


@pytest.mark.parametrize("kind", ["non_reentrant", "reentrant"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_gradient_checkpointing_trains_to_the_same_weights(
    name: str, kind: str, fit_arguments: list[str], tmp_path: Path
) -> None:
    same = [*fit_arguments, "--model.adapter", *ADAPTERS[name], "--trainer.max_steps", "4"]
    assert main([*same, "--run_dir", str(tmp_path / "plain")]) == 0
    assert main([*same, "--model.gradient_checkpointing", kind, "--run_dir", str(tmp_path / "less")]) == 0
    plain, less = trained(tmp_path / "plain"), trained(tmp_path / "less")
    assert plain.keys() == less.keys()
    for key, tensor in plain.items():
        torch.testing.assert_close(less[key], tensor, rtol=1e-5, atol=1e-6)
    assert all(tensor.abs().max() > 0 for key, tensor in less.items() if key.endswith("lora_B"))


def test_added_tensors_without_gradients_stop_the_run(
    fit_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the embeddings' output has no gradient, reentrant checkpointing trains only the head."""
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "enable_input_require_grads", lambda self: None)
    options = [
        "--model.adapter",
        "LoRA",
        "--model.gradient_checkpointing",
        "reentrant",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert main([*fit_arguments, *options]) == 2
    message = capsys.readouterr().err
    assert "8 tensors of the adapter got no gradient (bert.encoder.layer.0." in message
    assert "model.gradient_checkpointing reentrant may be the cause: try the other kind" in message
    assert read_record(tmp_path / "r")["status"] == "failed"


@pytest.mark.parametrize("adapter", ["QLoRA", "QDoRA"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_quantised_run_records_the_stored_bytes(
    adapter: str, quant_type: str, fit_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[FineTuner] = []
    monkeypatch.setattr(FineTuner, "build", _keeping(built, FineTuner.build))
    options = ["--model.adapter", adapter, "--model.adapter.quant_type", quant_type, "--model.dtype", "bf16"]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path)]) == 0
    record = read_record(tmp_path)
    assert record["adapter"] == f"{adapter.lower()}-{quant_type}"
    summary = record["adapter_summary"]
    numbers = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32  # two blocks, and the pooler
    blocks = [32 * 32 // 64] * 9 + [32 * 64 // 64] * 4
    held = numbers // 2 + sum(count + 4 + 4 for count in blocks)  # codes; 8-bit constants, their constant, the offset
    assert summary["quantised"] == {"layers": 13, "params": numbers, "bytes": held}
    model = built[0].backbone
    rest = sum(p.nbytes for p in model.parameters())
    indices = sum(b.nbytes for n, b in model.named_buffers() if n.endswith(("_ids", "squares")))
    assert record["model_bytes"] == held + rest + indices
    assert record["total_params"] == numbers + sum(p.numel() for p in model.parameters())
    assert type(model.classifier) is torch.nn.Linear


def test_the_default_folder_is_named_by_the_quantisation(
    fit_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model.adapter", "QLoRA", "--model.adapter.quant_type", "fp4", "--trainer.max_steps", "1"]
    assert main([*fit_arguments, *options]) == 0
    (record,) = tmp_path.rglob("record.json")
    assert record.parent.parent.name.startswith("qlora-fp4,model_name=")


def test_a_newly_initialised_weight_is_trained_and_not_quantised(
    tiny_model: str, fit_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from safetensors.torch import save_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    state = {k: v for k, v in load_file(folder / "model.safetensors").items() if "pooler" not in k}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    built: list[FineTuner] = []
    monkeypatch.setattr(FineTuner, "build", _keeping(built, FineTuner.build))
    options = ["--model.adapter", "QLoRA", "--model.model_name", str(folder), "--model.dtype", "bf16"]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path / "run")]) == 0
    pooler = built[0].backbone.bert.pooler.dense
    assert type(pooler) is torch.nn.Linear
    assert pooler.weight.requires_grad
    assert read_record(tmp_path / "run")["adapter_summary"]["quantised"]["layers"] == 12


def test_a_mismatched_shape_is_refused_when_quantising(
    tiny_model: str, fit_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    options = ["--model.adapter", "QLoRA", "--model.model_name", str(folder)]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert (
        "cannot be loaded: bert.encoder.layer.0.intermediate.dense.weight has the shape (64, 32) in the file" in message
    )
    assert len(message.splitlines()) == 1


def test_frozen_four_bit_layers_compute_the_same_in_training_and_evaluation(tiny_model: str) -> None:
    """The layer of bitsandbytes repacks its weights for evaluation on some CPUs, and then computes other outputs."""
    from transformers import AutoModelForSequenceClassification

    from litpeft.adapters import QLoRA

    adapter = QLoRA(targets=["query"])
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, dtype=torch.bfloat16, **adapter.loading(torch.device("cpu"))
    )
    adapter.apply(model, head=["classifier"])
    assert sum(isinstance(m, Linear4bit) for m in model.modules()) == 13
    assert len(adapted_layers(model)) == 2
    ids = torch.randint(5, 25, (2, 6))
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.inference_mode():
        assert torch.equal(model.eval()(ids).logits, model.train()(ids).logits)


def _keeping(built: list[FineTuner], build):
    def wrapped(task: FineTuner, *arguments: object) -> None:
        build(task, *arguments)
        built.append(task)

    return wrapped

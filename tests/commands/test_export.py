"""`litpeft export`: PEFT and transformers load the exported model, and it gives the same outputs as the run."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from litpeft.__main__ import main
from litpeft.callbacks import FolderCheckpointIO
from litpeft.runs.record import read_record
from tests.conftest import SHARED

STRATEGIES = {
    "none": ["Full"],
    "lora": ["LoRA", "--model.adapter.targets", "all-linear", "--model.adapter.bias", "lora_only"],
    "dora": ["DoRA", "--model.adapter.targets", "[query,mlp,word_embeddings]"],
    "qlora-nf4": ["QLoRA", "--model.adapter.double_quant", "false"],
    "qdora-nf4": ["QDoRA"],
}


@pytest.fixture(scope="module")
def runs(fit_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a short run of each strategy, in fp32 to avoid rounding differences."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in STRATEGIES.items():
        fast = ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
        assert main([*fit_arguments, "--model.adapter", *options, *fast, "--run_dir", str(folder / name)]) == 0
    return {name: folder / name for name in STRATEGIES}


def ids() -> torch.Tensor:
    return torch.randint(5, 25, (4, 9), generator=torch.Generator().manual_seed(3))


def printed_difference(capsys: pytest.CaptureFixture) -> float:
    return float(capsys.readouterr().out.split("trained model's by at most ")[1].split(";")[0])


@pytest.mark.parametrize("name", ["lora", "dora", "qlora-nf4", "qdora-nf4"])
def test_peft_loads_the_adapter_and_gives_the_logits_of_the_merged_model(
    runs: dict[str, Path], name: str, tmp_path: Path, tiny_model: str
) -> None:
    assert main(["export", str(runs[name]), str(tmp_path / "adapter"), "--format", "adapter"]) == 0
    base = [] if not name.startswith("q") else ["--base", "original"]  # PEFT applies the adapter to the original base
    assert main(["export", str(runs[name]), str(tmp_path / "merged"), "--format", "merged", *base]) == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path(tiny_model).resolve())
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(loaded(ids()).logits, merged(ids()).logits, rtol=1e-5, atol=1e-5)
    assert merged.config.id2label == dict(enumerate(read_record(runs[name])["data_summary"]["label_names"]))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_merged_model_gives_the_outputs_of_the_run(
    runs: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", str(runs[name]), str(tmp_path / "out"), "--format", "merged"]) == 0
    assert printed_difference(capsys) < 1e-4
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    AutoTokenizer.from_pretrained(tmp_path / "out")


def test_merging_into_the_original_base_prints_a_larger_difference(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", str(runs["qlora-nf4"]), str(tmp_path / "a"), "--format", "merged"]) == 0
    dequantised = printed_difference(capsys)
    arguments = ["export", str(runs["qlora-nf4"]), str(tmp_path / "b"), "--format", "merged", "--base", "original"]
    assert main(arguments) == 0
    assert printed_difference(capsys) > 100 * dequantised


def test_a_run_can_start_from_an_exported_one(runs: dict[str, Path], fit_arguments: list[str], tmp_path: Path) -> None:
    assert main(["export", str(runs["lora"]), str(tmp_path / "adapter"), "--format", "adapter"]) == 0
    start = ["--model.adapter", *STRATEGIES["lora"], "--model.adapter.init_from", str(tmp_path / "adapter")]
    frozen = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0", "--run_dir", str(tmp_path / "run")]
    assert main([*fit_arguments, *start, *frozen]) == 0
    before, after = (
        FolderCheckpointIO().load_checkpoint(folder / read_record(folder)["checkpoint"])["state_dict"]
        for folder in (runs["lora"], tmp_path / "run")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    shutil.rmtree(tmp_path / "adapter")  # the run now loads its start from its own checkpoint
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "again"), "--format", "adapter"]) == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none", ["--format", "adapter"], "PEFT has no adapter of type full; give --format merged"),
        ("lora", ["--format", "merged", "--base", "original"], "--base applies to runs that quantise the base"),
        ("lora", ["--format", "adapter", "--dtype", "fp32"], "leave them out with --format adapter"),
    ],
)
def test_impossible_exports_are_refused(
    runs: dict[str, Path], name: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", str(runs[name]), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused_and_an_earlier_export_replaced_on_request(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["export", str(runs["lora"]), str(tmp_path / "out"), "--format", "adapter"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("user text")
    (tmp_path / "out" / "config.json").write_text("{}")  # a config.json alone does not prove an earlier export
    assert main(arguments) == 2
    assert "exists already; give --overwrite or another folder" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 2
    assert "holds no earlier export" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "user text"
    (tmp_path / "out" / "mine.txt").unlink()
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out").rmdir()
    assert main(arguments) == 0
    assert main([*arguments, "--overwrite"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_full_disk_does_not_change_the_earlier_export(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["export", str(runs["lora"]), str(tmp_path / "out"), "--format", "adapter"]
    assert main(arguments) == 0
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "adapter_model.safetensors")

    monkeypatch.setattr("litpeft.adapters.peft_format.save_file", full)
    assert main([*arguments, "--overwrite"]) == 2
    assert "adapter_model.safetensors: No space left on device" in capsys.readouterr().err
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.slow
def test_an_exported_adapter_has_the_recorded_accuracy_in_peft(tmp_path: Path, shared: Path) -> None:
    """Use a real model and real text: MiniLM on the dev sentences of SST-2."""
    from tests.real_models import minilm

    model_dir = minilm()
    files = SHARED / "data" / "sst2_sentences"
    dev = tmp_path / "dev.tsv"
    dev.write_text("\n".join((files / "dev.tsv").read_text().splitlines()[:301]) + "\n")
    arguments = ["fit", "--config", "minilm_sst2", "--config", "dora", "--model.model_name", str(model_dir)]
    arguments += ["--model.dtype", "fp32", "--data.train_file", str(files / "train.tsv"), "--trainer.max_steps", "20"]
    arguments += ["--data.val_file", str(dev), "--trainer.enable_progress_bar", "false"]
    assert main([*arguments, "--run_dir", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--format", "adapter"]) == 0
    base = AutoModelForSequenceClassification.from_pretrained(model_dir)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = [line.split("\t") for line in dev.read_text().splitlines()[1:]]
    right = 0
    for start in range(0, len(rows), 64):
        texts, labels = zip(*rows[start : start + 64], strict=True)
        encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            predicted = model(**encoded).logits.argmax(-1)
        right += int((predicted == torch.tensor([int(label) for label in labels])).sum())
    record = read_record(tmp_path / "run")
    assert abs(right / len(rows) - record["val_accuracy"]) < 1.5 / len(rows)

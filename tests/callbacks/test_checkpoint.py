"""Checkpoints hold what is trained, and a run that was stopped ends as one that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from litpeft.__main__ import main
from litpeft.callbacks.checkpoint_io import LOOP, TENSORS
from litpeft.runs.folder import checkpoints, newest_checkpoint
from litpeft.runs.record import read_record
from tests.conftest import litpeft, write_sentences
from tests.resuming import differences, run
from tests.torture import CASES, Torture

FULL = ["--model.adapter", "Full"]
LORA = ["--model.adapter", "LoRA", "--model.adapter.rank", "4", "--model.adapter.dropout", "0.2"]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_checkpoint(run_dir) / TENSORS)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Torture:
    return Torture(tmp_path_factory.mktemp("torture") / "work", seed=0)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_twice_ends_bit_identical_to_one_that_was_never_stopped(work: Torture, case: str) -> None:
    """Weights, optimizer, schedule, random state, record and curves; `make torture` kills at random points."""
    work.leave_alone(case, times=1)
    (calls, _), run_dir = work.whole[case], work.place(case, "killed")
    log, cache = work.folder / "log", work.folder / "cache"
    assert run(work.words(case, run_dir), log, int(0.55 * calls), cache) == -9, log.read_text()
    assert read_record(run_dir)["status"] == "interrupted"
    assert newest_checkpoint(run_dir) is not None
    again = work.words(case, run_dir, "--resume")
    assert run(again, log, int(0.3 * calls), cache) == -9, log.read_text()
    assert run(again, log, cache=cache) == 0, log.read_text()
    assert differences(work.place(case, "whole"), run_dir) == []


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
    assert "model.adapter.rank is 2, but the checkpoint was trained with 4; give the value of the checkpoint." in error
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_offered(work: Torture, capsys) -> None:
    case = next(iter(CASES))
    run_dir, log, cache = work.place(case, "damaged"), work.folder / "log", work.folder / "cache"
    words = work.words(case, run_dir)
    assert run([*words, "--trainer.callbacks", "tests.faults.Signal", "--trainer.callbacks.number", "9",
                "--trainer.callbacks.batch", "8"], log, cache=cache) == -9  # fmt: skip
    assert [path.name for path in checkpoints(run_dir)] == ["step-000003", "step-000006"]
    newest = newest_checkpoint(run_dir)
    (newest / LOOP).write_bytes((newest / LOOP).read_bytes()[:-100])
    assert main([*words, "--resume"]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"litpeft: error: the checkpoint {newest} cannot be used: {LOOP} is damaged: its checksum differs from SHA256SUMS; "
        "remove that folder to use step-000003, the checkpoint before it.\n"
    )
    shutil.rmtree(newest)
    assert run([*words, "--resume"], log, cache=cache) == 0, log.read_text()
    work.leave_alone(case, times=1)
    assert differences(work.place(case, "whole"), run_dir) == []


def test_what_is_no_checkpoint_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    file = newest_checkpoint(run_dir) / TENSORS
    file.unlink()
    assert main(["validate", "--run_dir", str(run_dir)]) == 2
    assert f"it lacks {TENSORS}; there is no earlier checkpoint" in capsys.readouterr().err
    for foreign in (tmp_path, file.parent / LOOP):
        assert main(["validate", "--run_dir", str(run_dir), "--ckpt_path", str(foreign)]) == 2
        assert f"it lacks SHA256SUMS; a litpeft checkpoint is a folder with {TENSORS}" in capsys.readouterr().err


def test_other_base_weights_and_other_adapters_are_refused(tmp_path: Path, words: list[str], tiny_model: str, capsys):
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    run_dir, options = ["--run_dir", str(tmp_path / "run")], ["--model.model_name", str(base)]
    assert main([*words, *LORA, *options, *run_dir, "--trainer.max_steps", "5"]) == 0
    longer = ["fit", *run_dir, "--resume", "--trainer.max_steps", "9"]
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["bert.encoder.layer.1.output.dense.weight"][3, 5] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    capsys.readouterr()
    assert main(longer) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"model.model_name {base}: these are not the base weights that the checkpoint was trained on" in error
    assert main(["validate", *run_dir]) == 2
    shutil.copytree(tiny_model, base, dirs_exist_ok=True)
    assert main(["validate", *run_dir, "--model.adapter.alpha", "99"]) == 2
    assert "model.adapter.alpha is 99.0, but the checkpoint was trained with 8" in capsys.readouterr().err
    assert main(longer) == 0


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

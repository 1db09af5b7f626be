"""Checkpoints hold the trainable tensors, and a resumed run ends like an uninterrupted one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file

from litpeft.__main__ import main
from litpeft.callbacks import checkpoint as callback
from litpeft.callbacks.checkpoint_io import LOOP, TENSORS
from litpeft.runs.folder import checkpoints, newest_checkpoint, step_of
from litpeft.runs.record import read_record
from tests.conftest import write_sentences
from tests.forking import litpeft
from tests.resuming import differences, run
from tests.sampling import quick
from tests.torture import CASES, Torture
from tests.watching import check_extension

FULL = ["--model.adapter", "Full"]
LORA = ["--model.adapter", "LoRA", "--model.adapter.rank", "4", "--model.adapter.dropout", "0.2"]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_checkpoint(run_dir) / TENSORS)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Torture:
    return Torture(tmp_path_factory.mktemp("torture") / "work", seed=0)


# whose adapter, optimizer, schedule and batches the other cases and tests/test_faults.py have in other combinations
ALSO = (
    *("qlora-fp4, plateau", "qdora-nf4, end of epochs", "max_steps, keep best", "stream, two workers"),
    "frozen, Lion8bit",
)


@pytest.mark.parametrize("case", quick(list(CASES), CASES.keys() - set(ALSO)))
def test_a_run_killed_twice_resumes_bit_identically(work: Torture, case: str) -> None:
    """Compare weights, optimizer, schedule, random state, record and curves; `make torture` kills at random points."""
    work.run_reference(case, times=1)
    (calls, _), run_dir = work.references[case], work.folder_of(case, "killed")
    log, cache = work.folder / "log", work.folder / "cache"
    assert run(work.arguments(case, run_dir), log, int(0.55 * calls), cache) == -9, log.read_text()
    assert read_record(run_dir)["status"] == "interrupted"
    assert newest_checkpoint(run_dir) is not None
    again = work.arguments(case, run_dir, "--resume")
    assert run(again, log, int(0.3 * calls), cache) == -9, log.read_text()
    assert run(again, log, cache=cache) == 0, log.read_text()
    assert differences(work.folder_of(case, "reference"), run_dir) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, fit_arguments: list[str]) -> Path:
    """Return a finished LoRA run; tests copy it before they change it."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main([*fit_arguments, *LORA, "--run_dir", str(run_dir)]) == 0
    return run_dir


def test_a_checkpoint_holds_only_the_trainable_tensors(finished: Path) -> None:
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


def test_testing_another_checkpoint_does_not_change_the_record(finished: Path, tmp_path: Path, sentences) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    before = read_record(run_dir)
    other = str(finished / before["checkpoint"])
    assert main(["test", "--run_dir", str(run_dir), "--ckpt_path", other, "--data.test_file", sentences["val"]]) == 0
    assert read_record(run_dir) == before


def test_a_file_can_be_tested_after_it_was_predicted(finished: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    rows = ["--run_dir", str(run_dir), "--data.test_file", write_sentences(tmp_path / "new.tsv", 12, seed=5)]
    assert main(["predict", *rows]) == 0
    assert main(["test", *rows]) == 0
    assert len((run_dir / "predictions.jsonl").read_text().splitlines()) == 12


def test_user_folders_among_the_checkpoints_are_kept(tmp_path: Path, fit_arguments: list[str]) -> None:
    run_dir = ["--run_dir", str(tmp_path / "run")]
    assert main([*fit_arguments, *LORA, *run_dir]) == 0
    first = newest_checkpoint(tmp_path / "run")
    for name in ("my-good-one", "step-000012.bak"):
        shutil.copytree(first, first.with_name(name))
    assert main([*fit_arguments, *LORA, *run_dir, "--resume", "--trainer.max_epochs", "2"]) == 0
    assert {path.name for path in first.parent.iterdir()} == {"my-good-one", "step-000012.bak", "step-000024"}


def test_a_checkpoint_of_another_rank_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    arguments = ["validate", "--run_dir", str(run_dir), "--model.adapter.rank", "2"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "model.adapter.rank is 2, but the checkpoint was trained with 4; give the value of the checkpoint." in error
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_is_refused_and_the_previous_one_named(work: Torture, capsys) -> None:
    case = next(iter(CASES))
    run_dir, log, cache = work.folder_of(case, "damaged"), work.folder / "log", work.folder / "cache"
    arguments = work.arguments(case, run_dir)
    assert run([*arguments, "--trainer.callbacks", "tests.faults.Signal", "--trainer.callbacks.number", "9",
                "--trainer.callbacks.batch", "8"], log, cache=cache) == -9  # fmt: skip
    assert [path.name for path in checkpoints(run_dir)] == ["step-000003", "step-000006"]
    newest = newest_checkpoint(run_dir)
    (newest / LOOP).write_bytes((newest / LOOP).read_bytes()[:-100])
    assert main([*arguments, "--resume"]) == 2
    error = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert error == (
        f"litpeft: error: the checkpoint {newest} cannot be used: {LOOP} is damaged: its checksum differs from SHA256SUMS; "
        "remove that folder to use step-000003, the checkpoint before it.\n"
    )
    shutil.rmtree(newest)
    assert run([*arguments, "--resume"], log, cache=cache) == 0, log.read_text()
    work.run_reference(case, times=1)
    assert differences(work.folder_of(case, "reference"), run_dir) == []


def test_a_path_that_is_not_a_checkpoint_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    file = newest_checkpoint(run_dir) / TENSORS
    file.unlink()
    assert main(["validate", "--run_dir", str(run_dir)]) == 2
    assert f"it lacks {TENSORS}; there is no earlier checkpoint" in capsys.readouterr().err
    for foreign in (tmp_path, file.parent / LOOP):
        assert main(["validate", "--run_dir", str(run_dir), "--ckpt_path", str(foreign)]) == 2
        assert f"it lacks SHA256SUMS; a litpeft checkpoint is a folder with {TENSORS}" in capsys.readouterr().err


def test_changed_base_weights_and_adapter_options_are_refused(
    tmp_path: Path, fit_arguments: list[str], tiny_model: str, capsys
):
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    run_dir, options = ["--run_dir", str(tmp_path / "run")], ["--model.model_name", str(base)]
    assert main([*fit_arguments, *LORA, *options, *run_dir, "--trainer.max_steps", "5"]) == 0
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


def test_the_best_weights_are_kept_on_request_and_recorded(tmp_path: Path, fit_arguments: list[str]) -> None:
    arguments = [*fit_arguments, *FULL, "--checkpoint.keep", "best", "--trainer.max_epochs", "5", "--model.optimizer"]
    # four epochs learn; then a learning rate of 3 ruins the weights
    arguments += ["torch.optim.AdamW", "--model.optimizer.lr", "0.003", "--model.scheduler", "spoil.Spoil"]
    (tmp_path / "spoil.py").write_text(
        "from torch.optim import Optimizer\n"
        "from torch.optim.lr_scheduler import LambdaLR\n"
        "class Spoil(LambdaLR):\n"
        "    def __init__(self, optimizer: Optimizer):\n"
        "        super().__init__(optimizer, lambda step: 1 if step < 48 else 1000)\n"
    )
    done = litpeft(*arguments, "--run_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert record["selection"] == "best val_accuracy"
    assert record["val_accuracy"] > 0.8
    assert record["checkpoint"] != "checkpoints/step-000060"
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert saved == {Path(record["checkpoint"]).name, "step-000060"}
    again = litpeft("validate", "--run_dir", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{record['val_accuracy']:.2%}" in again.stdout


@pytest.mark.parametrize(("keep", "kept"), [("all", [2, 4, 6, 8]), ("3", [4, 6, 8]), ("1", [8]), ("last", [8])])
def test_all_or_the_newest_checkpoints_are_kept_on_request(
    keep: str, kept: list[int], tmp_path: Path, fit_arguments: list[str]
) -> None:
    options = ["--checkpoint.keep", keep, "--checkpoint.every_n_steps", "2", "--trainer.max_steps", "8"]
    assert main([*fit_arguments, *LORA, *options, "--run_dir", str(tmp_path / "run")]) == 0
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == kept
    record = read_record(tmp_path / "run")
    assert (record["checkpoint"], record["selection"]) == ("checkpoints/step-000008", "last")


def test_checkpoints_are_saved_by_the_clock(
    tmp_path: Path, fit_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(1000))
    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(steps)))  # a minute each time
    options = ["--checkpoint.every_n_minutes", "3", "--checkpoint.keep", "all", "--trainer.max_steps", "8"]
    assert main([*fit_arguments, *LORA, *options, "--run_dir", str(tmp_path / "run")]) == 0
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [3, 6, 8]


@pytest.mark.parametrize("option", ["--checkpoint.keep=0", "--checkpoint.every_n_minutes=0"])
def test_impossible_numbers_are_refused(option: str, fit_arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([*fit_arguments, *LORA, option]) == 2
    assert option.removeprefix("--").partition("=")[0] in capsys.readouterr().err


def test_a_finished_run_names_the_limit_that_it_has_reached(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    steps = read_record(run_dir)["steps"]
    assert main(["fit", "--run_dir", str(run_dir), "--resume"]) == 2
    assert "is finished; to continue it, raise trainer.max_epochs (now 1)." in capsys.readouterr().err
    assert main(["fit", "--run_dir", str(run_dir), "--resume", "--trainer.max_steps", str(steps + 4)]) == 2
    reached = f"nothing to train: the run is already at step {steps}, the limit of trainer.max_epochs 1; give a higher"
    assert reached in capsys.readouterr().err
    higher = ["--trainer.max_steps", str(steps + 4), "--trainer.max_epochs", "5"]
    assert main(["fit", "--run_dir", str(run_dir), "--resume", *higher]) == 0
    capsys.readouterr()
    assert main(["fit", "--run_dir", str(run_dir), "--resume"]) == 2
    assert f"to continue it, raise trainer.max_steps (now {steps + 4})." in capsys.readouterr().err


class StopIn(L.Callback):
    """Asks for the end of the run after a batch, as max_time does, or in a validation, as early stopping does."""

    def __init__(self, batch: int = 0, validation: int = 0) -> None:
        self.batch, self.validation, self.validations = batch, validation, 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        trainer.should_stop |= trainer.fit_loop.total_batch_idx + 1 == self.batch

    def on_validation_end(self, trainer: L.Trainer, *_: object) -> None:
        if not trainer.sanity_checking:
            self.validations += 1
            trainer.should_stop |= self.validations == self.validation


@pytest.mark.parametrize("stop", [("batch", "6"), ("batch", "15"), ("validation", "2")])
def test_a_run_that_is_to_stop_between_the_batches_of_a_step_stops_after_the_step_and_resumes(
    stop: tuple[str, str], tmp_path: Path, fit_arguments: list[str]
) -> None:
    """Of three epochs with twelve batches; four batches make an optimizer step, and validations follow each third."""
    options = [*LORA, "--trainer.accumulate_grad_batches", "4", "--trainer.val_check_interval", "3"]
    options += ["--trainer.callbacks", f"{__name__}.StopIn"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*fit_arguments, *options, "--trainer.max_epochs", "3", "--run_dir", str(whole)]) == 0
    when = [f"--trainer.callbacks.{stop[0]}", stop[1]]
    assert main([*fit_arguments, *options, *when, "--trainer.max_epochs", "2", "--run_dir", str(stopped)]) == 0
    steps = {"6": 2, "15": 4, "2": 2}[stop[1]]
    record = read_record(stopped)
    assert (record["status"], record["steps"], record["epochs"]) == ("ok", steps, pytest.approx(steps / 3))
    assert record["val_step"] == steps  # the last weights are validated
    never = ["--trainer.callbacks", f"{__name__}.StopIn", "--trainer.callbacks.batch", "0"]
    assert main(["fit", "--run_dir", str(stopped), "--resume", *never, "--trainer.max_epochs", "3"]) == 0
    ends = [read_record(run) for run in (whole, stopped)]
    for name in ("steps", "epochs", "train_loss", "val_loss"):
        assert ends[0][name] == ends[1][name], name
    assert ends[1]["epochs"] == 3
    assert all(torch.equal(tensor, weights(stopped)[name]) for name, tensor in weights(whole).items())


class Slow(L.Callback):
    """Makes each batch last a fifth of a second."""

    def on_train_batch_start(self, *_: object) -> None:
        time.sleep(0.2)


def test_a_run_that_max_time_ended_goes_on_with_more_time_as_a_run_without_that_limit(
    tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    slow = ["--trainer.callbacks", f"{__name__}.Slow"]
    assert main([*fit_arguments, *LORA, *slow, "--trainer.max_time", "00:00:00:01", "--run_dir", str(run_dir)]) == 0
    first = read_record(run_dir)["steps"]
    assert 0 < first <= 5
    resume = ["fit", "--run_dir", str(run_dir), "--resume"]
    capsys.readouterr()
    assert main(resume) == 2
    assert "raise trainer.max_time (now 00:00:00:01), trainer.max_epochs or" in capsys.readouterr().err
    assert main([*resume, "--trainer.max_epochs", "9"]) == 2
    assert f"at step {first}, the limit of trainer.max_time 00:00:00:01; give a higher" in capsys.readouterr().err
    assert main([*resume, "--trainer.max_time", "00:00:00:02"]) == 0
    second = read_record(run_dir)["steps"]
    assert first < second <= 10
    assert main([*resume, "--trainer.max_time", "null", "--trainer.max_steps", "14"]) == 0
    assert main([*fit_arguments, *LORA, *slow, "--trainer.max_steps", "14", "--run_dir", str(whole)]) == 0
    assert [read_record(run)["steps"] for run in (run_dir, whole)] == [14, 14]
    assert all(torch.equal(tensor, weights(run_dir)[name]) for name, tensor in weights(whole).items())


def test_a_kill_between_two_renames_loses_no_checkpoint(finished: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    newest = newest_checkpoint(run_dir)
    newest.rename(newest.with_name(f".{newest.name}.old"))
    assert newest_checkpoint(run_dir) == newest
    assert (newest / TENSORS).is_file()


@pytest.mark.parametrize("limit", ["3", "0.5"])  # of four batches
def test_a_run_with_limited_epochs_is_continued_with_the_first_batch_of_the_next_epoch(
    limit: str, tmp_path: Path, fit_arguments: list[str]
) -> None:
    check_extension(fit_arguments, tmp_path, ["--trainer.limit_train_batches", limit, *LORA])
    steps = {"3": 6, "0.5": 4}[limit]
    assert [read_record(tmp_path / name)["steps"] for name in ("whole", "parts")] == [steps, steps]

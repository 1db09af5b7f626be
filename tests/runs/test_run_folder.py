"""Who may write into a run folder, and which options a resumed run may change."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from litpeft.errors import UserError
from litpeft.runs.folder import (
    NEW_OPTIONS,
    changed_options,
    check_resumable,
    check_run_folder,
    checkpoints,
    folder_name,
    newest_checkpoint,
    reached_limit,
    remove_leftovers,
    saved_config,
    step_of,
)
from litpeft.runs.record import by_field, new_record, path_in_run_folder, with_metrics, write_record

CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 2, "max_steps": -1, "devices": 2, "num_nodes": 1, "gradient_clip_val": None, "logger": True},
    "model": {"init_args": {"dtype": "bf16", "optimizer": {"init_args": {"lr": 0.1}}}},
    "data": {"init_args": {"batch_size": 8, "train_file": "a.tsv", "max_length": 64, "num_workers": 0, "val_samples": 5}},
    "checkpoint": {"every_n_steps": None, "keep": "last"},
}  # fmt: skip
RUNNING = {"status": "interrupted", "steps": 3, "epochs": 0.5}


def changed(option: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *sections, name = option.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[name] = value
    return config


def write(run_dir: Path, **fields: Any) -> Path:
    run_dir.mkdir(exist_ok=True)
    write_record(run_dir, new_record() | {"config": CONFIG} | fields)
    return run_dir


@pytest.mark.parametrize(
    ("option", "as_before", "another"),
    [
        ("data.init_args.val_cut", "random", "stratified"), ("data.init_args.join_columns", True, False),
        ("data.init_args.on_bad_row", "error", "skip"), ("data.init_args.batch_tokens", None, 512),
        ("model.init_args.label_smoothing", 0.0, 0.1), ("model.init_args.metrics", None, ["f1"]),
        ("model.init_args.kernels", "none", "auto"), ("model.init_args.tf32", False, True),
    ],
)  # fmt: skip
def test_a_run_of_0_1_0_resumes_only_with_what_that_version_did(option: str, as_before: Any, another: Any) -> None:
    check_resumable(CONFIG, changed(option, as_before), Path("run"), RUNNING)
    with pytest.raises(UserError, match=option.replace(".", r"\.")):
        check_resumable(CONFIG, changed(option, another), Path("run"), RUNNING)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trainer.max_epochs", 5), ("trainer.max_steps", 90), ("trainer.logger", False), ("checkpoint.every_n_steps", 4),
        ("data.init_args.train_file", "b.tsv"), ("data.init_args.num_workers", 2),
    ],
)  # fmt: skip
def test_options_that_change_no_result_may_change_on_resume(option: str, value: Any, capsys: Any) -> None:
    check_resumable(CONFIG, changed(option, value), Path("run"), RUNNING)
    assert capsys.readouterr().out.startswith(f"litpeft: resuming with a changed {option}: ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed_everything", 1), ("trainer.gradient_clip_val", 1.0), ("model.init_args.dtype", "fp32"),
        ("model.init_args.optimizer.init_args.lr", 0.2), ("data.init_args.batch_size", 4), ("trainer.devices", 1),
        ("data.init_args.max_length", 32), ("data.init_args.val_samples", 6), ("checkpoint.keep", "best"),
    ],
)  # fmt: skip
def test_options_that_change_results_may_not_change_on_resume(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"--resume: {option} is {value}, but run was started with"):
        check_resumable(CONFIG, changed(option, value), Path("run"), RUNNING)


@pytest.mark.parametrize(("devices", "size", "fits"), [(1, 16, True), (4, 4, True), (1, 8, False), ("auto", 16, False)])
def test_the_number_of_devices_may_change_at_the_same_batch_size_of_all(devices: Any, size: int, fits: bool) -> None:
    now = changed("trainer.devices", devices)
    now["data"]["init_args"]["batch_size"] = size
    if fits:
        check_resumable(CONFIG, now, Path("run"), RUNNING)
    else:
        with pytest.raises(UserError, match="--resume: "):
            check_resumable(CONFIG, now, Path("run"), RUNNING)


@pytest.mark.parametrize(
    ("option", "value", "goes_on"),
    [
        ("trainer.max_epochs", 3, True), ("trainer.max_epochs", 2, False), ("trainer.max_epochs", 1, False),
        ("trainer.max_epochs", -1, True), ("trainer.max_steps", 90, True), ("trainer.logger", False, False),
    ],
)  # fmt: skip
def test_a_finished_run_goes_on_only_with_a_higher_limit(option: str, value: Any, goes_on: bool) -> None:
    finished = {"status": "ok", "steps": 24, "epochs": 2.0}
    now = changed(option, value)
    if goes_on:
        check_resumable(CONFIG, now, Path("run"), finished)
    else:
        with pytest.raises(UserError, match=r"is finished; to continue it, raise trainer.max_epochs \(now 2\)"):
            check_resumable(CONFIG, now, Path("run"), finished)


@pytest.mark.parametrize(
    ("before", "now", "goes_on"),
    [
        ("00:00:10:00", "00:00:10:01", True), ("00:23:59:59", "01:00:00:00", True), ("00:00:10:00", None, True),
        ("00:00:10:00", {"minutes": 11}, True), ({"hours": 1}, {"minutes": 61}, True),
        ("00:00:10:00", "00:00:10:00", False), ("00:00:10:00", "00:00:09:59", False),
        ("00:00:10:00", {"minutes": 10}, False), (None, "00:00:10:00", False), (None, None, False),
    ],
)  # fmt: skip
def test_a_run_that_its_time_ended_goes_on_with_more_time(before: Any, now: Any, goes_on: bool) -> None:
    stopped = {"status": "ok", "steps": 3, "epochs": 0.5}
    configs = [changed("trainer.max_time", time) for time in (before, now)]
    if goes_on:
        check_resumable(*configs, Path("run"), stopped)
        return
    time = rf"trainer\.max_time \(now {re.escape(str(before))}\), " if before else ""
    with pytest.raises(UserError, match=rf"raise {time}trainer\.max_epochs or trainer\.max_steps\.$"):
        check_resumable(*configs, Path("run"), stopped)


def test_a_run_that_its_steps_ended_goes_on_for_an_epoch() -> None:
    before = {**CONFIG, "trainer": CONFIG["trainer"] | {"max_epochs": None, "max_steps": 2}}
    now = {**CONFIG, "trainer": CONFIG["trainer"] | {"max_epochs": 1, "max_steps": 2}}
    check_resumable(before, now, Path("run"), {"status": "ok", "steps": 2, "epochs": 0.1})


def test_the_limit_that_was_reached() -> None:
    limits = {"trainer": {"max_epochs": 2, "max_steps": 30}}
    assert reached_limit(limits, 30, 1.5) == ("trainer.max_steps", 30)
    assert reached_limit(limits, 29, 2.0) == ("trainer.max_epochs", 2)
    assert reached_limit(limits, 29, 1.99) is None
    assert reached_limit({"trainer": {"max_epochs": -1, "max_steps": -1}}, 10**6, 99.0) is None
    assert reached_limit({"trainer": {"max_epochs": None}}, None, None) is None
    for config in ({}, {"trainer": {"max_epochs": None, "max_steps": None}}, {"trainer": {"max_steps": 0}}):
        assert reached_limit(config, 5, 1.0) is reached_limit(config, 0, 0.0) is None


def test_an_option_of_a_newer_version_that_does_what_was_done_before_is_no_change() -> None:
    assert changed_options({"a": {"b": 1}}, {"a": {"b": 1}, "new": {"off": False, "none": None}}) == {}
    assert changed_options({"a": {"b": 1}}, {"a": {"b": 1}, "new": {"on": True}}) == {"new.on": (None, True)}
    for name, value in NEW_OPTIONS.items():
        before, now = copy.deepcopy(CONFIG), copy.deepcopy(CONFIG)
        section, _, option = name.split(".")
        now[section]["init_args"][option] = value
        assert changed_options(before, now) == {}
        now[section]["init_args"][option] = "another"
        assert changed_options(before, now) == {name: (value, "another")}


def test_an_existing_run_is_not_overwritten_unless_asked_for(tmp_path: Path) -> None:
    run = write(tmp_path / "run", status="ok", steps=4)
    (run / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"already holds a run \(with a different trainer.max_epochs\); give --resume"):
        check_run_folder(run, changed("trainer.max_epochs", 3), resume=False, overwrite=False)
    stale = check_run_folder(run, CONFIG, resume=False, overwrite=True)
    assert [path.name for path in stale] == ["record.json"]  # a user's own file is none of the run's
    with pytest.raises(UserError, match="they exclude each other"):
        check_run_folder(run, CONFIG, resume=True, overwrite=True)
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        check_run_folder(run, CONFIG, resume=True, overwrite=False)
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    assert check_run_folder(run, CONFIG, resume=True, overwrite=False) == []
    assert check_run_folder(tmp_path / "new", CONFIG, resume=False, overwrite=False) == []


@pytest.mark.parametrize(
    ("steps", "saved", "free"), [(None, False, True), (0, False, True), (3, False, False), (0, True, False)]
)
def test_a_run_that_failed_before_its_first_step_is_replaced(
    tmp_path: Path, steps: int | None, saved: bool, free: bool
) -> None:
    run = write(tmp_path / "run", status="failed", steps=steps)
    if saved:
        (run / "checkpoints").mkdir()
    if free:
        assert [path.name for path in check_run_folder(run, CONFIG, resume=False, overwrite=False)] == ["record.json"]
    else:
        with pytest.raises(UserError, match="already holds a run; give"):
            check_run_folder(run, CONFIG, resume=False, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_files_of_a_run_but_no_record_is_no_run_folder(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"holds config.yaml but no record.json: it is not a run folder"):
        check_run_folder(tmp_path, CONFIG, resume=False, overwrite=overwrite)


def test_what_a_killed_process_left_is_removed_and_a_checkpoint_set_aside_is_restored(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in ("step-000002", ".step-000004.old", ".step-000002.old", ".step-000006.123", "mine"):
        (folder / name).mkdir(parents=True)
    (tmp_path / ".record.json.77").write_text("half")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "step-000002", "step-000004"]
    assert [step_of(path) for path in checkpoints(tmp_path)] == [2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_what_cannot_be_removed_of_a_killed_process_stops_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".step-000003").write_text("a file, not a folder")
    (folder / ".step-000004").mkdir()
    remove_leftovers(tmp_path)
    assert not (folder / ".step-000004").exists()


def test_long_labels_that_differ_have_folders_that_differ() -> None:
    long = [f"{'x' * 200}{end}" for end in "ab"]
    names = [folder_name(each) for each in long]
    assert len(set(names)) == 2
    assert max(len(name.encode()) for name in [*names, folder_name("é" * 200)]) <= 120
    assert folder_name("lora, lr=0.1/x:y") == "lora,_lr=0.1_x_y"


def test_metrics_are_added_to_those_of_the_record() -> None:
    record = new_record() | {"val_loss": 0.5, "other_metrics": {"val_mae": 1.0, "test_mae": 5.0}}
    found = with_metrics(record, {"test_loss": 0.25, "test_mae": 2.0})
    assert (found["val_loss"], found["test_loss"]) == (0.5, 0.25)
    assert found["other_metrics"] == {"val_mae": 1.0, "test_mae": 2.0}
    assert by_field({"val_loss": 1.0}) == {"val_loss": 1.0}
    assert with_metrics(new_record(), {"test_loss": 1.0})["other_metrics"] is None


def test_a_file_outside_of_the_run_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    assert path_in_run_folder(tmp_path / "run", "a/b.json") == tmp_path / "run" / "a" / "b.json"
    for name in ("../secret", "/etc/passwd", "link/secret"):
        with pytest.raises(UserError, match="is outside the run folder"):
            path_in_run_folder(tmp_path / "run", name)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("a b//c", "a_b_c"), ("x" * 120, "x" * 120), ("é" * 60, "é" * 60), ("lora,lr=1e-3+.b", "lora,lr=1e-3+.b"), ("a:*?b", "a_b"),
    ],
)  # fmt: skip
def test_a_label_of_up_to_120_bytes_is_the_name_of_its_folder(label: str, name: str) -> None:
    assert folder_name(label) == name


@pytest.mark.parametrize("label", ["x" * 121, "é" * 61, "a " * 100])
def test_a_longer_label_keeps_its_start_and_gets_eight_digits_of_a_hash(label: str) -> None:
    name = folder_name(label)
    start, _, digits = name.rpartition("-")
    assert 118 <= len(name.encode()) <= 120
    assert digits == hashlib.sha256(label.encode()).hexdigest()[:8]
    assert label.replace(" ", "_").startswith(start)


def test_the_configuration_of_a_run_is_read_with_its_name(tmp_path: Path) -> None:
    run = tmp_path / "none" / "seed0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("trainer: {max_steps: 3}\n")
    assert saved_config(run) == {"trainer": {"max_steps": 3}}
    with pytest.raises(UserError) as error:
        saved_config(tmp_path / "full" / "seed0")
    assert str(error.value) == (
        f"--run_dir {tmp_path}/full/seed0 holds no run: it has no config.yaml (did you mean {run}?)."
    )
    with pytest.raises(UserError, match=r"holds no run: it has no config\.yaml\.$"):
        saved_config(tmp_path)
    (run / "config.yaml").write_text('{"a b": 1}')
    with pytest.raises(UserError, match="'a b' is not an option name"):
        saved_config(run)


@pytest.mark.parametrize(
    ("name", "found"),
    [("step-000010", True), ("step-12", True), ("step-", False), ("step-1x", False), ("xstep-1", False)],
)
def test_checkpoints_are_folders_named_by_their_step(name: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000009").mkdir()
    assert (tmp_path / "checkpoints" / name in checkpoints(tmp_path)) == found
    newest = newest_checkpoint(tmp_path)
    assert newest.name == (name if found else "step-000009")
    assert newest_checkpoint(tmp_path / "none") is None


def test_a_resumed_run_says_each_option_that_changed(capsys: pytest.CaptureFixture[str]) -> None:
    now = changed("trainer.max_epochs", 5)
    now["data"]["init_args"]["num_workers"] = 2
    check_resumable(CONFIG, now, Path("run"), RUNNING)
    assert capsys.readouterr().out == (
        "litpeft: resuming with a changed data.init_args.num_workers: 0 -> 2\n"
        "litpeft: resuming with a changed trainer.max_epochs: 2 -> 5\n"
    )
    check_resumable(CONFIG, CONFIG, Path("run"), RUNNING)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError) as error:
        check_resumable(
            changed("trainer.max_epochs", -1),
            changed("trainer.max_epochs", -1),
            Path("run"),
            {"status": "ok", "steps": 3, "epochs": 1.0},
        )
    assert str(error.value) == (
        "--resume: the run in run is finished; to continue it, raise trainer.max_epochs or trainer.max_steps."
    )

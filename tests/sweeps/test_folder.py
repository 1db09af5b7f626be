"""The folder of a sweep: jobs left to run, one sweep at a time, and unchanged trials."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from litpeft.errors import UserError
from litpeft.runs.record import new_record, write_record
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import YamlText, jobs_of, locked_sweep, write_sweep
from tests.conftest import hold_lock

TRIAL = Trial("lora,lr=1", "lora,lr=1", {"adapter": "lora", "lr": "1"}, ())
OTHER = Trial("dora", "dora", {"adapter": "dora", "lr": "1"}, ())
DESCRIPTION = {"question": "Which?", "baseline": "dora", "metric": None, "target": None, "published": None}
EXPERIMENT = Experiment("mine", {"adapter": [], "lr": []}, [TRIAL, OTHER], [0, 7], DESCRIPTION)
CONFIGS = {"lora,lr=1": {"model": {"lr": 1}, "seed_everything": 0}, "dora": {"model": {"lr": 1}}}


@pytest.mark.parametrize(
    ("status", "checkpoint", "retry", "option"),
    [
        (None, False, False, "--overwrite"),
        ("ok", True, True, None),
        ("interrupted", True, False, "--resume"),
        ("interrupted", False, False, "--overwrite"),
        ("failed", False, False, None),
        ("failed", True, True, "--overwrite"),
        ("oom", False, False, None),
        ("oom", False, True, "--overwrite"),
    ],
)
def test_the_command_of_a_job_depends_on_its_state(
    tmp_path: Path, status: str | None, checkpoint: bool, retry: bool, option: str | None
) -> None:
    job = jobs_of(tmp_path / "mine", EXPERIMENT)[3]
    assert (job.name, job.run_dir) == ("dora seed 7", tmp_path / "mine" / "dora" / "seed7")
    job.run_dir.mkdir(parents=True)
    if status:
        write_record(job.run_dir, new_record() | {"status": status})
    if checkpoint:
        (job.run_dir / "checkpoints" / "step-000004").mkdir(parents=True)
    arguments = job.arguments(retry)
    assert (arguments and arguments[-1]) == option
    if arguments:
        content = dict(zip(arguments[1:-1:2], arguments[2:-1:2], strict=True))
        assert content == {
            "--config": str(tmp_path / "mine" / "trials" / "dora.yaml"),
            "--seed_everything": "7",
            "--run_dir": str(job.run_dir),
            "--experiment": "mine",
        }


def test_the_file_of_a_trial_has_its_configuration_where_trials_share_parts(tmp_path: Path) -> None:
    shared = {"rows": [1, 2], "name": "a: b", "limits": {"most": None, "least": 1e-8}}
    configs = {
        "lora,lr=1": {"model": {"lr": 1}, "data": shared, "seed_everything": 0, "logger": None},
        "dora": {"model": {"lr": 2}, "data": shared, "seed_everything": 0, "logger": "yes"},
    }
    write_sweep(tmp_path, EXPERIMENT, configs, [])
    for name, config in configs.items():
        text = (tmp_path / "trials" / f"{name}.yaml").read_text()
        assert list(yaml.safe_load(text).items()) == list(config.items())
        assert text.partition("\n")[2] == yaml.safe_dump(config, sort_keys=False)


TEXT = st.text("abc\n\t #:'\"-é1.\u2028", max_size=12)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
CONFIG = st.dictionaries(
    st.text("abc.:_- ", min_size=1, max_size=5),
    st.recursive(
        VALUES | st.lists(VALUES, max_size=3),
        lambda part: st.dictionaries(st.text("ab:# 1", max_size=4), part, max_size=3) | st.lists(part, max_size=2),
    ),
    max_size=4,
)


@given(CONFIG, CONFIG)
def test_any_configuration_is_read_back_as_it_was(one: dict[str, Any], other: dict[str, Any]) -> None:
    text = YamlText()
    for config in ({"a": one, "b": other}, {"a": other, "b": {"c": one}}, {"a": one, "b": other, "d": one}):
        assert repr(yaml.safe_load(text(config))) == repr(config)


def test_all_trials_of_a_seed_come_before_the_next_seed(tmp_path: Path) -> None:
    names = [job.name for job in jobs_of(tmp_path, EXPERIMENT)]
    assert names == ["lora,lr=1 seed 0", "dora seed 0", "lora,lr=1 seed 7", "dora seed 7"]


def test_a_continued_sweep_writes_only_files_that_are_not_as_they_were(tmp_path: Path) -> None:
    write_sweep(tmp_path, EXPERIMENT, CONFIGS, ["model.lr"])
    files = sorted(path for path in tmp_path.rglob("*.yaml"))
    texts, inodes = ([of(path) for path in files] for of in (Path.read_text, lambda path: path.stat().st_ino))
    write_sweep(tmp_path, EXPERIMENT, CONFIGS, ["model.lr"])
    assert [path.stat().st_ino for path in files] == inodes
    (tmp_path / "trials" / "dora.yaml").write_text("model: {lr: 2}\n")
    (tmp_path / "sweep.yaml").unlink()
    write_sweep(tmp_path, EXPERIMENT, CONFIGS, ["model.lr"])
    assert [path.read_text() for path in files] == texts


def test_sweep_yaml_and_configurations_are_written(tmp_path: Path) -> None:
    write_sweep(tmp_path, EXPERIMENT, CONFIGS, ["model.lr"])
    content = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert content == DESCRIPTION | {
        "experiment": "mine",
        "axes": ["adapter", "lr"],
        "varies": ["model.lr"],
        "seeds": [0, 7],
        "trials": [
            {"name": "lora,lr=1", "label": "lora,lr=1", "axes": {"adapter": "lora", "lr": "1"}},
            {"name": "dora", "label": "dora", "axes": {"adapter": "dora", "lr": "1"}},
        ],
    }
    assert yaml.safe_load((tmp_path / "trials" / "lora,lr=1.yaml").read_text()) == CONFIGS["lora,lr=1"]


def test_a_started_trial_must_not_change(tmp_path: Path) -> None:
    write_sweep(tmp_path, EXPERIMENT, CONFIGS, [])
    run_dir = tmp_path / "dora" / "seed7"
    run_dir.mkdir(parents=True)
    write_record(run_dir, new_record() | {"config": {"model": {"lr": 1}, "seed_everything": 7}})
    write_sweep(
        tmp_path, EXPERIMENT, CONFIGS | {"lora,lr=1": {"model": {"lr": 2}}}, []
    )  # this trial has not been started
    with pytest.raises(UserError, match=r"trial dora was started with model.lr 1, which is now 3; give another --dir"):
        write_sweep(tmp_path, EXPERIMENT, CONFIGS | {"dora": {"model": {"lr": 3}}}, [])
    assert "lr: 3" not in (tmp_path / "trials" / "dora.yaml").read_text()


def test_a_second_sweep_is_refused(tmp_path: Path) -> None:
    holder = hold_lock(tmp_path, 60)
    try:
        message = rf"another sweep is running in this folder \(process {holder.pid} on "
        with pytest.raises(UserError, match=message), locked_sweep(tmp_path, []):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked_sweep(tmp_path, []):  # the lock of a killed process is free
        pass


def test_trials_of_a_killed_sweep_are_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    jobs = jobs_of(tmp_path, EXPERIMENT)
    with locked_sweep(tmp_path, jobs):
        assert not capsys.readouterr().out  # nothing to wait for
    trial = hold_lock(jobs[1].run_dir, 1.5)
    with locked_sweep(tmp_path, jobs):
        assert "waiting for the trials of a killed sweep" in capsys.readouterr().out
        assert trial.wait(timeout=60) == 0


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked_sweep(tmp_path, []):
        raise KeyError
    with locked_sweep(tmp_path, []):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")

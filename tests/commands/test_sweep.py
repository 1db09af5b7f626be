"""`litpeft sweep`: each trial runs once, failures are reported and can be repeated, and an interrupted sweep resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.commands.sweep import _Sweep
from litpeft.runs.record import read_record
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import jobs_of
from tests.forking import litpeft

CALLBACKS = """
import os, time, torch
from lightning import Callback

class Slow(Callback):
    def on_train_batch_end(self, *args):
        time.sleep(float(os.environ.get("PAUSE", 0.15)))

class Killed(Callback):
    def on_train_batch_end(self, *args):
        os.kill(os.getpid(), 9)

class OutOfMemory(Callback):
    def on_train_batch_end(self, trainer, *args):
        if os.environ.get("FAIL") and trainer.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
"""


ADAPTERS = ("lora", "qlora-nf4")


@pytest.fixture
def write(tmp_path: Path, tiny_model: str, sentences: dict[str, str]) -> Any:
    """Return a function that writes an experiment with the tiny model to tmp_path."""
    (tmp_path / "mine.py").write_text(CALLBACKS)
    options = {
        "model.model_name": tiny_model,
        "model.dtype": "fp32",
        "data.train_file": sentences["train"],
        "data.val_file": sentences["val"],
        "data.batch_size": 8,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.enable_progress_bar": False,
    }

    def write_experiment(axes: dict[str, Any], seeds: Any = 1, **more: Any) -> None:
        content = {
            "configs": ["base", "sst2", "lora", "adamw"],
            "options": options | more,
            "axes": axes,
            "seeds": seeds,
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    return write_experiment


def statuses(folder: Path) -> dict[str, str]:
    root = folder / "runs" / "tiny"
    return {
        str(path.parent.relative_to(root)): read_record(path.parent)["status"] for path in root.glob("*/*/record.json")
    }


def test_a_dry_run_shows_trials_and_memory_and_writes_nothing(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write({"adapter": ["none", "dora"]}, seeds=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    before = sorted(tmp_path.iterdir())
    assert main(["sweep", "tiny.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 trials x 3 seeds" in out
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[3:6]]
        for line in out.splitlines()
        if "│" in line
    }
    assert rows["full"][0] == "35,522"
    assert float(rows["full"][2]) > float(rows["dora"][2]) > float(rows["dora"][1]) > 0
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setattr("litpeft.commands.sweep_preview.LONG", 2)  # as a table of many trials is printed
    assert main(["sweep", "tiny.yaml", "--dry-run"]) == 0
    title, headings, *lines = capsys.readouterr().out.splitlines()
    assert title == "2 trials x 3 seeds"
    by_hand = {cells[0]: cells[2:5] for cells in (line.split() for line in lines[:2])}
    assert by_hand == {"full": rows["full"], "dora": rows["dora"]}
    assert [line.index(rows[line.split()[0]][2]) + len(rows[line.split()[0]][2]) for line in lines[:2]] == [
        headings.index("peak MiB") + len("peak MiB")
    ] * 2  # aligned to the right
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["sweep", "tiny.yaml", "--dry-run", "--data.train_file", "gone.tsv"]) == 0
    out = capsys.readouterr().out
    assert out.count("unknown (1)") == 2  # trials that share a reason
    assert out.count("\n(1) ") == 1
    assert out.count("gone.tsv") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "litpeft sweep: the following arguments are required: experiment; see litpeft sweep --help."),
        (["none.yaml"], "litpeft sweep none.yaml: no such file and no packaged configuration of that name"),
        (["tiny.yaml", "--jobs", "0"], "--jobs and --trials must be at least 1."),
        (["tiny.yaml", "lora"], "litpeft sweep: unknown argument 'lora'"),
        (["tiny.yaml", "--job", "2"], "litpeft sweep: unknown option --job (did you mean --jobs?)."),
        (["tiny.yaml", "--model.rank", "2"], "trial lora: model has no option 'rank'"),
        (
            ["tiny.yaml", "--seed_everything", "2"],
            "litpeft sweep: seed_everything is set by the sweep; use configs or seeds instead",
        ),
    ],
)
def test_errors_are_one_sentence_and_write_nothing(
    tmp_path: Path,
    write: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    sentence: str,
) -> None:
    write({"adapter": ["lora"]})
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert "\n" not in error
    assert not (tmp_path / "runs").exists()


def test_failed_trials_are_reported_and_repeated_only_on_request(tmp_path: Path, write: Any) -> None:
    """A trial that runs out of memory leaves a record; the next trial runs normally."""
    write({"kind": {"fails": {"trainer.callbacks": "mine.OutOfMemory"}, "works": {}}})
    done = litpeft("sweep", "tiny.yaml", cwd=tmp_path, FAIL="1")
    assert done.returncode == 1
    assert statuses(tmp_path) == {"fails/seed0": "oom", "works/seed0": "ok"}
    assert "litpeft: fails seed 0 oom: CUDA out of memory. Tried to allocate 2.00 GiB" in done.stderr
    assert "rerun them with the same command and --retry" in done.stderr
    started = read_record(tmp_path / "runs" / "tiny" / "works" / "seed0")["started_at"]
    log = tmp_path / "runs" / "tiny" / "logs" / "fails-seed0.log"
    assert log.read_text().startswith("$ litpeft fit --config ")

    again = litpeft("sweep", "tiny.yaml", cwd=tmp_path)
    assert (again.returncode, statuses(tmp_path)["fails/seed0"]) == (1, "oom")
    retried = litpeft("sweep", "tiny.yaml", "--retry", cwd=tmp_path)
    assert (retried.returncode, set(statuses(tmp_path).values())) == (0, {"ok"})
    assert "best so far" in retried.stdout
    # finished runs are not repeated
    assert read_record(tmp_path / "runs" / "tiny" / "works" / "seed0")["started_at"] == started

    changed = litpeft("sweep", "tiny.yaml", "--data.batch_size", "4", cwd=tmp_path)
    assert changed.returncode == 2
    assert "was started with data.batch_size 8, which is now 4" in changed.stderr


def test_a_trial_that_cannot_start_is_reported_with_its_error(tmp_path: Path, write: Any) -> None:
    write({"adapter": ["lora"]}, **{"data.train_file": "none.tsv"})
    done = litpeft("sweep", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "litpeft: lora seed 0 failed: data.train_file none.tsv: No such file or directory." in done.stderr


def test_a_killed_trial_fails_the_sweep(tmp_path: Path, write: Any) -> None:
    """The system kills a process when memory runs out; the record then says interrupted."""
    write({"adapter": ["lora"]}, **{"trainer.callbacks": "mine.Killed"})
    done = litpeft("sweep", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "litpeft: lora seed 0 failed: see runs/tiny/logs/lora-seed0.log" in done.stderr
    assert statuses(tmp_path) == {"lora/seed0": "interrupted"}  # so the same command resumes the run


def test_a_trial_stopped_before_it_wrote_a_record_has_not_failed(tmp_path: Path) -> None:
    job = jobs_of(tmp_path, Experiment("mine", {}, [Trial("lora", "lora", {}, ())], [0], {}))[0]
    job.log.parent.mkdir()
    sweep = object.__new__(_Sweep)
    sweep.options, sweep.stopped = Namespace(retry=False), None
    sweep.screen = SimpleNamespace(states={job.name: "waiting"}, update=lambda job, state: None)

    def launch(arguments: list[str], log: Path) -> int:
        sweep.stopped = signal.SIGINT
        return -signal.SIGTERM

    sweep.launch = launch
    assert sweep._do(job) == "waiting"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.whole)]
)  # SIGTERM is like SIGINT
def test_an_interrupted_sweep_can_be_finished_with_the_same_results(
    tmp_path: Path, write: Any, kill: signal.Signals
) -> None:
    write({"adapter": list(ADAPTERS)}, **{"trainer.callbacks": "mine.Slow", "checkpoint.every_n_steps": 3})
    command = [sys.executable, "-m", "litpeft", "sweep", "tiny.yaml", "--jobs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    root = tmp_path / "runs" / "tiny"
    deadline = time.monotonic() + 120
    while not list(root.glob("*/seed0/checkpoints/step-*")):
        assert time.monotonic() < deadline, running.poll()
        time.sleep(0.05)
    running.send_signal(kill)
    _, errors = running.communicate()
    assert running.returncode == (-9 if kill == signal.SIGKILL else 128 + kill)
    if kill != signal.SIGKILL:
        assert "run the same command to continue" in errors

    finished = litpeft("sweep", "tiny.yaml", "--jobs", "2", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    resumed = [name for name in ADAPTERS if "--resume" in (root / "logs" / f"{name}-seed0.log").read_text()]
    assert resumed  # the other trial may not have started
    assert statuses(tmp_path) == {f"{name}/seed0": "ok" for name in ADAPTERS}
    for name in resumed:
        record = read_record(root / name / "seed0")
        assert record["steps"] == 12
        alone = litpeft(
            "fit", "--config", str(root / "trials" / f"{name}.yaml"), "--run_dir", f"alone/{name}", cwd=tmp_path
        )
        assert alone.returncode == 0, alone.stderr
        undisturbed = read_record(tmp_path / "alone" / name)
        assert record["val_loss"] == undisturbed["val_loss"]


@pytest.mark.slow
def test_a_search_runs_some_trials_and_can_be_continued(tmp_path: Path, write: Any) -> None:
    pytest.importorskip("optuna")
    write({"model.adapter.rank": [2, 4, 8], "model.optimizer.lr": [1e-3, 1e-2]})
    done = litpeft("sweep", "tiny.yaml", "--select", "optuna", "--trials", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(statuses(tmp_path).values()) == ["ok", "ok"]
    more = litpeft("sweep", "tiny.yaml", "--select", "optuna", "--trials", "3", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert list(statuses(tmp_path).values()) == ["ok"] * 3
    assert (tmp_path / "runs" / "tiny" / "optuna.log").is_file()


@pytest.mark.slow
def test_trials_run_on_ray_stop_with_the_sweep_and_continue(tmp_path: Path, write: Any) -> None:
    """Ray with two local workers; it hangs in a forked process."""
    pytest.importorskip("ray")
    write({"adapter": ["lora", "dora"]}, **{"trainer.callbacks": "mine.Slow", "checkpoint.every_n_steps": 3})
    command = [sys.executable, "-m", "litpeft", "sweep", "tiny.yaml", "--launcher", "ray", "--jobs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "PAUSE": "2"}
    background = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # as a shell starts `litpeft sweep ... &`
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=background
    )
    root = tmp_path / "runs" / "tiny"
    while len({path.parent for path in root.glob("*/seed0/checkpoints/step-*")}) < 2:
        assert running.poll() is None, running.stderr.read().decode()
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    running.communicate()
    assert running.returncode == 128 + signal.SIGTERM
    assert statuses(tmp_path) == {"lora/seed0": "interrupted", "dora/seed0": "interrupted"}
    done = subprocess.run(command, cwd=tmp_path, env=environment | {"PAUSE": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == {"lora/seed0": "ok", "dora/seed0": "ok"}
    for name in ("lora", "dora"):
        assert (root / "logs" / f"{name}-seed0.log").read_text().count(" --resume\n") == 1


@pytest.mark.slow
def test_trials_run_with_submitit(tmp_path: Path, write: Any) -> None:
    """Submitit with local processes instead of SLURM."""
    pytest.importorskip("submitit")
    write({"adapter": ["lora"]})
    done = litpeft("sweep", "tiny.yaml", "--launcher", "slurm", "--slurm", "cluster=local", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == {"lora/seed0": "ok"}


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("ray", ["--launcher", "ray"], "ray"),
        ("submitit", ["--launcher", "slurm"], "slurm"),
        ("optuna", ["--select", "optuna"], "hpo"),
    ],
)
def test_a_missing_package_is_one_sentence(
    tmp_path: Path,
    write: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    package: str,
    arguments: list[str],
    extra: str,
) -> None:
    write({"adapter": ["lora"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert main(["sweep", "tiny.yaml", *arguments]) == 2
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    assert f"needs {package}: pip install 'litpeft[{extra}]'." in capsys.readouterr().err

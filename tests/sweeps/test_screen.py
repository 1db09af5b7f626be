"""The progress table of a sweep: best run and number of rows."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from litpeft.errors import UserError
from litpeft.runs.record import new_record, write_record
from litpeft.sweeps import progress_table
from litpeft.sweeps.experiment import Experiment, Trial
from litpeft.sweeps.folder import jobs_of
from litpeft.sweeps.progress_table import SHOWN, Screen, score
from litpeft.sweeps.tuning import choose


@pytest.mark.parametrize(
    ("record", "metric", "score_value"),
    [
        ({"val_accuracy": 0.9, "val_loss": 0.2}, None, 0.9),
        ({"val_accuracy": None, "val_loss": 0.2}, None, -0.2),
        ({"train_seconds": 4.0}, "train_seconds", -4.0),
        ({"other_metrics": {"val_wer": 0.2}}, "val_wer", -0.2),
        ({"other_metrics": {"val_error": 0.2}}, "val_error", -0.2),
        ({"other_metrics": {"val_exact_match": 0.2}}, "val_exact_match", 0.2),
    ],
)
def test_the_best_run_depends_on_the_direction_of_the_metric(
    record: dict[str, Any], metric: str, score_value: float
) -> None:
    assert score({"other_metrics": None} | record, metric)[0] == score_value


@pytest.mark.parametrize("running", [0, 3, SHOWN, SHOWN + 2])
def test_the_number_of_rows_is_limited(tmp_path: Path, running: int) -> None:
    trials = [Trial(f"t{i}", f"t{i}", {}, ()) for i in range(30)]
    screen = Screen(jobs_of(tmp_path, Experiment("mine", {}, trials, [0], {})), None)
    for i, job in enumerate(screen.jobs):
        screen.update(job, "running" if i < running else "failed")
    assert screen.table().row_count == max(SHOWN, running)


def test_the_table_is_the_same_whether_runs_ended_before_or_while_it_is_shown(tmp_path: Path) -> None:
    trials = [Trial(f"t{i}", f"t{i}", {}, ()) for i in range(SHOWN + 4)]
    trials[2] = Trial("t2", "t2", {}, (), values={"lr": 1})  # a tuning run, which is never the best
    jobs = jobs_of(tmp_path, Experiment("mine", {}, trials, [0], {}))
    before = Screen(jobs, "val_accuracy")
    assert (before.best(), before.table().row_count) == ("", 0)
    for number, job in enumerate(jobs):
        before.update(job, "running")
        if number == 3:
            before.update(job, "failed")
            continue
        job.run_dir.mkdir(parents=True)
        accuracy = {1: 0.8, 2: 0.99, 5: 0.9, 7: 0.9}.get(number, 0.5)
        write_record(job.run_dir, new_record() | {"status": "ok", "val_accuracy": accuracy, "wall_seconds": number})
        before.update(job, "ok")
    after = Screen(jobs, "val_accuracy")
    # of two, the first
    assert before.best() == after.best() == "best so far: t5 seed 0, val_accuracy 0.9000 (1 more run equals it)"
    assert before.table().title == f"{len(jobs)} runs: {len(jobs) - 1} ok, 1 failed"
    assert [list(column.cells) for column in before.table().columns] == [
        list(column.cells) for column in after.table().columns
    ]
    assert before.table().row_count == SHOWN
    write_record(jobs[5].run_dir, new_record() | {"status": "ok", "val_accuracy": 0.1, "wall_seconds": 1})
    before.update(jobs[5], "ok")
    assert before.best() == "best so far: t7 seed 0, val_accuracy 0.9000"


def screen_of(folder: Path, names: str, monkeypatch: pytest.MonkeyPatch, terminal: bool = False) -> Screen:
    """Return the screen of jobs with these names, on which nothing is shown in colour; time stands still."""
    monkeypatch.setattr(progress_table.time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(
        progress_table,
        "Console",
        lambda: Console(width=70, color_system=None, force_terminal=terminal, file=io.StringIO()),
    )
    trials = [Trial(name, name, {}, ()) for name in names.split()]
    return Screen(jobs_of(folder, Experiment("mine", {}, trials, [0], {})), None)


def test_without_a_terminal_each_event_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = screen_of(tmp_path, "a b c d", monkeypatch)
    a, b, c, d = screen.jobs
    for job in (a, b, c):
        screen.update(job, "running")
        job.run_dir.mkdir(parents=True)
        job.log.parent.mkdir(exist_ok=True)
        job.log.write_text(f"step 1\rstep 2\n{job.trial.name} has no space left \n\n")
    write_record(a.run_dir, new_record() | {"status": "ok", "val_accuracy": 0.75, "wall_seconds": 12})
    write_record(c.run_dir, new_record() | {"status": "ok", "wall_seconds": 12})
    screen.update(a, "ok")
    screen.update(b, "failed")
    screen.update(c, "ok")
    screen.update(d, "interrupted")
    assert capsys.readouterr().out.splitlines() == [
        f"[0/4] a seed 0: running, output in {a.log}",
        f"[0/4] b seed 0: running, output in {b.log}",
        f"[0/4] c seed 0: running, output in {c.log}",
        "[1/4] a seed 0: ok, val_accuracy 0.7500",
        "[2/4] b seed 0: failed, b has no space left",
        "[3/4] c seed 0: ok",
        "[4/4] d seed 0: interrupted",
    ]
    sentence = "a sentence " * 40 + "in one line"  # so that it can be searched for
    screen.say(sentence)
    assert screen.console.file.getvalue() == f"{sentence}\n"
    with screen.live():
        pass
    assert screen.console.file.getvalue() == f"{sentence}\n"  # no table


def test_the_table_has_the_seconds_and_the_last_output_of_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = screen_of(tmp_path, "a b c d", monkeypatch, terminal=True)
    a, b, c, _ = screen.jobs
    for job, start in ((a, 20.0), (b, 40.0), (c, 99.4)):
        monkeypatch.setattr(progress_table.time, "monotonic", lambda start=start: start)
        screen.update(job, "running")
    monkeypatch.setattr(progress_table.time, "monotonic", lambda: 1300.0)
    for job in (a, b):
        job.run_dir.mkdir(parents=True)
        job.log.parent.mkdir(exist_ok=True)
    write_record(a.run_dir, new_record() | {"status": "ok", "val_loss": 0.25, "wall_seconds": 61.5})
    screen.update(a, "ok")
    b.log.write_text("x" * 500 + "\n" + "out of memory")
    screen.update(b, "oom")
    assert capsys.readouterr().out == ""  # on a terminal there are no lines
    table = screen.table()
    assert (table.title, table.caption) == (
        "4 runs: 1 waiting, 1 running, 1 ok, 1 oom",
        "best so far: a seed 0, val_loss 0.2500",
    )
    assert [column.header for column in table.columns] == ["trial", "state", "seconds", "last output"]
    assert [column.justify for column in table.columns] == ["left", "left", "right", "left"]
    assert [column.no_wrap for column in table.columns] == [True, True, True, False]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert list(zip(*cells, strict=True)) == [
        ("a seed 0", "ok", "62", "val_loss 0.2500"),
        ("b seed 0", "oom", "", "out of memory"),
        ("c seed 0", "running", "1,201", ""),  # has no output yet
    ]
    styles = [cell.style for cell in table.columns[1].cells]
    assert styles == ["green", "red", "cyan"]
    with screen.live():
        pass
    assert "best so far: a seed 0, val_loss 0.2500" in screen.console.file.getvalue()


@pytest.mark.parametrize(
    ("record", "metric", "expected"),
    [
        ({"main_metrics": ["val_f1", "val_x"], "val_f1": 0.5, "val_accuracy": 0.9}, None, (0.5, "val_f1", 0.5)),
        ({"main_metrics": ["val_f1"], "val_accuracy": 0.9}, None, None),  # f1 is undefined, and 0.9 of another metric
        ({"val_accuracy": 0.9, "val_loss": 0.1}, None, (0.9, "val_accuracy", 0.9)),
        ({"main_metrics": []}, None, None),
        ({"val_accuracy": 0.9}, "val_loss", None),
        ({"peak_rss_bytes": 7}, "peak_rss_bytes", (-7, "peak_rss_bytes", 7)),
        ({"step_seconds_p50": 7.0}, "step_seconds_p50", (-7, "step_seconds_p50", 7)),
        ({"energy_joules": 7.0}, "energy_joules", (-7, "energy_joules", 7)),
        ({"other_metrics": {"val_mine": 2.0}, "metric_directions": {"mine": "lower"}}, "val_mine", (-2, "val_mine", 2)),
        ({"other_metrics": {"val_mine": 2.0}, "metric_directions": {"mine": "higher"}}, "val_mine", (2, "val_mine", 2)),
        ({"other_metrics": {"val_mine": 2.0}}, "val_mine", (None, "val_mine", 2)),
        ({"train_tokens_per_second": 7.0}, "train_tokens_per_second", (7, "train_tokens_per_second", 7)),
    ],
)  # fmt: skip
def test_the_score_of_a_run(record: dict[str, Any], metric: str | None, expected: Any) -> None:
    assert score(new_record() | record, metric) == expected


def test_no_run_is_the_best_or_chosen_if_it_is_unknown_which_values_are_better(tmp_path: Path) -> None:
    """The highest would be chosen of a metric of which the lowest is best, such as a distance."""
    values = {"rate": 1.0}
    trial = Trial(
        "t", "t", {}, (), candidates=(Trial("c", "c", {}, (), (), values), Trial("d", "d", {}, (), (), {"rate": 2.0}))
    )
    record = new_record() | {"status": "ok", "wall_seconds": 1.0, "other_metrics": {"val_mine": 2.0}}
    screen = Screen(jobs_of(tmp_path, Experiment("mine", {}, [trial], [0], {})), "val_mine")
    screen._set(screen.jobs[0], "ok", record)
    assert screen.best() == ""
    assert "val_mine 2.0000" in screen._score(screen.jobs[0])
    jobs = [SimpleNamespace(trial=candidate, record=lambda: record) for candidate in trial.candidates]
    with pytest.raises(UserError, match="metric val_mine: it is unknown whether higher or lower values are better"):
        choose(trial, [1000], jobs, "val_mine")
    record["metric_directions"] = {"mine": "lower"}
    assert choose(trial, [1000], jobs, "val_mine").chosen == values


@pytest.mark.parametrize("early", [1, 2, 3])
def test_runs_that_go_on_while_many_others_end_stay_in_the_table(tmp_path: Path, early: int) -> None:
    trials = [Trial(f"t{i}", f"t{i}", {}, ()) for i in range(3 * SHOWN)]
    screen = Screen(jobs_of(tmp_path, Experiment("mine", {}, trials, [0], {})), None)
    running = [*range(early), 3 * SHOWN - 1]
    for number, job in enumerate(screen.jobs):
        screen.update(job, "running" if number in running else "failed")
    shown = [str(cell) for cell in screen.table().columns[0].cells]
    ended = range(3 * SHOWN - 1 - (SHOWN - len(running)), 3 * SHOWN - 1)  # the last to end, above
    assert shown == [f"t{number} seed 0" for number in (*ended, *running)]

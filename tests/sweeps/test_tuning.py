"""`tune` in experiment files: each trial chooses its values by tuning runs, and its final runs use the choice."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.analysis.comparison.grouping import find_runs
from litpeft.analysis.comparison.sweep_folder import read_sweep
from litpeft.analysis.comparison.tuning import tuning_sentences
from litpeft.errors import UserError
from litpeft.runs.record import new_record, read_record, write_record
from litpeft.sweeps.experiment import Experiment, read_experiment
from litpeft.sweeps.folder import tuning_jobs_of
from litpeft.sweeps.launchers import LAUNCHERS
from litpeft.sweeps.tuning import choose
from tests.forking import litpeft

LR = "model.optimizer.lr"
METHODS = {"full": {"configs": ["none"], "tune": {LR: [1e-4, 3e-4]}}, "lora": {"configs": ["lora"]}}
TUNE = {LR: [1e-4, 1e-3, 1e-2]}
CONTENT: dict[str, Any] = {
    "configs": ["base", "sst2", "adamw"],
    "options": {"model.model_name": "roberta-base"},
    "axes": {"method": METHODS},
    "tune": TUNE,
    "metric": "val_accuracy",
}


def read(tmp_path: Path, change: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CONTENT | (change or {}), sort_keys=False))
    return read_experiment(
        str(tmp_path / "mine.yaml"), {key.replace("__", "."): value for key, value in settings.items()}
    )


def test_each_trial_has_a_candidate_for_each_combination_of_its_values(tmp_path: Path) -> None:
    experiment = read(tmp_path, {"tune": TUNE | {"data.batch_size": [8, 16]}})
    full, lora = experiment.trials
    assert [each.values for each in full.candidates] == [  # its own rates, the batch sizes of the experiment
        {LR: lr, "data.batch_size": size} for lr in (1e-4, 3e-4) for size in (8, 16)
    ]
    assert len(lora.candidates) == 6
    assert lora.candidates[1].name == "tuning/lora/lr=0.0001,batch_size=16"
    assert {f"--{LR}=0.0001", "--data.batch_size=16"} <= set(lora.candidates[1].arguments)
    assert not any(LR in argument for argument in lora.arguments)
    assert full.candidates[0].shown(full.candidates[0].label) == "tuning: full,lr=0.0001,batch_size=8"


def test_numbers_without_a_decimal_point_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4 as text."""
    (tmp_path / "mine.yaml").write_text(f"configs: [base]\naxes: {{adapter: [lora]}}\ntune: {{{LR}: [1e-4, 1.0e-3]}}\n")
    (trial,) = read_experiment(str(tmp_path / "mine.yaml")).trials
    assert [each.values[LR] for each in trial.candidates] == [1e-4, 1e-3]


def test_an_excluded_point_is_not_tuned(tmp_path: Path) -> None:
    axes = {"method": METHODS, "data.max_length": [32, 64]}
    experiment = read(tmp_path, {"axes": axes, "exclude": [{"method": "full", "data.max_length": 64}]})
    assert [(trial.label, len(trial.candidates)) for trial in experiment.trials] == [
        *(("full,max_length=32", 2), ("lora,max_length=32", 3), ("lora,max_length=64", 3)),
    ]


def test_like_takes_the_values_and_seeds_of_tune(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(CONTENT | {"tune_seeds": [5, 6]}))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"like": str(tmp_path / "large.yaml"), "question": "What?"}))
    experiment = read_experiment(str(tmp_path / "small.yaml"))
    assert ([len(trial.candidates) for trial in experiment.trials], experiment.tune_seeds) == ([2, 3], [5, 6])


@pytest.mark.parametrize(
    ("seeds", "tune_seeds", "expected"),
    [(3, None, [1000]), (3, 2, [1000, 1001]), ([4, 2000], 1, [2001]), (3, [7, 9], [7, 9])],
)
def test_tuning_seeds_are_none_of_the_final_seeds(
    tmp_path: Path, seeds: Any, tune_seeds: Any, expected: list[int]
) -> None:
    assert read(tmp_path, {"seeds": seeds, "tune_seeds": tune_seeds}).tune_seeds == expected


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"seeds": 3, "tune_seeds": [7, 2]},
            r"tune_seeds: seed 2 is also in seeds; choose seeds that no final run has",
        ),
        ({"tune_seeds": "a"}, r"tune_seeds must be a number of seeds, or a list of different seeds, got 'a'"),
        ({"tune": {LR: 1e-4}}, r"tune.model.optimizer.lr must be a list of values to try, got 0.0001"),
        ({"tune": {LR: [1e-4, 1e-4]}}, r"lr must be a list of different values, got lr=0.0001, lr=0.0001"),
        ({"tune": {LR: []}}, r"tune.model.optimizer.lr must be a list of different values, got no value"),
        ({"tune": [LR]}, r"tune: it must be a mapping with names as keys"),
        ({"tune": {"lr": [1]}}, r"tune: 'lr' is not an option of litpeft fit"),
        (
            {"axes": {"method": {"lora": {"configs": ["lora"], LR: 1e-3}}}},
            r"tune: model.optimizer.lr is also set for lora; give it there as tune with one value",
        ),
        ({"metric": "test_accuracy"}, r"metric test_accuracy: tune needs a validation metric; name one, such as val_l"),
        ({"axes": {"method": {"tuning": {}}}}, r"axes: the folder tuning is for tuning runs; rename .*'tuning'"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read(tmp_path, change)
    assert "\n" not in str(caught.value)


def test_a_tuned_option_must_not_be_typed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"litpeft sweep: {LR} is in tune of .*mine.yaml; leave it out, or change"):
        read(tmp_path, model__optimizer__lr="0.1")


@pytest.mark.parametrize(
    ("metric", "results", "chosen", "edge"),
    [  # a result per value and tuning seed: a number, or the status of a run without one
        ("val_accuracy", [(0.7, 0.7), (0.9, 0.8), (0.8, 0.8)], 1, None),
        ("val_accuracy", [(0.7, 0.7), (0.9, 0.5), (0.8, 0.8)], 2, "highest"),  # by the mean, not by the best seed
        ("val_accuracy", [(0.8, 0.8), (0.8, 0.8), (0.7, 0.7)], 0, "lowest"),  # a tie: the first
        ("val_accuracy", [(0.7, 0.7), (0.9, "failed"), ("oom", 0.9)], 0, "lowest"),
        ("val_accuracy", [(0.7, 0.7), (0.9, None), (0.6, 0.6)], 0, "lowest"),  # no value: NaN
        ("val_loss", [(0.7, 0.7), (0.5, 0.6), (0.8, 0.8)], 1, None),  # lower is better
        (None, [(0.7, 0.7), (0.9, 0.8), (0.8, 0.8)], 1, None),  # the main metric of the runs
        ("val_accuracy", [("failed", 0.7), ("oom", "oom"), (None, 0.8)], None, None),
    ],
)
def test_the_best_mean_is_chosen(
    tmp_path: Path, metric: str | None, results: list[tuple[Any, Any]], chosen: int | None, edge: str | None
) -> None:
    experiment = read(tmp_path, {"axes": {"adapter": ["lora"]}, "tune_seeds": 2})
    (trial,) = experiment.trials
    jobs = tuning_jobs_of(tmp_path, experiment)
    for job in jobs:
        result = results[trial.candidates.index(job.trial)][experiment.tune_seeds.index(job.seed)]
        found = {"status": result} if isinstance(result, str) else {"status": "ok", metric or "val_accuracy": result}
        job.run_dir.mkdir(parents=True)
        write_record(job.run_dir, new_record() | {"main_metrics": ["val_accuracy"]} | found)
    tuned = choose(trial, experiment.tune_seeds, jobs, metric)
    assert (tuned.metric, tuned.chosen) == (
        metric or "val_accuracy",
        chosen if chosen is None else {LR: TUNE[LR][chosen]},
    )
    assert tuned.edges == ({LR: edge} if edge else {})
    for tried, pair in zip(tuned.tried, results, strict=True):
        complete = all(isinstance(each, float) for each in pair)
        assert (tried.mean, tried.runs) == (fmean(pair) if complete else None, sum(isinstance(x, float) for x in pair))


@pytest.mark.parametrize(
    ("main_metrics", "metric", "chosen"),
    [(["val_f1", "val_accuracy"], "val_f1", 0), (["val_mcc"], "val_accuracy", 2), (None, "val_accuracy", 2)],
)
def test_without_a_metric_the_main_one_of_the_runs_decides_if_a_run_has_it(
    main_metrics: list[str] | None, metric: str, chosen: int, tmp_path: Path
) -> None:
    experiment = read(tmp_path, {"axes": {"adapter": ["lora"]}, "tune_seeds": 1})
    (trial,) = experiment.trials
    jobs = tuning_jobs_of(tmp_path, experiment)
    for job in jobs:
        place = trial.candidates.index(job.trial)
        found = {"status": "ok", "val_f1": 0.9 - place / 10, "val_accuracy": 0.5 + place / 10, "val_loss": 0.1}
        job.run_dir.mkdir(parents=True)
        write_record(job.run_dir, new_record() | {"main_metrics": main_metrics} | found)
    tuned = choose(trial, experiment.tune_seeds, jobs, None)
    assert (tuned.metric, tuned.chosen) == (metric, {LR: TUNE[LR][chosen]})


class Launcher:
    """Instead of training, write records whose accuracy depends on the method, the learning rate and the seed."""

    started: list[str] = []
    dies_at: str | None = None
    limit: int | None = None  # runs until it dies
    best = {"full": 3e-4, "lora": 1e-3}

    def __init__(self, **options: Any) -> None: ...

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        given = dict(zip(arguments[1:-1:2], arguments[2:-1:2], strict=True))
        run_dir = Path(given["--run_dir"])
        if self.dies_at and (self.dies_at in str(run_dir) or len(self.started) == self.limit):
            raise SystemExit("killed")  # no Exception: the sweep ends as if it was killed
        self.started.append(str(run_dir.relative_to("runs/mine")))
        config = yaml.safe_load(Path(given["--config"]).read_text())
        model, seed = config["model"]["init_args"], int(given["--seed_everything"])
        lr, best = (
            model["optimizer"]["init_args"]["lr"],
            self.best["lora" if "LoRA" in str(model["adapter"]) else "full"],
        )
        assert ("tuning" in str(run_dir)) == (not config["benchmarks"]["tasks"])  # benchmarks have test rows
        run_dir.mkdir(parents=True, exist_ok=True)
        result = {"status": "ok", "val_accuracy": 0.9 - abs(lr - best), "seed": seed, "adapter": "lora"}
        write_record(run_dir, new_record() | result | {"config": config | {"seed_everything": seed}})
        return 0

    def stop(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that runs the experiment with made-up runs, and returns the run folders that it started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(LAUNCHERS, "local", Launcher)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def run(
        change: dict[str, Any] | None = None, expected: int = 0, dies_at: str | None = None, options: str = ""
    ) -> list[str]:
        arguments = ["sweep", "mine.yaml", *options.split()]
        common = CONTENT["options"] | {"benchmarks.tasks": ["held_out"]}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CONTENT | {"options": common} | (change or {})))
        Launcher.started, Launcher.dies_at = [], dies_at
        if dies_at:
            with pytest.raises(SystemExit):
                main(arguments)
        else:
            assert main(arguments) == expected
        return Launcher.started

    yield run
    for number, handler in handlers:
        signal.signal(number, handler)


TUNING = [f"tuning/{run}/seed1000" for run in ("full/lr=0.0001", "full/lr=0.0003", *(f"lora/lr={x}" for x in TUNE[LR]))]
ROOT = Path("runs/mine")


def chosen() -> dict[str, float]:
    return {trial.label: trial.tuned.chosen[LR] for trial in read_sweep(ROOT).trials if trial.tuned}


def rates() -> dict[str, float]:
    """Return the learning rates of the final runs in their records."""
    found = {
        str(path.parent.relative_to(ROOT)): json.loads(path.read_text()) for path in ROOT.glob("*/seed*/record.json")
    }
    return {name: each["config"]["model"]["init_args"]["optimizer"]["init_args"]["lr"] for name, each in found.items()}


def test_final_runs_have_the_chosen_values_and_are_the_only_results(sweep: Any, capsys: pytest.CaptureFixture) -> None:
    assert sweep({"seeds": 2}) == [*TUNING, "full/seed0", "lora/seed0", "full/seed1", "lora/seed1"]
    assert rates() == {"full/seed0": 3e-4, "full/seed1": 3e-4, "lora/seed0": 1e-3, "lora/seed1": 1e-3}
    description = read_sweep(ROOT)
    assert "model.init_args.optimizer.init_args.lr" in description.varies  # compare does not call it confounded
    assert tuning_sentences(description) == (
        ["Tuned: full 0.0003, lora 0.001 (lr, chosen by val_accuracy on seed 1000)."],
        ["full chose the highest lr of 0.0001, 0.0003: a higher value may be better."],
    )
    assert "Tuned: full 0.0003, lora 0.001 (lr, chosen by val_accuracy on seed 1000)." in capsys.readouterr().out
    table = {
        trial.label: [(*each.values.values(), each.mean, each.runs) for each in trial.tuned.tried]
        for trial in description.trials
    }
    assert [(value, runs) for value, _, runs in table["lora"]] == [(1e-4, 1), (1e-3, 1), (1e-2, 1)]
    assert max(table["lora"], key=lambda row: row[1])[0] == 1e-3
    assert sorted(str(run.folder.relative_to(ROOT)) for run in find_runs([ROOT])) == sorted(rates())
    assert sweep({"seeds": 2}) == []  # nothing is repeated


def test_a_sweep_killed_between_tuning_and_final_runs_continues(sweep: Any) -> None:
    assert sweep(dies_at="mine/full/seed0") == [*TUNING, "lora/seed0"]
    before = chosen()
    assert sweep() == ["full/seed0"]
    assert chosen() == before == {"full": 3e-4, "lora": 1e-3}
    assert rates() == {"full/seed0": 3e-4, "lora/seed0": 1e-3}


def test_a_sweep_killed_while_tuning_chooses_after_all_tuning_runs(sweep: Any) -> None:
    assert sweep(dies_at="lora/lr=0.001/")[:2] == TUNING[:2]
    assert not chosen()
    assert not rates()
    assert "tuning/lora/lr=0.001/seed1000" in sweep()
    assert chosen() == {"full": 3e-4, "lora": 1e-3}


def better(run: str) -> None:
    """Change the record of a tuning run, so that its value would be chosen."""
    write_record(ROOT / run, read_record(ROOT / run) | {"val_accuracy": 0.99})


def test_a_choice_does_not_change_after_its_trial_has_started(sweep: Any, capsys: pytest.CaptureFixture) -> None:
    sweep(dies_at="mine/full/seed0")  # lora has started, full has not
    better(TUNING[0])
    better(TUNING[2])
    assert sweep({"seeds": 2}) == ["full/seed0", "full/seed1", "lora/seed1"]
    assert chosen() == {"full": 1e-4, "lora": 1e-3}
    assert rates()["lora/seed1"] == 1e-3
    for change in ({"tune": {LR: [1e-3, 1e-2]}}, {"tune_seeds": 2}):
        assert sweep({"seeds": 2} | change, expected=2) == []
        assert "was started with other values or seeds of tune; give another --dir" in capsys.readouterr().err


def test_a_trial_without_any_result_of_its_tuning_is_reported(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fails(self: Launcher, arguments: Sequence[str], log: Path) -> int:
        run(self, arguments, log)
        folder = Path(arguments[arguments.index("--run_dir") + 1])
        if "lora" in str(folder) or "lr=0.0001" in str(folder):
            write_record(folder, read_record(folder) | {"status": "failed", "error": "the loss is NaN"})
            return 1
        return 0

    run = Launcher.__call__
    monkeypatch.setattr(Launcher, "__call__", fails)
    assert sweep(expected=1) == [*TUNING, "full/seed0"]
    out, err = capsys.readouterr()
    assert "lora: no value of lr has a result on all tuning seeds." in out
    assert "litpeft: tuning: full,lr=0.0001 seed 1000 failed: the loss is NaN" in err  # not chosen, and no failure
    assert "rerun them with the same command and --retry" in err
    monkeypatch.setattr(Launcher, "__call__", run)
    Launcher.started = []
    assert main(["sweep", "mine.yaml", "--retry"]) == 0
    assert Launcher.started == [*TUNING[2:], "lora/seed0"]  # the choice of full has been used


EIGHT = {"tune": {LR: [1e-2, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 3e-2]}}  # in no order


@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.whole), 2])
def test_a_search_tries_a_part_of_the_values_of_each_trial(
    sweep: Any, capsys: pytest.CaptureFixture, jobs: int
) -> None:
    pytest.importorskip("optuna")
    options = f"--select optuna --trials 5 --jobs {jobs}"
    started = sweep(EIGHT, options=options)
    of_lora = {each for each in started if each.startswith("tuning/lora/")}
    assert (len(of_lora), sum(each.startswith("tuning/full/") for each in started), len(started)) == (5, 2, 9)
    trials = {trial.label: trial.tuned for trial in read_sweep(ROOT).trials}
    tried = [each for each in trials["lora"].tried if each.runs is not None]
    assert {f"tuning/lora/lr={each.values[LR]}/seed1000" for each in tried} == of_lora
    assert len(trials["lora"].tried) == 8
    assert chosen()["lora"] == max(tried, key=lambda each: each.mean).values[LR] == rates()["lora/seed0"]
    expected = f"lora {chosen()['lora']} (lr, chosen by val_accuracy on seed 1000 among 5 of 8 that a search tried)."
    assert expected in capsys.readouterr().out
    assert main(["report", str(ROOT), "--output", "report.html"]) == 0
    assert Path("report.html").read_text().count("not tried") == 3
    assert sweep(EIGHT, options=options) == []  # nothing is repeated, and the choice stays
    assert sorted(sweep(EIGHT | {"seeds": 2}, options=options)) == ["full/seed1", "lora/seed1"]


def test_a_search_for_values_that_is_killed_continues(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    with monkeypatch.context() as only:
        only.setattr(Launcher, "limit", 4)
        started = sweep(EIGHT, dies_at="any run", options="--select optuna --trials 5")
    assert not chosen()
    more = sweep(EIGHT, options="--select optuna --trials 5")
    tuning = [each for each in [*started, *more] if each.startswith("tuning/lora/")]
    assert (len(started), len(tuning), len(set(tuning))) == (4, 5, 5)
    assert rates().keys() == {"full/seed0", "lora/seed0"}


def test_a_search_with_enough_trials_tries_all_values_and_repeats_failed_ones_on_demand(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")

    def fails(self: Launcher, arguments: Sequence[str], log: Path) -> int:
        run(self, arguments, log)
        folder = Path(arguments[arguments.index("--run_dir") + 1])
        if "lr=0.001" in str(folder):
            write_record(folder, read_record(folder) | {"status": "failed", "error": "the loss is NaN"})
        return 0

    run = Launcher.__call__
    monkeypatch.setattr(Launcher, "__call__", fails)
    options = "--select optuna --trials 9"
    assert len(sweep(EIGHT, options=options, dies_at="mine/lora/seed0")) == 2 + 8 + 1
    assert chosen()["lora"] in (3e-4, 3e-3)
    monkeypatch.setattr(Launcher, "__call__", run)
    assert sweep(EIGHT, options=f"{options} --retry")[0] == "tuning/lora/lr=0.001/seed1000"
    assert chosen()["lora"] == 1e-3


def test_a_single_value_needs_no_tuning_run(sweep: Any) -> None:
    methods = {"full": METHODS["full"] | {"tune": {LR: [5e-4]}}, "lora": METHODS["lora"]}
    assert sweep({"axes": {"method": methods}}) == [*TUNING[2:], "full/seed0", "lora/seed0"]
    assert rates() == {"full/seed0": 5e-4, "lora/seed0": 1e-3}
    assert tuning_sentences(read_sweep(ROOT))[0][0] == "Tuned: full 0.0005 (lr, the only value)."


def test_a_dry_run_shows_the_numbers_of_runs_and_the_largest_candidate(
    tmp_path: Path,
    tiny_model: str,
    sentences: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    methods = {
        name: {"configs": ["lora"], **more} for name, more in (("a", {}), ("b", {"model.adapter.targets": ["mlp"]}))
    }
    change = {"axes": {"method": methods}, "tune": {"model.adapter.rank": [2, 8, 4], LR: [1e-3, 1e-2]}, "tune_seeds": 2}
    files = {"data.train_file": sentences["train"], "data.val_file": sentences["val"], "trainer.accelerator": "cpu"}
    content = CONTENT | change | {"options": {"model.model_name": tiny_model, **files}, "seeds": 3}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["sweep", "mine.yaml", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "2 trials x 3 seeds = 6 runs, after 24 tuning runs (seeds 1000, 1001)" in out
    row = next([cell.strip() for cell in line.split("│")] for line in out.splitlines() if line.startswith("│ a"))
    assert row[3] == "rank=2 8 4, lr=0.001 0.01"
    # query and value of two layers of width 32 with rank 8, and the head
    assert row[4] == f"{2 * 2 * 8 * (32 + 32) + 32 * 2 + 2:,}"
    assert not (tmp_path / "runs").exists()


RATES = {"adamw": [0.3, 0.003], "sgd": [0.03, 100.0]}  # with 0.3 and 100 the loss grows


@pytest.mark.slow
def test_a_tuned_sweep_of_real_runs(tmp_path: Path, tiny_model: str, sentences: dict[str, str]) -> None:
    options = {
        **{"model.model_name": tiny_model, "model.dtype": "fp32", "data.batch_size": 8, "trainer.max_epochs": 1},
        **{"data.train_file": sentences["train"], "data.val_file": sentences["val"], "trainer.accelerator": "cpu"},
        "trainer.enable_progress_bar": False,
    }
    content = {
        "configs": ["base", "sst2", "lora", "adamw"],
        "options": options,
        "axes": {"optimizer": {"adamw": {}, "sgd": {"model.optimizer": "torch.optim.SGD", "tune": {LR: RATES["sgd"]}}}},
        "tune": {LR: RATES["adamw"]},
        "metric": "val_loss",
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = litpeft("sweep", "tiny.yaml", "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "runs" / "tiny"
    best = {}
    for name, values in RATES.items():
        losses = {lr: read_record(root / "tuning" / name / f"lr={lr}" / "seed1000")["val_loss"] for lr in values}
        best[name] = min(losses, key=losses.__getitem__)
        record = read_record(root / name / "seed0")
        assert record["optimizer_settings"][0]["initial_lr"] == best[name]
        assert record["seed"] == 0
    assert best == {"adamw": 0.003, "sgd": 0.03}
    assert "adamw 0.003, sgd 0.03 (lr, chosen by val_loss on seed 1000)" in done.stdout
    compared = litpeft("compare", str(root), cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "Left out" not in compared.stdout
    assert "differ in model.optimizer.lr" not in compared.stdout

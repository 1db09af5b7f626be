"""Experiment files: what their axes, variants and exclusions come to, and what is said of each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from litpeft.errors import UserError
from litpeft.runs.folder import changed_options
from litpeft.sweeps.experiment import Experiment, read_experiment
from litpeft.sweeps.resolve import resolve, varying

BASE: dict[str, Any] = {"configs": ["base", "sst2", "adamw"], "options": {"model.model_name": "roberta-base"}}


def read(tmp_path: Path, content: dict[str, Any], **settings: Any) -> Experiment:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_experiment(
        str(tmp_path / "mine.yaml"), {key.replace("__", "."): value for key, value in settings.items()}
    )


def test_six_lines_are_a_sweep_over_adapters_rates_and_seeds(tmp_path: Path) -> None:
    axes = {"adapter": ["none", "lora"], "model.optimizer.lr": [1e-4, 3e-4]}
    experiment = read(tmp_path, BASE | {"axes": axes, "seeds": 5})
    assert [trial.label for trial in experiment.trials] == [
        *("none,lr=0.0001", "none,lr=0.0003", "lora,lr=0.0001", "lora,lr=0.0003")
    ]
    assert experiment.trials[3].axes == {"adapter": "lora", "model.optimizer.lr": "0.0003"}
    assert experiment.seeds == [0, 1, 2, 3, 4]
    assert (experiment.name, experiment.told["baseline"]) == ("mine", "none,lr=0.0001")
    found = resolve(experiment.trials)["lora,lr=0.0003"]
    assert found["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 3e-4
    assert found["model"]["init_args"]["adapter"]["init_args"]["rank"] == 8
    assert found["trainer"]["max_epochs"] == 3


def test_a_long_value_makes_no_name_that_a_file_system_refuses(tmp_path: Path) -> None:
    axes = {"data.template": ["Say: " + "{instruction} " * 90, "Say:: " + "{instruction} " * 90]}
    names = [trial.name for trial in read(tmp_path, BASE | {"axes": axes}).trials]
    assert len(set(names)) == 2
    assert max(len(name.encode()) for name in names) <= 120


def test_lists_go_together_variants_are_named_and_exclusions_leave_out(tmp_path: Path) -> None:
    axes = {
        "adapter": ["lora", "dora"],
        "size": {"model.adapter.rank": [2, 4], "model.adapter.alpha": [4, 8]},
        "text": {"little": {"data.train_samples": 9}, "all": {}, "long": {"configs": ["lora"], "data.max_length": 64}},
    }
    exclude = [{"adapter": "dora", "size": 4}, {"text": ["all", "long"], "adapter": "dora"}]
    experiment = read(tmp_path, BASE | {"axes": axes, "exclude": exclude, "seeds": [3]}, data__batch_size=5)
    assert [trial.label for trial in experiment.trials] == [
        *("lora,rank=2,little", "lora,rank=2,all", "lora,rank=2,long"),
        *("lora,rank=4,little", "lora,rank=4,all", "lora,rank=4,long"),
        "dora,rank=2,little",
    ]
    found = resolve(experiment.trials)
    adapters = {name: config["model"]["init_args"]["adapter"]["init_args"] for name, config in found.items()}
    assert [(a["rank"], a["alpha"]) for a in adapters.values()] == [(2, 4)] * 3 + [(4, 8)] * 3 + [(2, 4)]
    assert found["dora,rank=2,little"]["data"]["init_args"]["train_samples"] == 9
    assert {config["data"]["init_args"]["batch_size"] for config in found.values()} == {5}
    assert varying(found.values()) == [
        "data.init_args.max_length",
        "data.init_args.train_samples",
        "model.init_args.adapter.class_path",
        "model.init_args.adapter.init_args.alpha",
        "model.init_args.adapter.init_args.rank",
    ]


def test_nothing_of_one_trials_optimizer_reaches_another(tmp_path: Path) -> None:
    options = BASE["options"] | {"model.optimizer.weight_decay": 0.3}
    axes = {
        "optimizer": {
            "adamw": {},
            "sgd": {"model.optimizer": "torch.optim.SGD", "model.optimizer.lr": 0.5},
            "file": {"configs": ["sgd"], "model.optimizer.weight_decay": 0.0},
        },
        "schedule": {"linear": {}, "cosine": {"model.scheduler": "WarmupCosine"}},
    }
    found = resolve(read(tmp_path, BASE | {"options": options, "axes": axes}).trials)
    made = {name: config["model"]["init_args"]["optimizer"] for name, config in found.items()}
    assert made["adamw,linear"]["init_args"]["weight_decay"] == 0.3
    assert made["sgd,linear"]["class_path"] == "torch.optim.SGD"
    assert (made["sgd,cosine"]["init_args"]["lr"], made["sgd,cosine"]["init_args"]["weight_decay"]) == (0.5, 0)
    assert made["file,linear"]["init_args"]["momentum"] == 0.9
    assert found["adamw,cosine"]["model"]["init_args"]["scheduler"]["init_args"]["warmup"] == 0.06


def test_a_rate_of_an_axis_holds_for_a_class_that_is_named_after_it(tmp_path: Path) -> None:
    """The class would set its own rate again, under a label that says otherwise."""
    axes = {"model.optimizer.lr": [0.5, 0.25], "model.optimizer": ["torch.optim.SGD", "torch.optim.AdamW"]}
    for typed in ({}, {"model.optimizer": "torch.optim.SGD"}):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(BASE | {"axes": axes}, sort_keys=False))
        trials = read_experiment(str(tmp_path / "mine.yaml"), typed).trials
        found = [config["model"]["init_args"]["optimizer"]["init_args"]["lr"] for config in resolve(trials).values()]
        assert found == [0.5, 0.5, 0.25, 0.25]


def test_a_trial_is_what_fit_would_run_by_the_same_options(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from litpeft.__main__ import main

    experiment = read(tmp_path, BASE | {"axes": {"adapter": ["lora", "qlora-fp4"], "data.max_length": [32, 64]}})
    trial = experiment.trials[3]
    main(["fit", *trial.words, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    printed["data"]["init_args"]["tokenizer"] = "roberta-base"  # what the verb itself fills in
    differing = changed_options(printed, resolve(experiment.trials)[trial.name])
    assert not {name for name in differing if not name.startswith(("run_dir", "experiment", "resume", "overwrite"))} - {
        "ckpt_path",
        "weights_only",
    }


def test_a_twin_has_the_axes_of_the_other_and_not_what_was_published(tmp_path: Path) -> None:
    axes = {"adapter": ["lora", "dora"]}
    (tmp_path / "large.yaml").write_text(
        yaml.safe_dump(BASE | {"axes": axes, "question": "What?", "published": {"rows": []}})
    )
    experiment = read(tmp_path, {"like": str(tmp_path / "large.yaml"), "options": {"model.model_name": "mine"}})
    assert [trial.label for trial in experiment.trials] == ["lora", "dora"]
    assert (experiment.told["question"], experiment.told["published"]) == ("What?", None)
    assert "--model.model_name=mine" in experiment.trials[0].words


def test_what_a_twin_is_like_may_be_a_twin_itself(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(BASE | {"seeds": 5, "published": {"rows": []}}))
    second.write_text(yaml.safe_dump({"like": str(first), "axes": AXES}))
    experiment = read(tmp_path, {"like": str(second), "question": "What?"})
    assert (len(experiment.seeds), experiment.told["published"]) == (5, None)
    assert "--model.model_name=roberta-base" in experiment.trials[0].words
    first.write_text(yaml.safe_dump({"like": str(second)}))
    with pytest.raises(UserError, match=r"first.yaml: like: leads back to it"):
        read(tmp_path, {"like": str(first)})


AXES = {"adapter": ["lora", "dora"]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"axis": {}}, r"unknown key 'axis'; an experiment has like, question, "),
        ({"like": {"a": 1}}, r"mine.yaml: like must be the name of an experiment or a file, got {'a': 1}"),
        ({"like": "nowhere"}, r"mine.yaml: like: .*nowhere: no such file"),
        ({"axes": None}, r"there is no `axes`"),
        ({"axes": {None: ["lora"]}}, r"axes must hold options by name, got {None: "),
        ({"axes": {"adapter": ["lora", "lore"]}}, r"lore: no such file, and no shipped configuration .*lora"),
        ({"axes": {"adapter": ["lora", "lora"]}}, r"axes.adapter: needs values, each once, got lora, lora"),
        ({"axes": {"adapter": []}}, r"axes.adapter: needs values, each once, got none"),
        ({"axes": {"adapter": "lora"}}, r"axes.adapter must be a list of values, or a mapping of named variants"),
        ({"axes": {"a": {"data.max_length": [1, 2], "data.batch_size": [1]}}}, r"axes.a: lists .* of one length"),
        (
            {"axes": {"a": {"x": {"rank": 8}}}},
            r"axes.a.x: 'rank' is no option of litpeft fit, such as model.adapter.rank",
        ),
        ({"axes": {"a": {"x": 3}}}, r"axes.a.x: variant must hold options by name, got 3"),
        ({"axes": AXES, "options": {"seed_everything": 1}}, r"options: seed_everything is given by the sweep itself"),
        ({"axes": AXES, "exclude": [{"adaptor": "lora"}]}, r"exclude names 'adaptor', but the axes are adapter"),
        ({"axes": AXES, "exclude": [{"adapter": "none"}]}, r"adapter has no value 'none'; it has lora, dora"),
        ({"axes": AXES, "exclude": [{"adapter": ["lora", "dora"]}]}, r"exclude leaves no trial"),
        ({"axes": AXES, "seeds": 0}, r"seeds must be a number of seeds, or a list of different ones, got 0"),
        ({"axes": AXES, "seeds": [1, 1]}, r"seeds must be .* got \[1, 1\]"),
        ({"axes": AXES, "baseline": "none"}, r"baseline 'none' is no trial; there are lora, dora"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read(tmp_path, BASE | change)
    assert "\n" not in str(caught.value)


def test_a_run_s_configuration_is_told_from_an_experiment() -> None:
    with pytest.raises(UserError, match="it is a configuration of one run: litpeft fit --config minilm_sst2"):
        read_experiment("minilm_sst2")
    with pytest.raises(UserError, match="litpeft sweep is_the_diff: no such file"):
        read_experiment("is_the_diff")


def test_a_trial_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    axes = {"adapter": {"lora": {"configs": ["lora"]}, "wrong": {"configs": ["lora"], "model.adapter.rnak": 3}}}
    with pytest.raises(UserError, match=r"trial wrong: .*rnak.*did you mean rank"):
        resolve(read(tmp_path, BASE | {"axes": axes}).trials)


ONE_BATCH = """
import json, sys
from litpeft.commands import sweep
from litpeft.sweeps.experiment import read_experiment
from litpeft.cli.console import quieten
from litpeft.sweeps.resolve import resolve
(config,) = resolve(read_experiment(sys.argv[1]).trials).values()
print(json.dumps(config["trainer"]["limit_train_batches"]))
"""


def test_one_batch_is_not_all_of_them(tmp_path: Path) -> None:
    """Which of int and float Lightning takes 1 for depends on what was imported before it."""
    content = BASE | {"axes": {"adapter": ["lora"]}, "options": BASE["options"] | {"trainer.limit_train_batches": 1}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-c", ONE_BATCH, str(tmp_path / "mine.yaml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(("name", "warmup"), [("lora_insights", 100), ("lora_insights_small", 2)])
def test_with_and_without_cosine_the_rate_rises_alike(name: str, warmup: int) -> None:
    """A schedule that is named anew has its own warm-up, and the trials would differ in that too."""
    words = [" ".join(trial.words) for trial in read_experiment(name).trials]
    cosine = [line for line in words if "WarmupCosine" in line]
    assert len(cosine) == 3
    assert all(line.index(f"warmup={warmup}") > line.index("WarmupCosine") for line in cosine)

"""Experiment files: axes, variants, exclusions, and error messages."""

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


def test_axes_form_a_grid_of_adapters_and_learning_rates(tmp_path: Path) -> None:
    axes = {"adapter": ["none", "lora"], "model.optimizer.lr": [1e-4, 3e-4]}
    experiment = read(tmp_path, BASE | {"axes": axes, "seeds": 5})
    assert [trial.label for trial in experiment.trials] == [
        *("none,lr=0.0001", "none,lr=0.0003", "lora,lr=0.0001", "lora,lr=0.0003")
    ]
    assert experiment.trials[3].axes == {"adapter": "lora", "model.optimizer.lr": "0.0003"}
    assert experiment.seeds == [0, 1, 2, 3, 4]
    assert (experiment.name, experiment.description["baseline"]) == ("mine", "none,lr=0.0001")
    found = resolve(experiment.trials)["lora,lr=0.0003"]
    assert found["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 3e-4
    assert found["model"]["init_args"]["adapter"]["init_args"]["rank"] == 8
    assert found["trainer"]["max_epochs"] == 3


def test_a_long_value_gives_a_valid_folder_name(tmp_path: Path) -> None:
    axes = {"data.template": ["Say: " + "{instruction} " * 90, "Say:: " + "{instruction} " * 90]}
    names = [trial.name for trial in read(tmp_path, BASE | {"axes": axes}).trials]
    assert len(set(names)) == 2
    assert max(len(name.encode()) for name in names) <= 120


def test_joint_lists_named_variants_and_exclusions(tmp_path: Path) -> None:
    axes = {
        "adapter": ["lora", "dora"],
        "size": {"model.adapter.rank": [2, 4], "model.adapter.alpha": [4, 8]},
        "text": {"small": {"data.train_samples": 9}, "all": {}, "long": {"configs": ["lora"], "data.max_length": 64}},
    }
    exclude = [{"adapter": "dora", "size": 4}, {"text": ["all", "long"], "adapter": "dora"}]
    experiment = read(tmp_path, BASE | {"axes": axes, "exclude": exclude, "seeds": [3]}, data__batch_size=5)
    assert [trial.label for trial in experiment.trials] == [
        *("lora,rank=2,small", "lora,rank=2,all", "lora,rank=2,long"),
        *("lora,rank=4,small", "lora,rank=4,all", "lora,rank=4,long"),
        "dora,rank=2,small",
    ]
    found = resolve(experiment.trials)
    adapters = {name: config["model"]["init_args"]["adapter"]["init_args"] for name, config in found.items()}
    assert [(a["rank"], a["alpha"]) for a in adapters.values()] == [(2, 4)] * 3 + [(4, 8)] * 3 + [(2, 4)]
    assert found["dora,rank=2,small"]["data"]["init_args"]["train_samples"] == 9
    assert {config["data"]["init_args"]["batch_size"] for config in found.values()} == {5}
    assert varying(found.values()) == [
        "data.init_args.max_length",
        "data.init_args.train_samples",
        "model.init_args.adapter.class_path",
        "model.init_args.adapter.init_args.alpha",
        "model.init_args.adapter.init_args.rank",
    ]


def test_optimizer_options_of_one_trial_do_not_reach_another(tmp_path: Path) -> None:
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


def test_a_learning_rate_of_an_axis_applies_to_a_class_named_later(tmp_path: Path) -> None:
    """Otherwise naming the class would reset the learning rate of the label."""
    axes = {"model.optimizer.lr": [0.5, 0.25], "model.optimizer": ["torch.optim.SGD", "torch.optim.AdamW"]}
    for typed in ({}, {"model.optimizer": "torch.optim.SGD"}):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(BASE | {"axes": axes}, sort_keys=False))
        trials = read_experiment(str(tmp_path / "mine.yaml"), typed).trials
        found = [config["model"]["init_args"]["optimizer"] for config in resolve(trials).values()]
        assert [each["init_args"]["lr"] for each in found] == [0.5, 0.5, 0.25, 0.25]
        if not typed:
            assert [each["class_path"].rpartition(".")[2] for each in found] == ["SGD", "AdamW"] * 2


def test_a_trial_resolves_like_fit_with_the_same_options(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from litpeft.__main__ import main

    experiment = read(tmp_path, BASE | {"axes": {"adapter": ["lora", "qlora-fp4"], "data.max_length": [32, 64]}})
    trial = experiment.trials[3]
    main(["fit", *trial.arguments, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    printed["data"]["init_args"]["tokenizer"] = "roberta-base"  # filled in by fit
    differing = changed_options(printed, resolve(experiment.trials)[trial.name])
    assert not {name for name in differing if not name.startswith(("run_dir", "experiment", "resume", "overwrite"))} - {
        "ckpt_path",
        "weights_only",
    }


def test_like_takes_all_keys_except_published(tmp_path: Path) -> None:
    axes = {"adapter": ["lora", "dora"]}
    (tmp_path / "large.yaml").write_text(
        yaml.safe_dump(BASE | {"axes": axes, "question": "What?", "published": {"rows": []}})
    )
    experiment = read(tmp_path, {"like": str(tmp_path / "large.yaml"), "options": {"model.model_name": "mine"}})
    assert [trial.label for trial in experiment.trials] == ["lora", "dora"]
    assert (experiment.description["question"], experiment.description["published"]) == ("What?", None)
    assert "--model.model_name=mine" in experiment.trials[0].arguments


def test_like_may_be_chained(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(BASE | {"seeds": 5, "published": {"rows": []}}))
    second.write_text(yaml.safe_dump({"like": str(first), "axes": AXES}))
    experiment = read(tmp_path, {"like": str(second), "question": "What?"})
    assert (len(experiment.seeds), experiment.description["published"]) == (5, None)
    assert "--model.model_name=roberta-base" in experiment.trials[0].arguments
    first.write_text(yaml.safe_dump({"like": str(second)}))
    with pytest.raises(UserError, match=r"first.yaml: like refers back to this file"):
        read(tmp_path, {"like": str(first)})


@pytest.mark.parametrize(
    ("axis", "values", "label"),
    [
        ("model.adapter.rslora", [True, False], "rslora=false"),
        ("model.scheduler", ["litpeft.optim.WarmupCosine", None], "scheduler=null"),
        ("model.optimizer", ["torch.optim.SGD", "torch.optim.AdamW"], "optimizer=AdamW"),
        ("model.adapter.targets", [["query", "value"], ["mlp"]], "targets=[mlp]"),
        ("model.optimizer.lr", [3.0e-5, 1.0e-5], "lr=1e-05"),
        ("data.train_file", ["a/one.csv", "a/two.csv"], "train_file=two.csv"),
        ("model.adapter.rank", [4, 8], "rank=8"),
    ],
)
def test_a_baseline_and_an_exclusion_may_give_a_value_as_the_axis_has_it(
    tmp_path: Path, axis: str, values: list[Any], label: str
) -> None:
    given = {"axes": {axis: values}, "baseline": {axis: values[1]}}
    assert read(tmp_path, BASE | given).description["baseline"] == label
    excluded = {"axes": {axis: values}, "exclude": [{axis: [values[0]]}]}
    assert [trial.label for trial in read(tmp_path, BASE | excluded).trials] == [label]


def test_a_baseline_may_give_some_of_the_axes(tmp_path: Path) -> None:
    size = {"model.adapter.rank": [4, 8], "model.adapter.alpha": [8, 16]}
    grid = {"axes": {"adapter": ["lora", "full"], "size": size}}
    for given, label in (
        ({"adapter": "full"}, "none,rank=4"),
        ({"adapter": "none", "size": 8}, "none,rank=8"),
        ({"size": "rank=8"}, "lora,rank=8"),
    ):
        assert read(tmp_path, BASE | grid | {"baseline": given}).description["baseline"] == label


AXES = {"adapter": ["lora", "dora"]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"axis": {}}, r"unknown key 'axis'; an experiment has like, question, "),
        ({"like": {"a": 1}}, r"mine.yaml: like must be the name of an experiment or a file, got {'a': 1}"),
        ({"like": "nowhere"}, r"mine.yaml: like: .*nowhere: no such file"),
        ({"axes": None}, r"axes is missing; list the values in which the runs differ"),
        ({"axes": {None: ["lora"]}}, r"axes must be a mapping with names as keys, got {None: "),
        ({"axes": {"adapter": ["lora", "lore"]}}, r"lore: no such file and no packaged configuration .*lora"),
        ({"axes": {"adapter": ["lora", "lora"]}}, r"axes.adapter must be a list of different values, got lora, lora"),
        ({"axes": {"adapter": []}}, r"axes.adapter must be a list of different values, got no value"),
        ({"axes": {"adapter": "lora"}}, r"axes.adapter must be a list of values, or a mapping of named variants"),
        ({"axes": {"a": {"data.max_length": [1, 2], "data.batch_size": [1]}}}, r"axes.a: lists .* the same length"),
        (
            {"axes": {"a": {"x": {"rank": 8}}}},
            r"axes.a.x: 'rank' is not an option of litpeft fit, such as model.adapter.rank",
        ),
        ({"axes": {"a": {"x": 3}}}, r"axes.a.x: variant must be a mapping with names as keys, got 3"),
        (
            {"axes": AXES, "options": {"seed_everything": 1}},
            r"options: seed_everything is set by the sweep; use configs or seeds instead",
        ),
        ({"axes": AXES, "exclude": [{"adaptor": "lora"}]}, r"exclude names 'adaptor', but the axes are adapter"),
        ({"axes": AXES, "exclude": [{"adapter": "none"}]}, r"adapter has no value 'none'; it has lora, dora"),
        ({"axes": AXES, "exclude": [{"adapter": ["lora", "dora"]}]}, r"exclude leaves no trial; remove a rule"),
        ({"axes": AXES, "seeds": 0}, r"seeds must be a number of seeds, or a list of different seeds, got 0"),
        ({"axes": AXES, "seeds": [1, 1]}, r"seeds must be .* got \[1, 1\]"),
        ({"axes": AXES, "seeds": [2**32]}, r"seeds must be .* got \[4294967296\]"),
        ({"axes": AXES, "seeds": [-1]}, r"seeds must be .* got \[-1\]"),
        ({"axes": AXES, "baseline": "none"}, r"baseline 'none' is not a trial; there are lora, dora"),
        ({"axes": AXES, "baseline": {"adaptor": "lora"}}, r"baseline names 'adaptor', but the axes are adapter"),
        ({"axes": AXES, "baseline": {"adapter": "none"}}, r"baseline: adapter has no value 'none'; it has lora, dora"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read(tmp_path, BASE | change)
    assert "\n" not in str(caught.value)


def test_seeds_are_those_of_numpy(tmp_path: Path) -> None:
    """0 to 2^32 - 1."""
    assert read(tmp_path, BASE | {"axes": AXES, "seeds": [0, 2**32 - 1]}).seeds == [0, 2**32 - 1]


def test_the_configuration_of_a_run_is_not_an_experiment() -> None:
    with pytest.raises(UserError, match="it configures a single run; use litpeft fit --config minilm_sst2"):
        read_experiment("minilm_sst2")
    with pytest.raises(UserError, match="litpeft sweep is_the_diff: no such file"):
        read_experiment("is_the_diff")


def test_an_invalid_trial_is_named(tmp_path: Path) -> None:
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


def test_one_batch_is_an_integer(tmp_path: Path) -> None:
    """Whether Lightning reads 1 as int or float depends on the imports before it."""
    content = BASE | {"axes": {"adapter": ["lora"]}, "options": BASE["options"] | {"trainer.limit_train_batches": 1}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-c", ONE_BATCH, str(tmp_path / "mine.yaml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(("name", "warmup"), [("lora_insights", 100), ("lora_insights_small", 2)])
def test_all_schedules_have_the_same_warmup(name: str, warmup: int) -> None:
    """Naming a schedule resets its warm-up, which would differ between trials."""
    commands = [" ".join(trial.arguments) for trial in read_experiment(name).trials]
    cosine = [line for line in commands if "WarmupCosine" in line]
    assert len(cosine) == 3
    assert all(line.index(f"warmup={warmup}") > line.index("WarmupCosine") for line in cosine)


def test_full_is_another_spelling_of_none_and_is_shown(tmp_path: Path) -> None:
    axes = {"adapter": ["full", "lora"], "model.optimizer.lr": [1e-4, 3e-4]}
    exclude = [{"adapter": "full", "model.optimizer.lr": 3e-4}]
    for baseline in ("full,lr=0.0001", "none,lr=0.0001", {"adapter": "full", "model.optimizer.lr": "0.0001"}):
        experiment = read(tmp_path, BASE | {"axes": axes, "exclude": exclude, "baseline": baseline})
        assert experiment.description["baseline"] == "none,lr=0.0001"
    full, lora, _ = experiment.trials
    assert (full.name, full.axes["adapter"]) == ("none,lr=0.0001", "none")  # run folders and sweep.yaml keep `none`
    assert (full.shown(full.label), lora.shown(lora.label)) == ("full,lr=0.0001", "lora,lr=0.0001")
    assert Path(full.arguments[full.arguments.index("--config", 6) + 1]).name == "none.yaml"

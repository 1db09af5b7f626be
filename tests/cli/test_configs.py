"""Shipped YAML files: the command in the first line of each parses, and trains one step on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.cli.config_files import find_config, packaged_configs
from litpeft.commands import configs
from litpeft.runs.record import read_record
from litpeft.sweeps.experiment import Trial, read_experiment
from litpeft.sweeps.resolve import resolve, varying
from tests.conftest import GOOD
from tests.data.image_files import write_images, write_vision_model
from tests.sweeps.test_studies import STUDIES

FILES = packaged_configs()
REPO = Path(__file__).parents[2]


def first_line(path: Path) -> list[str]:
    line = path.read_text().splitlines()[0]
    assert line.startswith("# litpeft "), path
    return shlex.split(line.removeprefix("# litpeft "))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file that every shipped data set can read, because it has all their columns."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    texts = ("text", "sentence", "sentence1", "sentence2", "first", "second")
    numbers = ("label", "rating", "higher")
    rows = [",".join([*[f"the {GOOD[i % 5]} film"] * 6, *[str(i % 2)] * 3, ("x|y", "x")[i % 2]]) for i in range(40)]
    path.write_text("\n".join([",".join([*texts, *numbers, "labels"]), *rows]) + "\n")
    return str(path)


def test_names_are_unique_and_every_file_is_found() -> None:
    paths = [*(REPO / "configs").rglob("*.yaml"), *(REPO / "experiments").rglob("*.yaml")]
    assert sorted(FILES.values()) == sorted(paths)
    assert all(find_config(name) == str(path) for name, path in FILES.items())


NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
LARGE = {"peft_methods", "peft_methods_small", "glue_average"}
EXPERIMENTS = {name for name, path in FILES.items() if "experiments" in path.parts}


def check_trials(name: str, trials: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litpeft.data.tabular.asset", lambda name, option: f"{name}.tsv")
    configs = resolve(trials)
    assert len(trials) == 1 or varying(configs.values())
    for trial in trials:
        assert configs[trial.name]["model"]["init_args"]["optimizer"], trial.label  # every trial names its optimizer


def with_each_value_once(trials: list[Trial]) -> list[Trial]:
    """Return trials that together have each value of each axis and of `tune`, but one number for all numbers."""
    seen: set[tuple[str, str]] = set()
    chosen = []
    for trial in trials:
        values = {*trial.axes.items(), *((option, str(value)) for option, value in trial.values.items())}
        if new := {(axis, "a number" if NUMBER.fullmatch(value) else value) for axis, value in values} - seen:
            seen |= new
            chosen.append(trial)
    return chosen


# every configuration of the large ones trains below, and tests/sweeps/test_studies.py resolves each trial of the studies
@pytest.mark.parametrize("name", sorted(EXPERIMENTS - LARGE - STUDIES.keys()))
def test_each_value_of_each_experiment_is_a_complete_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = read_experiment(name)
    check_trials(name, with_each_value_once(experiment.to_resolve()), monkeypatch)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_each_experiment_has_a_question_and_a_command(name: str) -> None:
    assert first_line(FILES[name])[:2] == ["sweep", name]
    assert read_experiment(name).description["question"].strip().endswith("?")


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_trial_of_each_experiment_is_a_complete_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_trials(name, read_experiment(name).to_resolve(), monkeypatch)


@pytest.mark.parametrize("name", [name for name in FILES if name not in EXPERIMENTS])
def test_the_command_of_each_file_trains_a_step(
    name: str, tmp_path: Path, tiny_model: str, tiny_llama: str, table: str
) -> None:
    arguments = first_line(FILES[name])
    if arguments == ["demo"]:
        arguments = ["fit", "--config", "demo"]
    assert name in arguments
    if name == "text_multi_label":
        arguments += ["--data.label_separator", "|"]  # the table is separated by commas
    if "CausalLM" in arguments or name in ("conversations", "snippet_chat", "text"):
        rows = [{"instruction": "a story", "input": "", "output": f"the {GOOD[i % 5]} film"} for i in range(40)]
        rows = [row | {"text": f"{row['instruction']} {i}"} for i, row in enumerate(rows)]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        tiny_model, table = tiny_llama, str(tmp_path / "rows.json")
    if name in ("digits", "food101", "image_folder"):
        tiny_model, table = write_vision_model(tmp_path / "vit"), write_images(tmp_path / "images", per_class=20)
    files = [] if name == "arithmetic" else ["--data.train_file", table]  # this data set generates its rows
    tiny = [*("--model.model_name", tiny_model), *files, *("--data.val_samples", "8", "--trainer.max_steps", "1")]
    tiny += [
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
        *("--run_dir", str(tmp_path / "run")),
    ]
    assert main([*arguments, *tiny]) == 0
    assert read_record(tmp_path / "run")["steps"] == (0 if name == "untrained" else 1)


@pytest.mark.parametrize("path", sorted((REPO / "configs" / "optim").glob("*.yaml")), ids=lambda path: path.stem)
def test_optimizer_configs_name_all_arguments(path: Path) -> None:
    """A missing argument could be taken from an earlier config (jsonargparse #460)."""
    import inspect

    import torch

    optimizer = yaml.safe_load(path.read_text())["model"]["init_args"]["optimizer"]
    cls = getattr(torch.optim, optimizer["class_path"].rpartition(".")[2])
    kept = {"lr"} if path.stem == "adamw" else set()  # AdamW keeps the rate of the adapter's config
    assert set(optimizer["init_args"]) == set(inspect.signature(cls).parameters) - {"params"} - kept


def test_the_configs_command_lists_prints_and_copies(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert configs.main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in FILES)
    assert configs.main(["lora"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["adapter"]["class_path"] == "LoRA"
    assert main(["configs", "lora", "--copy", str(tmp_path)]) == 0
    assert (tmp_path / "lora.yaml").read_text() == FILES["lora"].read_text()
    assert main(["configs", "lora", "--copy", str(tmp_path)]) == 2
    assert "lora.yaml exists already; give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "optimizer", "lr"),
    [
        (["--config", "lora", "--config", "adamw"], "torch.optim.AdamW", 1e-3),
        (["--config", "adamw", "--config", "lora"], "torch.optim.AdamW", 1e-3),
        (["--config=adamw", "--config=none"], "torch.optim.AdamW", 5e-5),
        (["--config", "sgd", "--config", "lora"], "torch.optim.SGD", 0.1),
        (["--config", "lora", "--config", "sgd"], "torch.optim.SGD", 0.1),
        (["--config", "sgd", "--config", "ia3"], "torch.optim.SGD", 0.1),
        (["--config", "adamw", "--config", "lora", "--model.optimizer.lr", "0.2"], "torch.optim.AdamW", 0.2),
        (
            ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.2", "--config", "lora"],
            "torch.optim.SGD",
            0.2,
        ),
        (["--config", "minilm_sst2", "--config", "lora"], "torch.optim.AdamW", 3e-3),  # a whole run with its own rate
        (["--config", "adamw"], "torch.optim.AdamW", 1e-3),  # AdamW's default
    ],
)
def test_the_rate_of_an_adapter_stays_and_a_named_optimizer_too_in_any_order(
    given: list[str], optimizer: str, lr: float
) -> None:
    trial = Trial("x", "x", {}, ("--config=base", "--config=sst2", "--data.train_file=x.tsv", *given))
    settings = resolve([trial])["x"]["model"]["init_args"]["optimizer"]
    assert (settings["class_path"], settings["init_args"]["lr"]) == (optimizer, lr)
    if optimizer.endswith("SGD"):
        assert "betas" not in settings["init_args"]

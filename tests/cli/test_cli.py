"""The command line: error messages, run folders, configurations, and start-up."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litpeft import __version__
from litpeft.__main__ import main
from litpeft.cli.arguments import typed_options, with_configs
from litpeft.cli.run_folder import lock_run_folder
from litpeft.cli.run_names import run_names
from litpeft.errors import UserError
from litpeft.runs.folder import check_run_folder
from litpeft.runs.record import new_record, read_record, write_record
from tests import forking
from tests.conftest import litpeft, write_sentences

ADAMW = ["--model.optimizer", "torch.optim.AdamW"]
MISTAKES = {
    "--model.adapter Lora": "model.adapter: no class named 'Lora' (did you mean LoRA?); known: ",
    "--model.adapter LoRA --model.adapter.rnk 8": "model.adapter has no option 'rnk' (did you mean rank?).",
    "--model.adapter LoRA --model.adapter.rank eight": "model.adapter.rank must be int, got eight.",
    "--model.adapter LoRA --model.adapter.rank -1": "model.adapter.rank must be at least 1, got -1.",
    "--model.adapter LoRA --model.adapter.targets [foo]": "model.adapter.targets 'foo' matches no layer of BertFor",
    "--modle.adapter LoRA": "unknown option --modle.adapter (did you mean --model.adapter?).",
    "--model.dtype fp8": "model.dtype must be one of 'bf16', 'fp16', 'fp32', got fp8.",
    "--model SeqCls": "model: no class named 'SeqCls'; known: ",
    "--data SST3": "data: no class named 'SST3' (did you mean SST2?); known: AGNews, Alpaca, ArithmeticInstructions, Conversations, Food101, GLUE, IMDB, ImageFolder, ",
    "--data.batch_size 0": "data.batch_size must be at least 1, got 0.",
    "--data.train_file none.tsv": "data.train_file none.tsv: No such file or directory.",
    "--data.text_column words": "line 2: no column 'words'; it has: sentence, label",
    "--data.max_length 5000": "data.max_length 5000 is more than the 512 tokens that",
    "--model.optimizer torch.optim.AdmW": "model.optimizer: there is no torch.optim.AdmW (did you mean torch.optim.AdamW?).",
    "--model.optimizer torch.optim.AdamW --model.optimizer.learning_rate 1": "model.optimizer has no option 'learning_rate'",
    "--model.scheduler WarmupCosin": "model.scheduler: no class named 'WarmupCosin' (did you mean WarmupCosine?).",
    "--model.scheduler WarmupCosine --model.scheduler.floor 2": "model.scheduler WarmupCosine: warmup must not be negative",
    "--model.model_name ./nowhere": "./nowhere: there is no such folder.",
    "--model.model_name roberta-base": "roberta-base: the hub cannot be reached, and the local cache has no copy; give a local",
    "--model.model_name package:no_such_package": "package:no_such_package: no such package is installed",
    "--trainer.max_epoch 3": "unknown option --trainer.max_epoch (did you mean --trainer.max_epochs?).",
    "--trainer.precision bf16-true": "trainer.precision bf16-true would also change the dtype of the trainable tensors",
    "--trainer.callbacks EarlyStoping": "trainer.callbacks: no class named 'EarlyStoping' (did you mean EarlyStopping?).",
    "--trainer.accelerator cuda": "`CUDAAccelerator` can not run on your system",
    "--trainer.default_root_dir x": "trainer.default_root_dir: give --run_dir instead",
    "--checkpoint.every_n_steps 0": "checkpoint.every_n_steps must be at least 1, got 0.",
    "--config xyz": "--config xyz: no such file and no packaged configuration of that name; `litpeft configs` lists them.",
    "--config qlora": "no packaged configuration of that name (did you mean qlora-fp4 or qlora-nf4?)",
    "--config loar": "no packaged configuration of that name (did you mean lora?)",
    "--trainer.devices 2 --trainer.strategy dp": "trainer.strategy dp: give ddp (each process holds the whole model) or fsdp2",
    "--trainer.max_epochs 0": "must not be 0; nothing would be trained",
    "--trainer.overfit_batches 2": "trainer.overfit_batches: give --data.train_samples instead",
    "--trainer.limit_val_batches 1": "would use the longest texts only; give --data.val_samples instead",
    "--seed_everything -1": "seed_everything must be from 0 to",
    "--data.seed -1": "data.seed must not be negative",
    "--model.optimizer torch.optim.AdamW --model.optimizer.lr much": "model.optimizer.lr must be float.",
    "--model.optimizer torch.optim.AdamW --model.optimizer.betas x": "model.optimizer.betas must be tuple, got x.",
    "--model.scheduler WarmupLinear --model.scheduler.warmup x": "model.scheduler.warmup must be float, got x.",
    "--data.delimiter \\t": "data.delimiter must be one character",
    "--ckpt_path /nowhere": "--ckpt_path: to resume a fit from its newest checkpoint, give --run_dir RUN --resume instead.",
    "--model.adapter.rank 4 --model.adapter LoRA": "first name a class that has this option (DoRA, LoRA, NormalisedUpdate, QDoRA, QLoRA) with --model.adapter ...",
    "--model.adapter LoRA --model.adapter.quant_type nf4": "model.adapter.quant_type: first name a class that has this option (QDoRA, QLoRA) with --model.adapter ...",
    "--model.adapter QLoRA --model.adapter.skip query": "model.adapter.skip must be a list, as [a,b], got query.",
    "--model.adapter LoRA --model.adapter.alpha x": "model.adapter.alpha must be float.",
    "--resume --overwrite": "--resume and --overwrite: they exclude each other; give only one.",
    "--checkpoint.keep best --trainer.limit_val_batches 0": "checkpoint.keep best needs validation",
    "--resume": "has no checkpoint to resume from; to start again, give --overwrite instead.",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, fit_arguments: list[str], mistake: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([*fit_arguments, *mistake.split(), "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("litpeft: error: ")
    assert error.count("\n") == 1, error
    assert MISTAKES[mistake] in error


def test_the_folder_of_full_fine_tuning_is_found_by_either_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "none" / "seed0").mkdir(parents=True)
    (tmp_path / "runs" / "none" / "seed0" / "config.yaml").write_text("seed_everything: 0\n")
    assert main(["predict", "--run_dir", "runs/full/seed0"]) == 2
    assert "it has no config.yaml (did you mean runs/none/seed0?)." in capsys.readouterr().err
    assert main(["predict", "--run_dir", "runs/full/seed1"]) == 2
    assert "it has no config.yaml." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fitt", "no verb 'fitt' (did you mean fit?); `litpeft --help` lists them."),
        ("fit", "required: --data, --model."),
        ("fit --model SequenceClassification --data SST2", "required: --model.model_name."),
        ("test", "litpeft test needs --run_dir, the folder of a run."),
        ("predict --run_dir nowhere", "--run_dir nowhere holds no run: it has no config.yaml"),
        ("configs nope", "--config nope: no such file"),
    ],
)
def test_a_missing_argument_is_named(line: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_mistakes_in_yaml_are_reported_like_those_on_the_command_line(
    tmp_path: Path, fit_arguments: list[str], capsys
) -> None:
    wrong = tmp_path / "wrong.yaml"
    for content, message in {
        "model:\n  adaptor: LoRA\n": "adaptor",
        "trainer:\n  max_epoch: 3\n": "wrong.yaml: unknown option trainer.max_epoch (did you mean trainer.max_epochs?).",
        "data: {init_args: {max_length: 0}}\n": "wrong.yaml: data.max_length must be at least 1, got 0.",
        "model: {init_args: {scheduler: {}}}\n": "wrong.yaml: model.scheduler names no class; give its class_path",
        "model: [1\n": "wrong.yaml line 2: not valid YAML",
        "- model\n": "wrong.yaml: it must be a mapping from option names to values",
        "": "wrong.yaml: it must be a mapping from option names to values",
    }.items():
        wrong.write_text(content)
        assert main([*fit_arguments, "--config", str(wrong)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_an_error_names_the_file_only_if_the_value_comes_from_it(
    tmp_path: Path, fit_arguments: list[str], capsys
) -> None:
    (tmp_path / "a.yaml").write_text("data: {init_args: {batch_size: -1}}\n")
    (tmp_path / "b.yaml").write_text("data: {init_args: {batch_size: -2}}\n")
    config, typed = [f"--config={tmp_path}/a.yaml", "--config", f"{tmp_path}/b.yaml"], ["--data.batch_size", "0"]
    assert main([*fit_arguments, *config, *typed]) == 2
    assert "error: data.batch_size must be at least 1, got 0." in capsys.readouterr().err
    assert main([*fit_arguments, *typed, *config]) == 2
    assert "b.yaml: data.batch_size must be at least 1, got -2." in capsys.readouterr().err


def test_help_and_version_do_not_import_torch() -> None:
    for word, shown in {"--help": "usage: litpeft VERB", "--version": __version__, "configs": "lora"}.items():
        done = litpeft(word)
        assert done.returncode == 0
        assert shown in done.stdout
    code = "import sys; from litpeft.__main__ import main; main(['--help']); main(['configs']); import litpeft; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'transformers', 'yaml')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_help_of_a_verb_explains_litpefts_options() -> None:
    done = forking.litpeft("fit", "--help", "all")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "folder of the run (default: runs/EXPERIMENT/WHAT_VARIES/seedN)" in text
    assert "number of optimizer steps at the start that all figures exclude" in text
    lora = forking.litpeft("fit", "--model.help", "SequenceClassification")
    assert "dtype of the frozen weights, and compute dtype" in " ".join(lora.stdout.split())


# --- settings of one optimizer are not passed on to the next (jsonargparse #460)

SGD = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
ROUTES = ("flag after flag", "flag after file", "file after flag", "file after file", "complete value")
ROUTES = (*ROUTES, "set to null between")
SGD_YAML = "model:\n  init_args:\n    optimizer:\n      class_path: torch.optim.SGD\n      init_args: {lr: 0.1}\n"


@pytest.mark.parametrize("route", [*ROUTES, "flag", "yaml", "shipped overlays"])
def test_settings_of_adamw_do_not_leak_into_sgd(tmp_path: Path, fit_arguments: list[str], route: str) -> None:
    (tmp_path / "sgd.yaml").write_text(SGD_YAML)
    (tmp_path / "adamw.yaml").write_text(
        SGD_YAML.replace("SGD", "AdamW").replace("lr: 0.1", "lr: 1.0, weight_decay: 0.3")
    )
    sgd = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    adamw = [*ADAMW, "--model.optimizer.weight_decay", "0.3"]
    options = {
        "flag": sgd,
        "flag after flag": [*adamw, *sgd],
        "flag after file": ["--config", str(tmp_path / "adamw.yaml"), *sgd],
        "file after flag": [*adamw, "--config", str(tmp_path / "sgd.yaml")],
        "file after file": [f"--config={tmp_path / 'adamw.yaml'}", f"--config={tmp_path / 'sgd.yaml'}"],
        "complete value": [*adamw, '--model.optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}'],
        "set to null between": [*adamw, "--model.optimizer", "null", *sgd],
        "yaml": ["--config", str(tmp_path / "sgd.yaml")],
        "shipped overlays": ["--config", "adamw", "--config", "sgd", "--model.optimizer.momentum", "0"],
    }[route]
    assert main([*fit_arguments, *options, "--trainer.max_steps", "1", "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    assert record["optimizer"] == "torch.optim.sgd.SGD"
    for group in record["optimizer_settings"]:
        assert {name: group[name] for name in SGD} == SGD


OTHERS = ("AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "Lion")


@pytest.mark.parametrize(
    "name", [*(f"bitsandbytes.optim.{name}" for name in OTHERS), "transformers.optimization.Adafactor"]
)
def test_optimizers_of_other_packages_train(tmp_path: Path, fit_arguments: list[str], name: str) -> None:
    options = ["--model.optimizer", name, "--trainer.max_steps", "2", "--run_dir", str(tmp_path / "run")]
    assert main([*fit_arguments, *options]) == 0
    # torch's AdamW is still found by its short name after bitsandbytes, which has an AdamW too, is imported
    assert main([*fit_arguments, *ADAMW, "--trainer.max_steps", "1", "--run_dir", str(tmp_path / "again")]) == 0


def test_configs_compose_in_any_order(tmp_path: Path, tiny_model: str, sentences: dict[str, str], capsys) -> None:
    options = ["--model.model_name", tiny_model, "--data.train_file", sentences["train"], "--print_config"]
    seen = []
    for order in (["base", "sst2", "lora", "adamw"], ["adamw", "lora", "base", "sst2"]):
        assert main(["fit", *(word for name in order for word in ("--config", name)), *options]) == 0
        seen.append(yaml.safe_load(capsys.readouterr().out))
    assert seen[0] == seen[1]
    assert seen[0]["model"]["init_args"]["adapter"]["init_args"]["rank"] == 8
    assert seen[0]["trainer"]["max_epochs"] == 3


# --- run folders


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--config sst2 --config lora --model.adapter.rank 16", ("sst2", "lora,rank=16")),
        (
            "--config=base --config=sst2 --model.optimizer.lr=3e-4 --model.adapter.rank=4",
            ("sst2", "lora,rank=4,base,lr=3e-4"),
        ),
        ("--data SST2 --data.text_column a --data.label_offset 1 --data.batch_size 4", ("sst2", "lora,batch_size=4")),
        ("--config demo --config adamw", ("demo", "lora,adamw")),
        ("--data SST2 --model.optimizer torch.optim.SGD", ("sst2", "lora,optimizer=SGD")),
        ("--data SST2 --data.train_file /a/b.tsv --model.model_name /models/mini lm", ("sst2", "lora,model_name=mini")),
        ("--config base --seed_everything 3 --run_dir x --overwrite --resume", ("sst2", "lora,base")),
        ("--data SST2 --model.adapter.targets [query,value]", ("sst2", "lora,targets=_query,value_")),
    ],
)
def test_a_run_name_lists_the_options_given(line: str, expected: tuple[str, str]) -> None:
    assert run_names(typed_options(line.split()), "lora", "SST2") == expected


def test_different_long_names_stay_different_when_shortened() -> None:
    one, two = (run_names([("trainer.note", "x" * 200 + end)], "lora", "SST2")[1] for end in "ab")
    assert one != two
    assert len(one) == len(two) == 120


def test_the_configuration_of_a_run_keeps_its_experiment_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {class_path: SST2}\n")
    write_record(tmp_path, new_record() | {"experiment": "mine"})
    assert run_names([("config", str(tmp_path / "config.yaml"))], "lora", "SST2") == ("mine", "lora")


def test_the_default_run_folder(tmp_path: Path, fit_arguments: list[str]) -> None:
    options = [
        *("--model.adapter", "LoRA", "--model.adapter.rank", "2", "--seed_everything", "5"),
        *("--trainer.max_steps", "1"),
    ]
    done = forking.litpeft(*fit_arguments, *options, "--experiment", "tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.rglob("record.json")
    assert re.fullmatch(r"runs/tiny/lora,.*rank=2.*/seed5/record.json", str(record.relative_to(tmp_path)))
    assert read_record(record.parent)["experiment"] == "tiny"


def test_a_folder_with_a_run_or_other_files_is_refused(tmp_path: Path) -> None:
    assert check_run_folder(tmp_path / "new", {}, resume=False, overwrite=False) == []
    write_record(tmp_path, new_record() | {"status": "failed", "steps": 0})
    assert check_run_folder(tmp_path, {}, resume=False, overwrite=False) == [tmp_path / "record.json"]
    for state in ({"status": "failed", "steps": 3}, {"status": "interrupted"}, {"status": "ok", "steps": 5}):
        write_record(tmp_path, new_record() | state)
        with pytest.raises(UserError, match="already holds a run"):
            check_run_folder(tmp_path, {}, resume=False, overwrite=False)
    (tmp_path / "mine.txt").touch()
    assert check_run_folder(tmp_path, {}, resume=False, overwrite=True) == [tmp_path / "record.json"]
    with pytest.raises(UserError, match="is a file; give a folder"):
        lock_run_folder(tmp_path / "mine.txt")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_without_a_record_is_not_a_run_folder(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "config.yaml").write_text("# mine\n")
    with pytest.raises(
        UserError, match="holds config.yaml but no record.json: it is not a run folder; give another folder"
    ):
        check_run_folder(tmp_path, {}, resume=False, overwrite=overwrite)


def test_resuming_can_extend_a_run_but_not_change_other_options(
    tmp_path: Path, fit_arguments: list[str], sentences: dict[str, str], capsys
) -> None:
    run_dir = ["--run_dir", str(tmp_path / "run")]
    same = [*fit_arguments, "--model.adapter", "LoRA", "--model.scheduler", "WarmupLinear"]
    assert main([*same, *run_dir]) == 0
    first = read_record(tmp_path / "run")
    capsys.readouterr()
    assert main([*same, "--model.adapter.rank", "4", "--resume", *run_dir]) == 2
    assert "--resume: model.init_args.adapter.init_args.rank is 4, but" in capsys.readouterr().err
    assert main(["fit", "--resume", *run_dir]) == 2
    assert "is finished; to continue it, raise trainer.max_epochs" in capsys.readouterr().err
    for refused in (
        ["--trainer.max_time", "00:10:00:00"],
        ["--trainer.max_steps", "5"],
        ["--trainer.gradient_clip_val", "1"],
    ):
        assert main(["fit", "--resume", *run_dir, *refused]) == 2
    assert main(["test", *run_dir, "--data.test_file", sentences["val"]]) == 0
    assert read_record(tmp_path / "run")["test_accuracy"] is not None
    assert main(["test", *run_dir, "--data.test_file", sentences["val"], "--model.dtype", "bf16"]) == 2
    assert "leave it out to test the run" in capsys.readouterr().err
    first |= {n: v for n, v in read_record(tmp_path / "run").items() if n.startswith("test_") or n == "data_summary"}
    assert read_record(tmp_path / "run") == first
    assert main(["fit", "--resume", *run_dir, "--trainer.max_epochs", "3"]) == 0
    assert "resuming with a changed trainer.max_epochs: 1 -> 3" in capsys.readouterr().out
    record = read_record(tmp_path / "run")
    for name in ("started_at", "experiment", "run_name"):
        assert record[name] == first[name]
    # the test results of the earlier weights are removed
    assert (record["steps"], record["test_accuracy"]) == (36, None)
    # the time goes on from that of the first run, whose validation stays
    assert record["validations"][0] == first["validations"][0]
    seconds = [row["train_seconds"] for row in record["validations"]]
    assert seconds[0] == pytest.approx(first["train_seconds"])
    assert seconds == sorted(seconds)
    assert record["train_seconds"] == pytest.approx(seconds[-1])
    rates = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("train/lr")
    expected = {19: 1 - (19 - 2) / 34, 29: 1 - (29 - 2) / 34}  # two steps of warm-up, of 36
    assert {e.step: e.value / 2e-5 for e in rates if e.step in expected} != {}
    for event in rates:
        if event.step in expected:
            assert event.value == pytest.approx(3e-4 * expected[event.step], rel=1e-4)


def test_resuming_with_changed_data_files_is_refused(
    tmp_path: Path, fit_arguments: list[str], tiny_model: str, capsys
) -> None:
    file = write_sentences(tmp_path / "train.tsv", 40)
    same = [*fit_arguments, "--data.train_file", file, "--run_dir", str(tmp_path / "run")]
    assert main(same) == 0
    write_sentences(tmp_path / "train.tsv", 48)
    capsys.readouterr()
    assert main([*same, "--resume", "--trainer.max_epochs", "2"]) == 2
    assert (
        "--resume: the data, or how this version prepares them, changed after the run was started"
        in capsys.readouterr().err
    )
    assert read_record(tmp_path / "run")["status"] == "ok"


def test_a_user_class_in_the_working_directory_is_found(tmp_path: Path, fit_arguments: list[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "how_to" / "extend.md"
    (tmp_path / "mine.py").write_text(re.search(r"(?ms)^```python\n(.*?)^```", page.read_text())[1])
    # the working directory is not on the path of a console script
    script = str(Path(sys.executable).parent / "litpeft")
    command = [
        script,
        *fit_arguments,
        *("--model.dtype", "bf16", "--model.adapter", "mine.BitFit", "--trainer.max_steps", "1", "--run_dir", "run"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run")["adapter"] == "bitfit"


def test_a_changed_class_resets_its_options_whether_given_by_short_or_full_name() -> None:
    """Only `with_configs` is tested: once bitsandbytes is imported, the short name AdamW is ambiguous."""
    full, short = "--model.optimizer=torch.optim.AdamW", "--model.optimizer=AdamW"
    assert with_configs("fit", [full, short, "--model.optimizer.lr=1"]) == [full, short, "--model.optimizer.lr=1"]
    assert with_configs("fit", [full, "--model.optimizer", "SGD"]) == [
        *(full, "--model.optimizer=null", "--model.optimizer", "SGD")
    ]
    other = "--model.optimizer=bitsandbytes.optim.AdamW"
    assert with_configs("fit", [full, other]) == [full, "--model.optimizer=null", other]


SCHEDULES = {
    "OneCycleLR": ["OneCycleLR", "--model.scheduler.max_lr", "0.1"],
    "CosineAnnealingLR": ["CosineAnnealingLR", "--model.scheduler.T_max", "-1"],
    "ReduceLROnPlateau": ["lightning.pytorch.cli.ReduceLROnPlateau", "--model.scheduler.monitor", "val_loss"],
    "Constant": ["Constant", "--model.scheduler.warmup", "2"],
    "WarmupInverseSqrt": ["WarmupInverseSqrt", "--model.scheduler.warmup", "2"],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_step_once_per_optimizer_step_until_the_end(
    tmp_path: Path, fit_arguments: list[str], name: str
) -> None:
    options = [*ADAMW, "--model.optimizer.lr", "1e-3", "--model.scheduler", *SCHEDULES[name]]
    options += ["--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1", "--run_dir", str(tmp_path / "run")]
    assert main([*fit_arguments, *options]) == 0
    assert read_record(tmp_path / "run")["scheduler"] == name
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    rates = [event.value for event in events.Scalars("train/lr")]
    assert len(rates) == 24
    if name == "OneCycleLR":
        assert 0.02 > rates[0] < max(rates) > 1000 * rates[-1]
        assert max(rates) == pytest.approx(0.1, rel=0.02)
    if name == "CosineAnnealingLR":  # the last step is one before zero
        assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * step / 24)) / 2 for step in range(24)], rel=1e-4)
    if name in ("Constant", "ReduceLROnPlateau"):
        assert rates[-1] == pytest.approx(1e-3)

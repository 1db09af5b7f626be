"""`litpeft fit --help`: one screen, at once, of options that the parser has; `--help all` is the parser's own help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

from litpeft.__main__ import main
from litpeft.cli import known_options
from litpeft.cli.short_help import FINISHED, FIT
from tests.cli.test_first_look import IN_FRESH_PROCESS

VALUES = {  # values of the options in the help of fit, in an order that the parser takes
    "--config": "base",
    "--run_dir": "x",
    "--experiment": "x",
    "--seed_everything": "3",
    "--model": "SequenceClassification",
    "--model.model_name": "x",
    "--model.adapter": "LoRA",
    "--model.adapter.rank": "4",
    "--model.base": "int8",
    "--model.dtype": "fp32",
    "--model.optimizer": "torch.optim.AdamW",
    "--model.scheduler": "WarmupLinear",
    "--data": "TextClassification",
    "--data.train_file": "x.csv",
    "--data.text_column": "x",
    "--data.batch_size": "4",
    "--data.max_length": "64",
    "--data.train_samples": "8",
    "--trainer.max_epochs": "2",
    "--trainer.accumulate_grad_batches": "2",
    "--trainer.val_check_interval": "4",
    "--trainer.accelerator": "cpu",
    "--checkpoint.keep": "all",
    "--benchmarks.tasks": "held_out",
    "--record.predictions": "true",
}
FLAGS = {"--resume", "--overwrite", "--print_config"}
SHORT = {  # options that the text of a row names by their last part -> value
    "--model.adapter.alpha": "8",
    "--model.adapter.dropout": "0.1",
    "--model.adapter.targets": "all-linear",
    "--model.optimizer.lr": "1e-3",
    "--model.optimizer.weight_decay": "0.01",
    "--model.scheduler.warmup": "0.1",
    "--data.val_file": "x.csv",
    "--data.test_file": "x.csv",
    "--data.label_column": "x",
    "--data.val_samples": "4",
    "--data.batch_tokens": "512",
    "--trainer.max_steps": "20",
    "--trainer.devices": "1",
    "--trainer.strategy": "auto",
    "--checkpoint.every_n_steps": "4",
    "--checkpoint.every_n_minutes": "30",
}


def test_it_is_one_screen_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", IN_FRESH_PROCESS, "fit", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 120


def test_the_parser_has_every_option_of_the_help(capsys: pytest.CaptureFixture) -> None:
    rows = [row for _, rows in FIT for row in rows]
    named = {word for option, _ in rows for word in re.findall(r"--[\w.]+", option)}
    assert named == VALUES.keys() | FLAGS
    parts = {part for _, text in rows for part in re.findall(r"(?<![\w.])\.\w+", text)}
    assert parts == {"." + option.rpartition(".")[2] for option in SHORT}
    words = [word for option, value in (VALUES | SHORT).items() for word in (option, value)]
    assert main(["fit", *words, "--print_config"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert all(f"{option.rpartition('.')[2]}:" in printed for option in (*VALUES, *SHORT) if "." in option)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_finished_runs_have_a_help_of_their_own(verb: str, capsys: pytest.CaptureFixture) -> None:
    assert main([verb, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"litpeft {verb} --run_dir" in printed
    assert printed.count("\n  --") == len(FINISHED)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["fit", "--help", "all"], "--trainer.gradient_clip_algorithm"),
        (["test", "-h", "all"], "--ckpt_path"),
        (["estimate", "--help"], "--device DEVICE"),
        (["data", "--help"], "--examples"),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(each),
)
def test_all_is_the_help_of_the_parser_the_second_time_without_it(
    arguments: list[str],
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(known_options, "_file", lambda verb: tmp_path / verb)
    monkeypatch.setenv("COLUMNS", "100")
    with suppress(SystemExit):  # of the parser
        main(arguments)
    of_the_parser = capsys.readouterr().out
    assert f"  {option} " in of_the_parser
    assert of_the_parser.startswith(f"usage: litpeft {arguments[0]} [--OPTION VALUE ...]\n\n")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delattr(LightningCLI, "parse_arguments")
    assert main(arguments) == 0
    assert capsys.readouterr().out == of_the_parser
    assert os.environ["COLUMNS"] == "40"


def test_a_reader_may_stop_reading() -> None:
    pipe = f"{sys.executable} -m litpeft fit --help | head -0; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True)
    assert (done.returncode, done.stderr) in ((141, ""), (0, ""))  # 0: all was written before

"""What is refused before torch is imported: with the parser's own words, and nothing that the parser takes."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch.cli import LightningCLI

from litpeft.cli import known_options
from litpeft.cli.class_options import CLASSES, own_kinds
from litpeft.cli.first_look import GROUPS, look
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.errors import UserError

CASES = [
    ["fit", "--modle", "CausalLM"],
    ["fit", "--lr", "1e-3"],
    ["fit", "--xyz.rank=3"],
    ["fit", "--config", "lroa"],
    ["find_lr", "--config", "lroa"],
    ["fit", "--config=sst2", "--config", "no/such.yaml"],
    ["predict", "--run_dir", "nowhere"],
    ["test", "--run_dir=nowhere"],
    ["fit"],
    ["fit", "--config", "sst2", "--trainer.max_steps", "3"],
]
LORA = ["fit", "--config", "base", "--config", "sst2", "--config", "lora"]
WITH_KNOWN_OPTIONS = [  # refused early once an earlier command has kept the options
    [*LORA, "--model.adapter.rnak", "8"],
    [*LORA, "--model.adapter.rank", "abc"],
    [*LORA, "--model.adapter.dropout=much"],
    ["fit", "--config", "sst2", "--config", "ia3", "--model.adapter.rank", "8"],
    [*LORA, "--model.scheduler.warmpu", "3"],
    [*LORA, "--data.max_length", "long"],
    [*LORA, "--data.train_file", "nowhere.tsv"],
    [*LORA, "--trainer.max_epoch", "3"],
    ["estimate", *LORA[1:], "--devise", "cpu"],
]
IN_FRESH_PROCESS = """
import sys
from litpeft.__main__ import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""


@pytest.mark.parametrize("arguments", CASES, ids=" ".join)
def test_mistakes_are_refused_without_torch_in_the_words_of_the_parser(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    from litpeft.__main__ import main

    early = subprocess.run([sys.executable, "-c", IN_FRESH_PROCESS, *arguments], capture_output=True, text=True)
    assert early.returncode == 2, early.stderr
    assert main(arguments) == 2  # torch is imported here, so the parser answers
    assert early.stderr == capsys.readouterr().err


def before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `look` find torch not yet imported, and ask for no task; removing torch would let a library import it again."""
    monkeypatch.setattr("litpeft.cli.first_look.sys", SimpleNamespace(modules={}))
    monkeypatch.setattr("litpeft.cli.first_look._check_required", lambda *_: None)


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """Return the options of `fit`, kept, as those of `estimate`, by a command that the parser refuses."""
    from litpeft.__main__ import main

    for verb in ("fit", "estimate"):
        assert main([verb, "--config", "sst2", "--config", "lora", "--model.adapter.rank", "abc"]) == 2
    return known_options.load("fit")


@pytest.mark.parametrize("arguments", WITH_KNOWN_OPTIONS, ids=" ".join)
def test_options_of_classes_are_refused_without_torch_in_the_words_of_the_parser(
    arguments: list[str], kept: dict[str, Any], tiny_model: str, capsys: pytest.CaptureFixture
) -> None:
    test_mistakes_are_refused_without_torch_in_the_words_of_the_parser(
        [*arguments, "--model.model_name", tiny_model], capsys
    )


@pytest.mark.parametrize("words", [["--model", "SequenceClassification", "--data", "SST2"], ["--config", "demo"]])
def test_a_missing_model_is_asked_for_without_torch(
    words: list[str], kept: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    test_mistakes_are_refused_without_torch_in_the_words_of_the_parser(["fit", *words], capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "mine.Task", "--data", "SST2"],  # a user's own task may need no name
        ["--model", "SequenceClassification", "--data", "SST2", "--model.init_args.model_name", "x"],
        ["--config", "demo", "--model.model_name=x"],
        ["--run_dir", "x", "--resume"],
        ["--config", "optimizers"],  # an experiment
        ["--print_config"],
    ],
    ids=" ".join,
)
def test_nothing_is_asked_for_that_may_be_there(
    words: list[str], kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litpeft.cli.first_look.sys", SimpleNamespace(modules={}))
    look("fit", words)


def test_every_option_that_the_parser_takes_is_taken(kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before_torch(monkeypatch)
    for path, kinds in kept["classes"].items():
        for kind in own_kinds(CLASSES[path]):
            taken = [each.name for each in get_signature_parameters(kind, "__init__")]
            assert set(taken) <= kinds[kind.__name__].keys()
            for name in taken:
                look("fit", [f"--{path}", kind.__name__, f"--{path}.{name}", "1"])
                look("fit", [f"--{path}.class_path={kind.__module__}.{kind.__name__}", f"--{path}.init_args.{name}=1"])
    for option in set(kept["options"]) - {"--config"}:
        look("fit", ["--trainer.max_steps", "3", option, "x"])
    look(
        "fit",
        [
            "--trainer.callbacks+=EarlyStopping",
            "--trainer.callbacks.monitor",
            "val_loss",
            "--trainer.logger.save_dir",
            "x",
        ],
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--model.adapter", "mine.Own", "--model.adapter.rnk", "3"],  # a user's own class
        ["--model.adapter", "{class_path: mine.Own}", "--model.adapter.rnk", "3"],
        ["--model.adapter", "LoRA", "--model.adapter.rank", "null"],
        ["--config", "lora", "-c", "ia3", "--model.adapter.method", "IA3"],
        ["--data.train_file", "demo:snippets.tsv", "--data.val_file", "part-*.csv"],
        ["--resume", "--data.train_file", "moved.tsv"],
        ["--data.train_file", "a_folder"],
    ],
    ids=" ".join,
)
def test_what_only_the_parser_can_judge_is_left_to_it(
    words: list[str], kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before_torch(monkeypatch)
    look("fit", words)


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_file_of_options_is_no_obstacle(content: str, kept: dict[str, Any]) -> None:
    file = known_options._file("fit")
    before = file.read_text()
    try:
        file.write_text(content)
        assert known_options.load("fit") is None
    finally:
        file.write_text(before)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_the_groups_are_those_of_the_parsers(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[str] = set()

    def stop(self: LightningCLI, *_: object) -> None:
        found.update(word for action in self._subcommand_parsers[verb]._actions for word in action.option_strings)
        raise StopIteration

    monkeypatch.setattr(LightningCLI, "parse_arguments", stop)
    with pytest.raises(StopIteration):
        LitPeftCLI(verb, ["--run_dir", "x", "--model", "SequenceClassification"])
    groups = {option.lstrip("-").partition(".")[0] for option in found} - {""}
    assert groups <= set(GROUPS)


def test_nothing_is_refused_that_only_the_parser_can_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    before_torch(monkeypatch)
    look("fit", ["--help", "--modle"])
    look("fit", ["--config", "{seed_everything: 1}", "--model.adapter.rnk", "3"])
    look("validate", ["--config", "sst2", "--run_dir", "new"])
    look("validate", ["--model", "CausalLM", "--run_dir", "new"])
    with pytest.raises(UserError, match="unknown option --modle"):
        look("fit", ["--modle", "x"])

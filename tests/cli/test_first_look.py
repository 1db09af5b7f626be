"""What is refused before torch is imported: with the parser's own words, and nothing that the parser takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lightning.pytorch.cli import LightningCLI

from litpeft.cli.first_look import GROUPS, look
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.errors import UserError

CASES = [
    ["fit", "--modle", "CausalLM"],
    ["fit", "--lr", "1e-3"],
    ["fit", "--xyz.rank=3"],
    ["fit", "--config", "lroa"],
    ["fit", "--config=sst2", "--config", "no/such.yaml"],
    ["predict", "--run_dir", "nowhere"],
    ["test", "--run_dir=nowhere"],
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
    monkeypatch.delitem(sys.modules, "torch")
    look("fit", ["--help", "--modle"])
    look("fit", ["--config", "{seed_everything: 1}", "--model.adapter.rnk", "3"])
    look("validate", ["--config", "sst2", "--run_dir", "new"])
    look("validate", ["--model", "CausalLM", "--run_dir", "new"])
    with pytest.raises(UserError, match="unknown option --modle"):
        look("fit", ["--modle", "x"])

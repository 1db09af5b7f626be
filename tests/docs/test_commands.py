"""README files: their commands parse, their links work, and their code is tested code."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from litpeft.__main__ import COMMANDS, TRAINER_VERBS, main
from litpeft.adapters import base
from litpeft.sweeps.experiment import read_experiment
from litpeft.sweeps.resolve import resolve

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", REPO / "docs" / "tasks.md", *sorted((REPO / "experiments").rglob("README.md"))]


def commands() -> list[str]:
    """Return the litpeft commands in code blocks, with continued lines joined, without comments and variables."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", "")
        for block in re.findall(r"(?ms)^```\w*\n(.*?)^```$", text):
            found += [
                line.partition("#")[0].replace("$FILES", "").strip()
                for line in block.splitlines()
                if line.startswith("litpeft ")
            ]
    return found


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command: str, capsys: pytest.CaptureFixture) -> None:
    verb, *arguments = shlex.split(command)[1:]
    assert verb in TRAINER_VERBS | COMMANDS
    if verb == "estimate":
        with pytest.raises(SystemExit) as done:  # jsonargparse exits after --print_config
            main([verb, *arguments, "--print_config"])
        assert not done.value.code
    if verb == "sweep" and not arguments[0].endswith(".yaml"):
        read_experiment(arguments[0])  # its trials are tested with the shipped files
    if verb in ("compare", "report"):
        importlib.import_module(f"litpeft.commands.{verb}")._parser().parse_args(arguments)
    if verb == "fit" and "--resume" not in arguments:
        assert main([verb, *arguments, "--print_config"]) == 0, capsys.readouterr().err


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 9


def test_the_yaml_parses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    block, sweep = re.findall(r"```yaml\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(sweep)
    assert len(resolve(read_experiment(str(tmp_path / "mine.yaml")).to_resolve())) == 4 * 2 * 3
    (tmp_path / "run.yaml").write_text(block)
    assert main(["fit", "--config", str(tmp_path / "run.yaml"), "--print_config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["model"]["init_args"]["adapter"]["init_args"]["rank"] == 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_work(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_adapter_in_the_readme_is_the_tested_one() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    docstring = [line[4:] for line in base.__doc__.splitlines() if line.startswith("    ")]
    assert [line for line in block.splitlines() if line] == [line for line in docstring if line]


def test_makefile_targets_have_help() -> None:
    makefile = (REPO / "Makefile").read_text()
    phony = re.search(r"\.PHONY: (.*)", makefile)[1].split()
    helped = re.findall(r"(?m)^([a-z-]+):.*## ", makefile)
    assert set(phony) == set(helped)

"""Every command, Python block and YAML block on the pages for users: parsed by the real parsers, or run elsewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from litpeft.__main__ import COMMANDS, TRAINER_VERBS
from litpeft.adapters import base
from litpeft.sweeps.experiment import read_experiment
from tests.docs.pages import LANGUAGES, PAGES, REPO, Block, blocks, command_lines, inline_commands
from tests.docs.parsing import parse, parse_run

# programs of other projects, which these tests do not run
ELSEWHERE = {
    "tensorboard": ("--logdir",),
    "vllm": ("serve",),
    "llama-cli": ("-m",),
    "lm_eval": ("run",),
}
PACKAGES = {"gguf", "hqq", "pandas", "."}  # what pages install, besides litpeft
CONVERTER = "convert_hf_to_gguf.py"  # in llama.cpp's repository


def commands() -> list[tuple[str, list[str]]]:
    """Return (page, words) of each different command in a block."""
    found = {}
    for block in blocks("", "bash"):
        for words in command_lines(block):
            found.setdefault(" ".join(words), (block.page, words))
    return list(found.values())


@pytest.fixture(scope="module", autouse=True)
def _own_classes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let `mine` be the module of docs/how_to/extend.md."""
    folder = tmp_path_factory.mktemp("mine")
    own = [block.text for block in blocks("python") if block.page == "docs/how_to/extend.md"]
    (folder / "mine.py").write_text("\n\n".join(own))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        sys.modules.pop("mine", None)
        yield
    sys.modules.pop("mine", None)


def test_every_command_parses() -> None:
    """One test for all: they share the parsers, of which each takes half a second to build."""
    found = commands()
    assert len(found) > 100
    wrong = []
    for page, words in found:
        try:
            hold(words)
        except (Exception, SystemExit) as error:
            wrong.append(f"{page}: {' '.join(words)}\n    {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def hold(words: Sequence[str]) -> None:
    """Check a command line.

    Raises:
        Exception: the command is wrong or unknown.
    """
    program, *rest = words
    if program == "litpeft":
        parse(rest)
    elif program in ("torchrun", "srun"):
        parse(rest[rest.index("litpeft") + 1 :])
    elif program == "make":
        targets = re.findall(r"(?m)^([a-z-]+):.*## ", (REPO / "Makefile").read_text())
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif program == "pip":
        assert rest[0] == "install"
        check_packages(rest[1:])
    elif Path(program).name == "python":
        check_python(rest)
    else:
        assert program in ELSEWHERE, f"{program} is no program that a test knows"
        assert rest[0] in ELSEWHERE[program]


def check_packages(words: Sequence[str]) -> None:
    section = (REPO / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"(?m)^(\w+) = ", section))
    words = list(words)
    if "--constraint" in words:
        place = words.index("--constraint")
        assert (REPO / words[place + 1]).is_file()
        del words[place : place + 2]
    for word in words:
        name, _, extra = word.rstrip("]").partition("[")
        assert name == "litpeft" or name in PACKAGES, name
        assert not extra or set(extra.split(",")) <= extras, extra


def check_python(words: Sequence[str]) -> None:
    if words[0] == CONVERTER:
        return
    assert words[0] == "-m"
    if words[1] == "pytest":
        assert (REPO / words[2]).exists()
    elif words[1] == "litpeft":
        parse(words[2:])
    else:
        assert importlib.util.find_spec(words[1]), words[1]


def test_commands_in_the_text_have_real_options() -> None:
    """Placeholders such as NAME and ... may stand in them, so only verbs and the names of options are checked."""
    page_of = {}
    for page, (verb, *rest) in inline_commands():
        assert verb in TRAINER_VERBS | COMMANDS, f"{page}: litpeft {verb}"
        if "..." not in rest:
            page_of[" ".join((verb, *rest))] = page, [verb, *rest]
    wrong = []
    for line, (page, words) in page_of.items():
        try:
            parse(words)
        except (Exception, SystemExit) as error:
            wrong.append(f"{page}: litpeft {line}\n    {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_block_has_a_known_language() -> None:
    unknown = {(block.page, block.language) for block in blocks() if block.language not in LANGUAGES}
    assert not unknown


@pytest.mark.parametrize("block", blocks("text"), ids=lambda block: block.page)
def test_output_holds_no_command_that_nobody_checks(block: Block) -> None:
    assert not re.search(r"(?m)^\$? ?(?:litpeft [a-z]|pip install|make [a-z])", block.text)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.page)
def test_the_yaml_is_an_experiment_or_a_configuration(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(block.text, encoding="utf-8")
    content = yaml.safe_load(block.text)
    if "axes" in content:
        trials = read_experiment("mine.yaml").trials
        assert len(trials) > 1
        parse_run("fit", (trials[0].candidates or trials[:1])[0].arguments)
    else:
        parse_run("fit", ["--config=base", "--config=sst2", f"--config={file}"])


def test_the_json_is_a_row_of_each_line() -> None:
    for block in blocks("json"):
        for line in block.text.splitlines():
            assert isinstance(json.loads(line), dict), block.page


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_the_python_compiles_and_its_imports_work(block: Block) -> None:
    """docs/python.md, docs/how_to/extend.md and the README are also run: tests/api, tests/cli, test_tutorials.py."""
    tree = ast.parse(block.text)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(imports, []), block.page, "exec"), {})


def test_the_adapter_on_the_page_is_the_tested_one() -> None:
    block = next(block for block in blocks("python") if block.page == "docs/how_to/extend.md")
    docstring = [line[4:] for line in base.__doc__.splitlines() if line.startswith("    ")]
    assert [line for line in block.text.splitlines() if line] == [line for line in docstring if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_work(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_makefile_targets_have_help() -> None:
    makefile = (REPO / "Makefile").read_text()
    phony = re.search(r"\.PHONY: (.*)", makefile)[1].split()
    helped = re.findall(r"(?m)^([a-z-]+):.*## ", makefile)
    assert set(phony) == set(helped)

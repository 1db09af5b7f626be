"""The site of `make docs`: each page is in its menu, links lead somewhere, and the generated reference is complete."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import litpeft
from litpeft.__main__ import COMMANDS, TRAINER_VERBS
from litpeft.runs.record import FIELDS
from tests.docs.pages import REPO

DOCS = REPO / "docs"


def load(name: str) -> Any:
    """Return a hook of mkdocs as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """Return {path: text} of the generated pages."""
    path = list(sys.path)
    try:
        return load("generated").pages()
    finally:
        sys.path[:] = path


def menu() -> list[str]:
    """Return the pages of the menu."""

    def found(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry.values() if isinstance(entry, dict) else entry:
                yield from found(each)

    return list(found(yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"]))


def test_the_menu_has_every_page_once(generated: dict[str, str]) -> None:
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(menu()) == sorted(written | generated.keys())


def test_every_link_of_the_site_leads_to_a_page(generated: dict[str, str]) -> None:
    links = load("links")
    pages = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    for page, text in (pages | generated).items():
        text = links.rewritten(text, page, links.SHOWN.get(page, f"docs/{page}"))
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", links.FENCE.sub("", text)):
            if re.match("[a-z]+:", target):
                assert target.startswith(("https://", "http://")), (page, target)
                continue
            path = (DOCS / page).parent.joinpath(target).resolve().relative_to(DOCS).as_posix()
            is_file = (DOCS / path).is_file() or (REPO / path).is_file()  # a picture
            assert path in pages.keys() | generated.keys() or is_file, (page, target)


def test_a_link_to_a_file_of_the_repository_leads_to_its_page_or_to_github() -> None:
    links = load("links")
    text = "[a](../../litpeft/runs/record.py) [b](../../litpeft/ops/dropout.py#L3) [c](../../experiments/glue) `[d](x)`"
    assert links.rewritten(text, "how_to/x.md", "docs/how_to/x.md") == (
        f"[a](../reference/record.md) [b]({links.GITHUB}litpeft/ops/dropout.py#L3) [c](../experiments/glue.md) `[d](x)`"
    )


def test_the_reference_has_every_verb_class_and_field(generated: dict[str, str]) -> None:
    for verb in TRAINER_VERBS | COMMANDS:
        assert f"\n## {verb}\n" in generated["reference/command_line.md"], verb
    for name in ("--checkpoint.keep", "--benchmarks.tasks", "--trainer.max_epochs", "--launcher", "--merged"):
        assert f"`{name}`" in generated["reference/command_line.md"], name
    for page, module in (("adapters", "litpeft.adapters"), ("tasks", "litpeft.tasks"), ("data", "litpeft.data")):
        for name in set(litpeft.PLACES[module]) - {"Adapter", "FineTuner", "FineTuneData"}:
            assert f"\n## {name}\n" in generated[f"reference/{page}.md"], name
    for field in FIELDS:
        assert f"| `{field}` |" in generated["reference/record.md"]
    for file in (REPO / "configs").rglob("*.yaml"):
        assert f"\n### {file.stem}\n" in generated["reference/configurations.md"]
    for name in ("fit", "load_run", "compare", "sweep", "Run.predict", "Adapter.apply"):
        assert f" {name}\n" in generated["reference/python.md"]
    assert not [page for page, text in generated.items() if re.search(r"<(?:function|class) ", text)]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("material"), reason="make docs installs mkdocs-material")
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?:[^\">]*)", page.read_text("utf-8"))
        assert not loaded, (page, loaded)

"""The pages for users, and the commands, Python and YAML in their blocks of code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[2]
PAGES = [
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPO / "docs").rglob("*.md")),
    *sorted((REPO / "experiments").rglob("README.md")),
]
# bash: every line is a command; text: output; no name: bash
LANGUAGES = ("", "bash", "python", "yaml", "json", "text")
BLOCK = re.compile(r"(?ms)^( *)```(.*?)\n(.*?)^\1```$")


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        page: path of the page in the repository.
        language: name after the opening fence.
        text: content, without the indentation of a list.
    """

    page: str
    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages, or of some languages, in their order."""
    found = []
    for page in PAGES:
        for indent, language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            text = re.sub(rf"(?m)^{indent}", "", text)
            found.append(Block(page.relative_to(REPO).as_posix(), language, text))
    return [block for block in found if not languages or block.language in languages]


def command_lines(block: Block) -> list[list[str]]:
    """Return the commands of a block as words: continued lines joined, comments left out, variables replaced."""
    variables: dict[str, str] = {}
    lines = []
    for line in block.text.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        if len(words) == 1 and (assigned := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
            variables[assigned[1]] = assigned[2]
        elif words:
            lines.append(words[: words.index("<")] if "<" in words else words)
    return lines


def inline_commands() -> list[tuple[str, list[str]]]:
    """Return (page, words) of each command of litpeft in the running text of the pages."""
    found = []
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for code in re.findall(r"`(litpeft [a-z_]+ [^`]*)`", text):
            found.append((page.relative_to(REPO).as_posix(), shlex.split(code)[1:]))
    return found

"""A hook of mkdocs: links between pages and files of the repository work on GitHub and on the site.

A page links to a file of the repository by its relative path. On the site, this becomes a link to the page that shows
the file, or to the file on GitHub. The site itself loads nothing from another server.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
GITHUB = "https://github.com/litpeft/litpeft/blob/main/"
SHIM = "https://unpkg.com/iframe-worker/shim"  # which the plugin `offline` adds for the search
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)]*)?(\))")
FENCE = re.compile(r"(?ms)^( *```.*?^ *```$)")
IMAGES = (".png", ".jpg", ".svg")

# file of the repository -> page that shows it
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "configs": "reference/configurations.md",
    "litpeft/__init__.py": "reference/python.md",
    "litpeft/__main__.py": "reference/command_line.md",
    "litpeft/adapters/__init__.py": "reference/adapters.md",
    "litpeft/data/__init__.py": "reference/data.md",
    "litpeft/optim/schedules.py": "reference/schedules.md",
    "litpeft/runs/record.py": "reference/record.md",
    "litpeft/sweeps/experiment.py": "reference/experiment_files.md",
    "litpeft/tasks/__init__.py": "reference/tasks.md",
    "experiments": "experiments/index.md",
}
PAGES |= {f"docs/notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in REPO.glob("docs/notebooks/*.ipynb")}
for _readme in sorted((REPO / "experiments").rglob("README.md")):
    _folder = _readme.parent.relative_to(REPO).as_posix()
    PAGES.setdefault(_folder, f"{_folder}.md")
    PAGES[f"{_folder}/README.md"] = PAGES[_folder]

# page that shows one file -> that file
SHOWN = {
    page: name
    for name, page in PAGES.items()
    if name.endswith(".md") and name != "README.md"  # the site has a first page of its own
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    uri = page.file.src_uri
    return rewritten(markdown, uri, SHOWN.get(uri, f"docs/{uri}"))


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Let a page use the site's own script for the search in place of another server's."""
    return output.replace(SHIM, _relative("worker.js", page.file.dest_uri))


def on_post_template(output_content: str, **_: Any) -> str:
    """Do the same for the page of addresses that do not exist."""
    return output_content.replace(SHIM, "worker.js")


def rewritten(markdown: str, page: str, source: str) -> str:
    """Return the text of a page with the links of the site.

    Args:
        markdown: text of the page.
        page: path of the page on the site, relative to its root.
        source: path of the text in the repository.
    """
    parts = FENCE.split(markdown)  # every second part is a block of code
    return "".join(part if i % 2 else LINK.sub(lambda m: _link(m, page, source), part) for i, part in enumerate(parts))


def _link(match: re.Match[str], page: str, source: str) -> str:
    before, target, anchor, after = match.groups()
    if re.match(r"[a-z]+:", target):
        return match[0]
    path = os.path.normpath(Path(source).parent / target)
    if path in PAGES:
        target = _relative(PAGES[path], page)
    elif path.startswith("docs/"):
        target = _relative(path.removeprefix("docs/"), page)
    elif path.endswith(IMAGES):
        target = _relative(path, page)
    elif (REPO / path).exists():
        target = GITHUB + path
    return f"{before}{target}{anchor or ''}{after}"


def _relative(target: str, page: str) -> str:
    return Path(os.path.relpath(target, Path(page).parent)).as_posix()

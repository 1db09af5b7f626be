"""A hook of mkdocs: pages of the reference, made from the code's parsers, docstrings, record schema and configurations.

`make docs` runs it; nothing that it makes is committed. `pages()` returns the text of every page.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SET = "set by the task."  # help of arguments that no user gives
REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "docs")]

import links  # noqa: E402 (the folder is on the path since the line above)
from options import SKIPPED, cell, options_of, parser_of, table, trainer_parser  # noqa: E402


def pages() -> dict[str, str]:
    """Return {path of the page: text} for every generated page."""
    import lightning.pytorch.cli  # noqa: F401 (before rich, see litpeft/cli/console.py)

    made: dict[str, Callable[[], str]] = {
        "reference/command_line.md": command_line,
        "reference/adapters.md": lambda: classes(*adapter_page()),
        "reference/tasks.md": lambda: classes(*task_page()),
        "reference/data.md": lambda: classes(*data_page()),
        "reference/schedules.md": lambda: classes(*schedule_page()),
        "reference/configurations.md": configurations,
        "reference/experiment_files.md": experiment_files,
        "reference/record.md": record,
        "reference/python.md": python,
    }
    found = {name: make() for name, make in made.items()}
    for name in links.PAGES:
        if name.endswith(".md") and name != "README.md":  # the site has a first page of its own
            found[links.PAGES[name]] = (REPO / name).read_text(encoding="utf-8")
    for book in sorted((REPO / "docs" / "notebooks").glob("*.ipynb")):
        found[f"notebooks/{book.stem}.md"] = notebook(book)
    for folder in sorted(path for path in (REPO / "experiments").iterdir() if path.is_dir()):
        found[f"experiments/{folder.name}.md"] += "".join(
            f"\n## {file.name}\n\n```yaml\n{file.read_text(encoding='utf-8')}```\n" for file in folder.glob("*.yaml")
        )
    return found


def command_line() -> str:
    """Return the verbs and their options, except those of classes."""
    from litpeft.__main__ import COMMANDS, TRAINER_VERBS

    verbs = TRAINER_VERBS | COMMANDS
    text = [
        "# Command line",
        "`litpeft VERB --help` prints the usual options, `--help all` these. Options are never abbreviated.",
    ]
    text += ["| verb | |\n| --- | --- |\n" + "\n".join(f"| [`{verb}`](#{verb}) | {verbs[verb]} |" for verb in verbs)]
    fit = trainer_parser("fit")
    shared = {action.option_strings[-1] for action in options_of(fit)}
    for verb in verbs:
        parser = fit if verb == "fit" else parser_of(verb)
        text += [f"## {verb}", f"{verbs[verb][0].upper()}{verbs[verb][1:]}."]
        if verb in (*TRAINER_VERBS, "estimate", "find_lr", "data"):
            own = [a for a in options_of(parser) if verb == "fit" or a.option_strings[-1] not in shared]
            text += ["" if verb == "fit" else "The options of [`fit`](#fit)" + (", and:" if own else ".")]
        else:
            own = [a for a in parser._actions if a.dest not in SKIPPED]
        text += [table(own)] if own else []
    text += ["## Lightning's Trainer", "Options of `fit` that start with `--trainer.` are Lightning's."]
    text += [table(a for a in fit._actions if a.dest.startswith("trainer.") and not a.dest.endswith(".help"))]
    return "\n\n".join(filter(None, text)) + "\n"


Page = tuple[str, str, type | None, Iterable[type]]


def named(option: str) -> str:
    return f"Name one with `--{option} NAME`, and its options with `--{option}.OPTION VALUE`."


def adapter_page() -> Page:
    from litpeft import adapters

    about = f"{named('model.adapter')} [Strategies](../strategies.md) says what each trains."
    kinds = [getattr(adapters, name) for name in adapters.__all__ if name != "Adapter"]
    return "Adapters", about, None, kinds


def task_page() -> Page:
    from litpeft import tasks

    about = f"{named('model')} [Tasks](../tasks.md) says how to use them."
    kinds = [getattr(tasks, name) for name in tasks.__all__ if name != "FineTuner"]
    return "Options of tasks", about, tasks.FineTuner, kinds


def data_page() -> Page:
    from litpeft import data

    about = f"{named('data')} [Bring your own data](../how_to/own_data.md) says how to use them."
    kinds = [getattr(data, name) for name in sorted(data.__all__, key=str.lower) if name != "FineTuneData"]
    return "Options of data", about, data.FineTuneData, kinds


def schedule_page() -> Page:
    from litpeft import optim

    about = f"{named('model.scheduler')}\n\n{optim.schedules.__doc__}"
    kinds = [getattr(optim, name) for name in optim.__all__ if name[0].isupper()]
    return "Schedules", about, None, kinds


def classes(title: str, about: str, base: type | None, kinds: Iterable[type]) -> str:
    """Return a page with the arguments of classes; with a base class, those of the base are listed once."""
    shared = {a.dest: a for a in arguments(base)} if base else {}
    text = [f"# {title}", about]
    if base:
        text += ["## All", table(shared.values(), short=True)]
    for kind in kinds:
        own = [a for a in arguments(kind) if not _same(a, shared.get(a.dest))]
        text += [f"## {kind.__name__}", description(kind)]
        text += [table(own, short=True)] if own else ["No further options."]
    return "\n\n".join(text) + "\n"


def arguments(kind: type) -> list[argparse.Action]:
    """Return the arguments of a class as options, with those that it passes on to its parents."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(kind, fail_untyped=False)
    return [a for a in parser._actions if a.dest not in SKIPPED and not a.dest.endswith(".help") and a.help != SET]


def _same(action: argparse.Action, other: argparse.Action | None) -> bool:
    return other is not None and (action.help, action.default) == (other.help, other.default)


def description(kind: Any) -> str:
    """Return the docstring without its sections of arguments; lines of four blanks are code."""
    text = inspect.getdoc(kind) or ""
    return _with_code(re.split(r"(?m)^(?:Args|Attributes|Raises):", text)[0].strip())


def _with_code(text: str) -> str:
    """Return a docstring as Markdown: words such as <name> and ~ stay as they are."""
    return re.sub(r"<(\w+)>", r"`<\1>`", text)


def configurations() -> str:
    """Return every packaged configuration with its text."""
    about = "Name one with `--config NAME`. `litpeft configs` lists them, `litpeft configs --copy DIR` copies them."
    text = ["# Configurations", about]
    for folder, title in {"adapters": "Methods", "data": "Data", "optim": "Optimizers", ".": "Whole runs"}.items():
        text.append(f"## {title}")
        for file in sorted((REPO / "configs" / folder).glob("*.yaml")):
            text.append(f"### {file.stem}\n\n```yaml\n{file.read_text(encoding='utf-8')}```")
    return "\n\n".join(text) + "\n"


def experiment_files() -> str:
    from litpeft.sweeps import experiment

    return f"# Experiment files\n\n{experiment.__doc__}"


def notebook(path: Path) -> str:
    """Return a notebook with its results as a page; tables as a notebook shows them."""
    parts = []
    for each in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(each["source"])
        parts.append(source if each["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in each.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            text = "".join(data.get("text/html") or data["text/plain"]).rstrip("\n")
            parts.append(f"<div>{text}</div>" if "text/html" in data else f"```text\n{text}\n```")
    return "\n\n".join([*parts, f"[The notebook]({links.GITHUB}docs/notebooks/{path.name})"]) + "\n"


def record() -> str:
    """Return the fields of a record with their types."""
    from litpeft.runs.record import FIELDS
    from litpeft.runs.record_schema import OTHERS, RECORD

    about = "`record.json` in the run folder has these fields. Bytes and seconds are not scaled, unknown is `null`."
    rows = ["| field | type | definition |", "| --- | --- | --- |"]
    for name, definition in FIELDS.items():
        kind = RECORD.get(name, RECORD[OTHERS])
        shown = "a mapping" if isinstance(kind, dict) else "a list" if isinstance(kind, list) else kind
        rows.append(f"| `{name}` | {shown} | {cell(definition)} |")
    return "\n\n".join(["# Run records", about, "\n".join(rows)]) + "\n"


def python() -> str:
    """Return the functions of `import litpeft`."""
    import litpeft
    from litpeft import Comparison, Run, compare, fit, load_run, sweep
    from litpeft.adapters import Adapter
    from litpeft.tasks import FineTuner

    names = ", ".join(f"`{name}`" for name in litpeft.__all__)
    about = f"`from litpeft import` gives {names}. [Python](../python.md) shows how to use them."
    text = ["# Functions of Python", about]
    adapter = ("apply", "param_groups", "save", "load", "merge", "disable")
    methods = {Run: (), Comparison: (), Adapter: adapter, FineTuner: ("setup_model",)}
    for function in (fit, load_run, sweep, compare):
        text += _function(function, "##", function.__name__)
    for kind, chosen in methods.items():
        text += [f"## {kind.__name__}", description(kind)]
        for name in chosen or [n for n in vars(kind) if not n.startswith("_")]:
            text += _function(inspect.getattr_static(kind, name), "###", f"{kind.__name__}.{name}")
    return "\n\n".join(text) + "\n"


def _function(function: Any, heading: str, name: str) -> list[str]:
    """Return heading, signature and docstring of a function, a method or a property."""
    from docstring_parser import parse

    is_property = isinstance(function, property)
    function = function.fget if is_property else getattr(function, "__func__", function)
    found = parse(inspect.getdoc(function) or "")
    about = "\n\n".join(filter(None, (found.short_description, found.long_description)))
    signature = "" if is_property else str(inspect.signature(function)).replace("'", "")
    rows = [f"- `{p.arg_name}`: {' '.join((p.description or '').split())}" for p in found.params]
    rows += [f"- raises `{p.type_name}`: {' '.join((p.description or '').split())}" for p in found.raises]
    return [f"{heading} {name}", f"```python\n{name}{signature}\n```", _with_code(about), "\n".join(rows)]


# -- mkdocs ----------------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the generated pages, and the pictures of the experiments."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for image in sorted((REPO / "experiments").rglob("*.png")):
        files.append(File.generated(config, image.relative_to(REPO).as_posix(), abs_src_path=str(image)))
    return files

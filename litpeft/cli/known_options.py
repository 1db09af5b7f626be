"""The options of this version, kept in the cache folder, so that they can be checked before torch is imported.

The first command after a change of the package, or of one that gives options, writes the file; the parser stays the
judge of what the file does not know.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from litpeft.hub.cache_dir import default_cache_dir
from litpeft.runs.atomic_write import write_atomically

PACKAGES = ("torch", "lightning", "jsonargparse", "transformers")  # whose classes have options too
NUMBERS = ("int", "float")  # types of options whose values are checked


def load(verb: str) -> dict[str, Any] | None:
    """Return what `store` kept for a verb; None if nothing was kept by this version.

    Its parts: `help`, the parser's own; `options`, all options of the parser with their dashes; `of_classes`, options
    that classes have; and by option that names a class of litpeft (`model.adapter`): `classes`, by name their
    arguments with a type if it is a number, else null; `takers`, by argument the names of the classes that have it.
    """
    try:
        found = json.loads(_file(verb).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def store(parsers: Mapping[str, Any]) -> None:
    """Keep the options of verbs whose parsers were built, unless this version has done so."""
    for verb, parser in parsers.items():
        if (file := _file(verb)).exists():
            continue
        options = [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
        content = {"help": _help(parser), "options": sorted(options), "of_classes": of_classes(), **_classes()}
        with suppress(OSError):  # a cache that cannot be written costs time only
            file.parent.mkdir(parents=True, exist_ok=True)
            for older in file.parent.glob(f"{verb}-*.json"):
                older.unlink(missing_ok=True)
            write_atomically(file, json.dumps(content))


def _help(parser: Any) -> str:
    """Return the parser's help as it is in a file or a terminal of 100 columns."""
    plain = {"COLUMNS": "100", "NO_COLOR": "1"}
    before = {name: os.environ.get(name) for name in plain}
    os.environ.update(plain)
    try:
        return str(parser.format_help())
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def of_classes() -> list[str]:
    """Return the options that the classes of the command line have, with their dashes."""
    from litpeft.cli.class_options import CLASSES, arguments_of

    return sorted(f"--{path}.{name}" for path, kind in CLASSES.items() for name in arguments_of(kind))


def _classes() -> dict[str, Any]:
    from litpeft.cli.class_options import CLASSES, OURS, arguments_of, own_kinds, public_names, types_of

    paths = ("model", *OURS)
    classes = {path: {kind.__name__: types_of(kind, NUMBERS) for kind in own_kinds(CLASSES[path])} for path in paths}
    takers = {
        path: {name: sorted(public_names(CLASSES[path], name)) for name in arguments_of(CLASSES[path])}
        for path in paths
    }
    return {"classes": classes, "takers": takers}


@functools.cache
def _file(verb: str) -> Path:
    """Return the file of a verb, named by all that its options depend on."""
    package = Path(__file__).parents[1]
    state = [*map(_version, PACKAGES), *_states(package, package.rglob("*.py"))]
    return default_cache_dir() / "options" / f"{verb}-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _states(package: Path, files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return name, size and time of the last change of files: a clone changes without a new version."""
    found = ((file, file.stat()) for file in sorted(files))
    return [(str(file.relative_to(package)), stat.st_size, stat.st_mtime_ns) for file, stat in found]

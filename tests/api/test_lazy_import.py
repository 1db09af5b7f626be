"""`import litpeft` imports nothing heavy, and every name of the API is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import litpeft
from litpeft import PLACES
from tests.api.processes import modules_after

HEAVY = {"torch", "lightning", "transformers", "datasets", "numpy", "pandas", "yaml", "rich"}


def test_importing_litpeft_imports_nothing_heavy() -> None:
    assert not HEAVY & modules_after("import litpeft; dir(litpeft)")


def test_comparing_needs_no_torch() -> None:
    loaded = modules_after("from litpeft import compare, UserError")
    assert not {"torch", "lightning", "transformers", "rich"} & loaded


def test_every_public_name_of_the_packages_can_be_imported_from_litpeft() -> None:
    for place in ("litpeft.adapters", "litpeft.tasks", "litpeft.data"):
        assert sorted(PLACES[place]) == sorted(importlib.import_module(place).__all__)
    for name in litpeft.__all__:
        assert getattr(litpeft, name).__name__ == name
    assert set(litpeft.__all__) <= set(dir(litpeft))
    with pytest.raises(AttributeError, match="module 'litpeft' has no attribute 'lora'"):
        litpeft.lora  # noqa: B018


def test_editors_get_the_same_names() -> None:
    tree = ast.parse((Path(litpeft.__file__).parent / "__init__.pyi").read_text())
    found = {
        alias.asname: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert found == {name: place for place, names in PLACES.items() for name in names}

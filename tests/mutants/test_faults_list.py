"""The list of faults fits the code: each text stands once in its file, and each test exists."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutants.faults import Fault, read_faults
from tests.mutants.forked import ROOT

FAULTS = read_faults()


def test_each_text_stands_once_in_its_file() -> None:
    sources = {fault.file: (ROOT / fault.file).read_text(encoding="utf-8") for fault in FAULTS}
    assert [f.name for f in FAULTS if f.applied(sources[f.file]) in (None, sources[f.file])] == []


def test_each_name_and_each_fault_is_listed_once() -> None:
    for kind in (lambda f: f.name, lambda f: (f.file, f.text, f.fault)):
        assert [key for key, times in Counter(map(kind, FAULTS)).items() if times > 1] == []


def test_each_test_exists() -> None:
    missing = set()
    for name in {name for fault in FAULTS for name in fault.tests}:
        path, *inside = name.split("::")
        text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
        if not text or (inside and f"def {inside[-1]}(" not in text):
            missing.add(name)
    assert missing == set()


@pytest.mark.parametrize(("source", "expected"), [("a = 1\n", "a = 2\n"), ("a = 1\na = 1\n", None), ("b\n", None)])
def test_a_fault_applies_where_its_text_stands_exactly_once(source: str, expected: str | None) -> None:
    assert Fault("name", "file", "a = 1", "a = 2", "test").applied(source) == expected

"""Run a part of a cross product in the ordinary tests, and all of it in `make test-whole`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest


def quick(cases: Sequence[Any], chosen: Collection[Any]) -> list[Any]:
    """Return the cases as parameters; those that are not chosen are left to `make test-whole`.

    Args:
        cases: values of one parameter, or tuples with a value of each.
        chosen: the cases of the ordinary tests.
    """
    marks = [() if case in chosen else pytest.mark.whole for case in cases]
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=mark) for value, mark in zip(values, marks, strict=True)]

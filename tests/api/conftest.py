"""Errors in these tests are those that a user of Python reads."""

from __future__ import annotations

import pytest

from litpeft import errors


@pytest.fixture(autouse=True)
def _arguments_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_blocks", 0)

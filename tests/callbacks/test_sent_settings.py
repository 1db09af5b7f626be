"""The names by which services call a run are noted once, by the first process, and only if a logger is of a service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from litpeft.callbacks import sent_figures
from litpeft.runs.logger_runs import saved_versions
from litpeft.runs.record import new_record


class Remote:
    version = "abc123"


class Local:
    version = 0


@pytest.mark.parametrize(
    ("loggers", "first", "noted"),
    [
        ([Remote(), Local()], True, {"Remote": "abc123"}),
        ([Remote()], False, None),
        ([Local()], True, None),
        ([], True, None),
    ],
)
def test_the_name_of_a_run_at_a_service_is_noted(
    loggers: list[Any], first: bool, noted: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(sent_figures, "send", lambda *given: sent.append(given))
    monkeypatch.setattr(sent_figures, "outlet_of", lambda logger: SimpleNamespace(takes_files=type(logger) is Remote))
    trainer = SimpleNamespace(loggers=loggers, is_global_zero=first, default_root_dir=str(tmp_path))
    sent_figures.send_settings(trainer, new_record() | {"seed": 3})
    assert (tmp_path / "loggers.json").exists() == (noted is not None)
    assert saved_versions(tmp_path) == (noted or {})
    ((to, kind, settings),) = sent
    assert (to, kind, settings["run_dir"]) == (loggers, "settings", str(tmp_path))

"""The names by which services call a run are noted once, by the first process, and only if a logger is of a service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from litpeft.callbacks import sent_figures
from litpeft.callbacks.sent_figures import figures_of, settings_of
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


def test_settings_are_plain_values_and_the_learning_rate_is_the_one_before_the_schedule() -> None:
    record = new_record() | {
        "adapter": "lora", "seed": 0, "precision": "bf16", "effective_batch_size": 16, "train_loss": 0.5,
        "adapter_options": {"rank": 8, "targets": ["query"], "layers": None, "rslora": False},
    }  # fmt: skip
    expected = {
        "adapter": "lora", "seed": 0, "precision": "bf16", "effective_batch_size": 16, "adapter.rank": 8,
        "adapter.targets": "['query']", "adapter.rslora": False,
    }  # fmt: skip
    assert settings_of(record) == expected
    for settings, lr in (
        ([{"lr": 0.5}], 0.5), ([{"lr": 0.0, "initial_lr": 0.25}, {"lr": 1.0}], 0.25), ([{}], None), ([], None),
    ):  # fmt: skip
        found = settings_of(record | {"optimizer_settings": settings})
        assert found == expected | ({} if lr is None else {"lr": lr})


def test_figures_are_those_that_are_known_with_other_metrics_and_scores() -> None:
    record = new_record() | {"val_loss": 0.5, "val_accuracy": 0.0, "steps": 7, "trainable_params": 12}
    assert figures_of(record) == {"val_loss": 0.5, "val_accuracy": 0.0, "trainable_params": 12}
    result = {"scores": {"acc": 0.75, "f1": None}, "standard_errors": {}}
    more = {"other_metrics": {"val_mae": 2.0}, "benchmarks": [{"step": 4, "results": {"blimp": result}, "skipped": {}}]}
    assert figures_of(record | more) == figures_of(record) | {"val_mae": 2.0, "blimp_acc": 0.75}

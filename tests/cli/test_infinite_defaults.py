"""An infinite default of an optimizer's own is accepted; an infinite value that a user gives is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from litpeft.__main__ import main
from litpeft.runs.record import read_record

OPTIMIZER = """
import torch

class Growing(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.1, growth_rate: float = float("inf")):
        super().__init__(params, lr=lr)
"""


def test_an_infinite_default_passes_and_a_given_infinity_does_not(
    tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "growing_optimizer.py").write_text(OPTIMIZER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    common = [*fit_arguments, "--model.optimizer", "growing_optimizer.Growing", "--trainer.max_steps", "2"]
    assert main([*common, "--run_dir", "run"]) == 0
    assert read_record(tmp_path / "run")["optimizer"] == "growing_optimizer.Growing"
    assert main([*common, "--model.optimizer.lr", ".inf", "--run_dir", "other"]) == 2
    assert "model.optimizer.lr must be a finite number, got inf" in capsys.readouterr().err

"""Progress lines where there is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from litpeft.__main__ import main
from litpeft.callbacks import progress


@pytest.mark.parametrize(("seconds", "steps"), [(1000.0, [1]), (0.0, list(range(1, 13)))])
def test_the_first_line_comes_after_the_first_step(
    seconds: float,
    steps: list[int],
    tmp_path: Path,
    fit_arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
    options = ["--trainer.enable_progress_bar", "true", "--trainer.max_steps", "12"]
    assert main([*fit_arguments, *options, "--run_dir", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ") and "train_loss" in line]
    assert [int(line.split()[1].partition("/")[0]) for line in lines] == steps
    assert lines[0].startswith("step 1/12, train_loss ")
    assert ["left" in line for line in lines] == [False] + [True] * (len(steps) - 1)  # the first step is no measure

"""Every verb finds user classes in the working directory, without an installation."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.runs.record import read_record
from tests.forking import litpeft

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "extend.md"


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with `mine.py` from docs/how_to/extend.md: an adapter, a task, data and a benchmark."""
    (tmp_path / "mine.py").write_text("\n\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text())))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    """Run a command line as in a new process: `mine` is not imported, and its folder is not on the path."""
    path = list(sys.path)
    sys.modules.pop("mine", None)
    try:
        return main(list(arguments))
    finally:
        sys.path[:] = path


def test_every_verb_finds_an_adapter_a_task_a_data_set_and_a_benchmark(
    user_folder: Path, fit_arguments: list[str], sentences: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    options = [
        {"SequenceClassification": "mine.LabelSmoothing", "SST2": "mine.Films"}.get(word, word)
        for word in fit_arguments
    ]
    options = [*options[1:], "--model.adapter", "mine.BitFit"]
    assert run("estimate", *options, "--device", "cpu") == 0
    assert "bitfit" in capsys.readouterr().out
    assert run("find_lr", *options, "--steps", "10") == 0
    fit = ["--run_dir", "run", "--benchmarks.tasks", "rows", "--trainer.max_steps", "4"]
    assert run("fit", *options, *fit) == 0
    record = read_record(user_folder / "run")
    assert (record["adapter"], record["task"], record["data"]) == ("bitfit", "LabelSmoothing", "Films")
    assert record["benchmarks"][-1]["results"]["rows"]["scores"] == {"count": 32.0}
    assert run("validate", "--run_dir", "run") == 0
    assert run("test", "--run_dir", "run", "--data.test_file", sentences["val"]) == 0
    assert run("predict", "--run_dir", "run", "--data.predict_file", sentences["val"]) == 0
    assert len((user_folder / "run" / "predictions.jsonl").read_text().splitlines()) == 32
    assert run("evaluate", "run", "--tasks", "rows", "--accelerator", "cpu") == 0
    assert run("export", "run", "merged", "--format", "merged") == 0
    assert json.loads((user_folder / "merged" / "config.json").read_text())["model_type"] == "bert"
    capsys.readouterr()
    assert run("compare", "run", "--by", "adapter") == 0
    assert "bitfit" in capsys.readouterr().out


def test_a_sweep_finds_user_classes(user_folder: Path, fit_arguments: list[str]) -> None:
    pairs = iter(fit_arguments[1:])
    options = {name.removeprefix("--"): next(pairs) for name in pairs}
    variants = {"bitfit": {"model.adapter": "mine.BitFit"}, "full": {"model.adapter": "Full"}}
    experiment = {
        "options": options | {"trainer.max_steps": 2, "model": "mine.LabelSmoothing"},
        "axes": {"kind": variants},
    }
    (user_folder / "mine.yaml").write_text(yaml.safe_dump(experiment | {"seeds": 1}))
    done = litpeft("sweep", "mine.yaml", cwd=user_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {read_record(path.parent)["adapter"] for path in user_folder.rglob("record.json")} == {"bitfit", "none"}

"""Classes in the folder where a user runs litpeft: every verb finds them, without an installation."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.runs.record import read_record
from tests.conftest import litpeft

README = Path(__file__).parents[2] / "README.md"
OTHERS = '''
import torch.nn.functional as F
from litpeft.benchmarks import Benchmark, Result
from litpeft.data import SST2
from litpeft.tasks import SequenceClassification


class LabelSmoothing(SequenceClassification):
    def loss(self, batch):
        return F.cross_entropy(self(batch), batch["labels"], label_smoothing=0.1)


class Films(SST2):
    """SST-2 under another name."""


class Rows(Benchmark):
    name = "rows"

    def run(self, live):
        return Result(scores={"count": float(len(live.data.table("val")[0]))}, items=1)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README's adapter and a task, a data set and a benchmark in `mine.py`; the working directory."""
    (tmp_path / "mine.py").write_text(re.search(r"(?ms)^```python\n(.*?)^```", README.read_text())[1] + OTHERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    """Run one command line as if in a new process: no class of `mine.py` is known, and its folder not on the path."""
    path = list(sys.path)
    sys.modules.pop("mine", None)
    try:
        return main(list(arguments))
    finally:
        sys.path[:] = path


def test_every_verb_finds_an_adapter_a_task_a_data_set_and_a_benchmark(
    own: Path, words: list[str], sentences: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    options = [
        {"SequenceClassification": "mine.LabelSmoothing", "SST2": "mine.Films"}.get(word, word) for word in words
    ]
    options = [*options[1:], "--model.adapter", "mine.BitFit"]
    assert run("estimate", *options, "--device", "cpu") == 0
    assert "bitfit" in capsys.readouterr().out
    assert run("find_lr", *options, "--steps", "10") == 0
    fit = ["--run_dir", "run", "--benchmarks.tasks", "rows", "--trainer.max_steps", "4"]
    assert run("fit", *options, *fit) == 0
    record = read_record(own / "run")
    assert (record["adapter"], record["task"], record["data"]) == ("bitfit", "LabelSmoothing", "Films")
    assert record["benchmarks"][-1]["results"]["rows"]["scores"] == {"count": 32.0}
    assert run("validate", "--run_dir", "run") == 0
    assert run("test", "--run_dir", "run", "--data.test_file", sentences["val"]) == 0
    assert run("predict", "--run_dir", "run", "--data.predict_file", sentences["val"]) == 0
    assert len((own / "run" / "predictions.jsonl").read_text().splitlines()) == 32
    assert run("evaluate", "run", "--tasks", "rows", "--accelerator", "cpu") == 0
    assert run("export", "run", "merged", "--format", "merged") == 0
    assert json.loads((own / "merged" / "config.json").read_text())["model_type"] == "bert"
    capsys.readouterr()
    assert run("compare", "run", "--by", "adapter") == 0
    assert "bitfit" in capsys.readouterr().out


def test_a_sweep_finds_them(own: Path, words: list[str]) -> None:
    typed = iter(words[1:])
    options = {word.removeprefix("--"): next(typed) for word in typed}
    variants = {"bitfit": {"model.adapter": "mine.BitFit"}, "full": {"model.adapter": "Full"}}
    experiment = {
        "options": options | {"trainer.max_steps": 2, "model": "mine.LabelSmoothing"},
        "axes": {"kind": variants},
    }
    (own / "own.yaml").write_text(yaml.safe_dump(experiment | {"seeds": 1}))
    done = litpeft("sweep", "own.yaml", cwd=own)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {read_record(path.parent)["adapter"] for path in own.rglob("record.json")} == {"bitfit", "none"}

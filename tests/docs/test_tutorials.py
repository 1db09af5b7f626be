"""The README and the tutorials as a reader types them: every command of the page runs, on tiny models and few rows."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.runs.record import read_record
from litpeft.sweeps.launchers import LAUNCHERS
from tests.conftest import write_sentences
from tests.docs.pages import blocks, command_lines

FAST = [
    "--model.dtype=fp32",
    "--trainer.max_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
]


class Here:
    """A launcher that runs trials in this process: a new process takes seconds for its imports."""

    def __init__(self, **options: Any) -> None: ...

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        return main([*arguments, *FAST])

    def stop(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the reader's folder, with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(LAUNCHERS, "local", Here)
    monkeypatch.setattr("sys.stdin", io.StringIO("a lovely film\n"))  # the only turn of a chat
    rows = Path(write_sentences(tmp_path / "rows.tsv", 60)).read_text().replace("sentence\t", "text\t")
    for name in ("tickets.csv", "new.csv"):
        (tmp_path / name).write_text(rows.replace("\t", ","))
    texts = [line.split("\t")[0] for line in rows.splitlines()[1:]]
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "the film"}] for text in texts]
    for name, length in (("chat.jsonl", 2), ("questions.jsonl", 1)):
        (tmp_path / name).write_text("\n".join(json.dumps({"messages": each[:length]}) for each in turns[:24]) + "\n")
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield tmp_path
    for number, handler in handlers:
        signal.signal(number, handler)


def run_page(page: str, instead: dict[str, str], first: str, last: str = "") -> None:
    """Run the commands of a page from the first one that starts with `first` to the last that starts with `last`.

    Args:
        page: path of the page.
        instead: part of a command on the page -> what stands in its place here.
        first: start of the first command.
        last: start of the last command; empty: the last of the page.
    """
    lines = [" ".join(words) for block in blocks("", "bash") if block.page == page for words in command_lines(block)]
    lines = [line for line in lines if line.startswith("litpeft ")]
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next(i for i, line in enumerate(lines) if i >= start and line.startswith(last))
    for line in lines[start : end + 1] if last else lines[start:]:
        for part, other in instead.items():
            line = line.replace(part, other)
        words = line.split()[1:]
        words += FAST[1:] if words[0] == "fit" else []
        assert main(words) == 0, line


def write_experiment(page: str, model: str, file: str) -> None:
    """Write the page's experiment, with a tiny model, two methods and two seeds."""
    text = next(block.text for block in blocks("yaml") if block.page == page and "axes" in block.text)
    content = yaml.safe_load(text)
    content["options"] |= {"model.model_name": model, "data.train_samples": 24, "data.batch_size": 8}
    content["axes"] = {name: values[:2] for name, values in content["axes"].items()}
    Path(file).write_text(yaml.safe_dump(content | {"seeds": 2}))


def test_the_table_of_the_readme_gets_its_answer_and_the_tutorial_uses_the_model(
    folder: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment("README.md", tiny_model, "which.yaml")
    run_page("README.md", {}, "litpeft sweep", "litpeft report")
    assert len(list((folder / "runs" / "which").glob("*/seed*/record.json"))) == 4
    assert "full" in (folder / "report.html").read_text()
    (folder / "runs" / "which").rename(folder / "runs" / "tickets")  # as the tutorial calls it
    run_page("docs/tutorials/tickets.md", {}, "litpeft predict")
    assert len((folder / "runs/tickets/lora/seed0/predictions.jsonl").read_text().splitlines()) == 60
    assert (folder / "my_adapter" / "adapter_config.json").is_file()


def test_the_python_of_the_readme_runs(folder: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block.text for block in blocks("python") if block.page == "README.md")
    block = block.replace("demo:minilm", tiny_model).replace("run_dir=", "trainer__max_steps=2, run_dir=")
    exec(compile(block, "README.md", "exec"), {})
    assert "lora" in capsys.readouterr().out


def test_the_chat_tutorial_ends_with_a_model(folder: Path, byte_llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = "docs/tutorials/chats.md"
    fewer = {"full,lora,qlora-nf4": "lora", "240 --data.val_samples 48": "20 --data.val_samples 4"}
    run_page(page, {"demo:smollm2": byte_llama, **fewer}, "litpeft data")
    assert read_record(folder / "runs" / "chat")["steps"] == 2
    answers = (folder / "runs" / "chat" / "predictions.jsonl").read_text().splitlines()
    assert len(answers) == 24
    assert json.loads(answers[0]).keys() == {"response", "text"}
    assert (folder / "my_model" / "config.json").is_file()
    assert (folder / "my_adapter" / "adapter_config.json").is_file()

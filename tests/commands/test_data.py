"""`litpeft data`: rows and examples are shown, and nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litpeft.__main__ import main
from litpeft.data.told import shortened, shown

ROWS = [{"messages": [{"role": "user", "content": f"say {w}"}, {"role": "assistant", "content": w}]} for w in "abc" * 4]


def test_examples_show_what_has_loss(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    arguments = ["data", "--model", "CausalLM", "--model.model_name", tiny_llama, "--data", "Conversations"]
    assert main([*arguments, "--data.train_file", str(file), "--data.val_samples", "2", "--examples", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.count("--- train row ") == 2
    assert out.count("«") == out.count("»") == 4  # two in the headings
    assert "litpeft: train: 10 rows; tokens per row: median " in err
    assert "there is no validation split: its rows are cut from the training rows" in err
    assert "conversations are rendered with the template plain (the tokenizer has no chat template)" in err
    assert list(tmp_path.iterdir()) == [file]


def test_a_class_is_shown_as_what_has_loss(
    tiny_model: str, sentences: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    arguments = ["data", "--model", "SequenceClassification", "--model.model_name", tiny_model, "--data", "SST2"]
    files = [f"--data.{split}_file={sentences[split]}" for split in ("train", "val")]
    assert main([*arguments, *files, "--split", "val", "--examples", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith((" -> «negative»", " -> «positive»"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "dev"], "--split must be train, val or test, got dev."),
        (["--examples", "-1"], "--examples must not be negative, got -1."),
        (["--data.nonsense", "1"], "data has no option 'nonsense'"),
    ],
)
def test_mistakes_are_one_sentence(
    tiny_llama: str, options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["data", "--model", "CausalLM", "--model.model_name", tiny_llama, "--data", "ArithmeticInstructions"]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err


def test_long_parts_are_shortened_and_control_characters_escaped() -> None:
    parts = shortened([("a" * 5000, False), ("b\x1b[31m", True)], most=100)
    assert [len(text) for text, _ in parts] == [50 + len(" [...] "), 6]
    assert shown(parts[1:], colour=False) == "«b\\x1b[31m»"

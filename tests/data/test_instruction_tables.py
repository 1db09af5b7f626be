"""Instruction tables as people bring them: bad rows, columns that are not used, end-of-text tokens written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.data import Alpaca
from litpeft.errors import UserError
from litpeft.runs.record import read_record
from tests.data.test_text_classification import make

GOOD = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("good", "bad", "fine", "dull") * 3]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def test_bad_rows_are_told_at_once_or_skipped(tiny_llama: str, tmp_path: Path) -> None:
    bad = [{"instruction": "", "input": "", "output": "x"}, {"instruction": "say", "input": "", "output": 3}]
    file = write(tmp_path / "a.json", [*GOOD, *bad])
    with pytest.raises(
        UserError,
        match=r"2 of 14 rows cannot be used \(.*item 13: the question in column 'instruction' is empty.*item 14:",
    ):
        make(Alpaca, tokenizer=tiny_llama, train_file=file, val_file=file)
    data = make(Alpaca, tokenizer=tiny_llama, train_file=file, val_file=file, on_bad_row="skip")
    table, facts = data.table("train")
    assert len(table) == 12
    assert facts["skipped_rows"] == 2


def test_unused_columns_and_rows_are_told_and_recorded(
    tiny_llama: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [row | {"source": "me", "id": 3} for row in GOOD]
    file = write(tmp_path / "a.json", rows)
    arguments = ["fit", "--model", "CausalLM", "--model.model_name", tiny_llama, "--data", "Alpaca"]
    arguments += [f"--data.{split}_file={file}" for split in ("train", "val")] + ["--trainer.max_steps", "1"]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--run_dir"]
    assert main([*arguments, str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "litpeft: train: 12 rows; tokens per row: median " in said
    assert "; columns used: instruction, input, output; columns not used: source, id" in said
    summary = read_record(tmp_path / "run")["data_summary"]
    assert summary["tables"]["train"]["unused_columns"] == ["source", "id"]
    assert summary["tokens_per_row"]["train"]["longest"] >= summary["tokens_per_row"]["train"]["median"] > 1


def test_the_end_of_text_token_comes_once(tiny_llama: str, tmp_path: Path) -> None:
    plain = make(Alpaca, tokenizer=tiny_llama, train_file=write(tmp_path / "a.json", GOOD), val_samples=2)
    end = plain.tokenizer.eos_token
    written = [row | {"output": row["output"] + end} for row in GOOD]
    marked = make(Alpaca, tokenizer=tiny_llama, train_file=write(tmp_path / "b.json", written), val_samples=2)
    for one, other in zip(plain.train_dataloader(), marked.train_dataloader(), strict=True):
        assert one["input_ids"].tolist() == other["input_ids"].tolist()
        assert (one["labels"] == plain.tokenizer.eos_token_id).sum() == len(one["row"])


@pytest.mark.parametrize(
    ("texts", "lacks"),
    [
        ({"prompt_input": "{instruction} {input}"}, "prompt_no_input, a text that contains {instruction}"),
        ({"prompt_input": "{instruction}", "prompt_no_input": "{instruction}"}, "prompt_input, .* contains {input}"),
        ({"prompt_input": "{instruction} {input}", "prompt_no_input": 3}, "prompt_no_input, .* contains {instruction}"),
        (["{instruction}"], "prompt_input, a text that contains {instruction}"),
    ],
)
def test_a_file_of_a_template_without_a_place_for_the_question_is_refused(
    tiny_llama: str, tmp_path: Path, texts: Any, lacks: str
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "a", "output": "b"}] * 2))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(texts))
    data = Alpaca(tokenizer=tiny_llama, train_file=str(rows), val_samples=1, template=str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match=f"mine.yaml: it needs {lacks}"):
        data.setup("fit")

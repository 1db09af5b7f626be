"""docs/python.md: its code blocks run, in order, in one session, on a tiny model in place of roberta-base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_sentences

DOCS = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = Path(write_sentences(tmp_path / "rows.tsv", 48)).read_text().replace("sentence\t", "text\t")
    (tmp_path / "reviews.csv").write_text(table.replace("\t", ","))
    names: dict[str, Any] = {}
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        exec(compile(block.replace("roberta-base", tiny_model), str(DOCS), "exec"), names)
    assert names["run"].metrics["val_accuracy"] >= 0
    assert sorted(names["table"]["label"]) == ["dora", "lora"]
    assert len(names["predictions"]) == 3

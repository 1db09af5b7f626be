"""Predictions for texts that are given in Python, computed as `litpeft predict` does for the rows of a file."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning import Trainer

from litpeft.api.arguments import naming_arguments
from litpeft.data import Conversations, FineTuneData
from litpeft.data.labelled_texts import LabelledTexts
from litpeft.errors import UserError
from litpeft.tasks import FineTuner

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def predictions(task: FineTuner, data: FineTuneData, texts: Sequence[Any], accelerator: str) -> list[dict[str, Any]]:
    """Return one prediction per text, in their order.

    Args:
        task: the task, with its trained weights.
        data: its data module.
        texts: texts, pairs of texts, questions or conversations.
        accelerator: as `trainer__accelerator`.

    Raises:
        UserError: the data module reads no texts, or a text cannot be used.
    """
    if not texts:
        return []
    data = copy.copy(data)  # the run's own data keeps its files and tables
    data.rows, data._tables, data._highest = {}, {}, {}
    if isinstance(data, Conversations):
        data.columns_found = {}
    with TemporaryDirectory() as scratch, naming_arguments(Path(scratch), "texts"):
        path = Path(scratch) / "texts.jsonl"
        rows = _rows(data, texts, str(path))
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
        data.files, data.cache_dir = data.files | {"predict": str(path)}, Path(scratch)
        trainer = Trainer(accelerator=accelerator, devices=1, **QUIET, default_root_dir=scratch)
        parts = trainer.predict(task, data)
    found = sorted((row for part in parts for row in part), key=lambda row: row["row"])
    return [{name: value for name, value in row.items() if name != "row"} for row in found]


def _rows(data: FineTuneData, texts: Sequence[Any], path: str) -> list[dict[str, Any]]:
    """Return the rows of a file that the data module reads."""
    if isinstance(data, LabelledTexts):
        columns = data.layout(path).get("text_column", data.text_columns)
        return [_columns(text, columns) for text in texts]
    if isinstance(data, Conversations):
        column, turns = data.columns_given["prompt"] or "prompt", data.columns_given["messages"] or "messages"
        kinds = {isinstance(text, str) for text in texts}
        if len(kinds) > 1:
            raise UserError("texts: give questions, or conversations, not both.")
        return [{column: text} if isinstance(text, str) else {turns: list(text)} for text in texts]
    raise UserError(f"predict(texts) does not work with {type(data).__name__}; use litpeft predict with a file.")


def _columns(text: Any, columns: Sequence[str]) -> dict[str, Any]:
    if isinstance(text, Mapping):
        return dict(text)
    parts = [text] if isinstance(text, str) else list(text)
    if len(parts) != len(columns):
        wanted = "one text" if len(columns) == 1 else f"{len(columns)} texts ({', '.join(columns)})"
        raise UserError(f"texts: the run was trained on {wanted} per row, got {len(parts)}.")
    return dict(zip(columns, parts, strict=True))

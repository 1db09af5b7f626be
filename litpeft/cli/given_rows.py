"""Predictions for texts, images or a file that are given, computed as `litpeft predict` does."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer

from litpeft.data import Conversations, FineTuneData
from litpeft.data.image_folder import ImageFolder
from litpeft.data.labelled_texts import LabelledTexts
from litpeft.errors import UserError
from litpeft.tasks import FineTuner

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def predict_given(
    task: FineTuner, data: FineTuneData, given: Sequence[Any], accelerator: str, scratch: Path
) -> list[dict[str, Any]]:
    """Return one prediction per given text or image, in their order.

    Args:
        task: the task, with its trained weights.
        data: its data module.
        given: texts, pairs of texts, questions or conversations; paths of images.
        accelerator: as `--trainer.accelerator`.
        scratch: an empty folder for files; errors may name one of them.

    Raises:
        UserError: the data module reads no texts or images, or one of them cannot be used.
    """
    path = scratch / "texts.jsonl"
    rows = _rows(data, given, str(path))
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    found = predict_file(task, data, str(path), accelerator, scratch)
    return [{name: value for name, value in row.items() if name != "text"} for row in found]


def predict_file(
    task: FineTuner, data: FineTuneData, path: str, accelerator: str, scratch: Path
) -> list[dict[str, Any]]:
    """Return one prediction per row of a file, in order, each with the `text` of its row.

    Args:
        task: the task, with its trained weights.
        data: its data module, which keeps its own files and tables.
        path: a file as `--data.predict_file` takes it.
        accelerator: as `--trainer.accelerator`.
        scratch: a folder for files.
    """
    data = copy.copy(data)
    data.rows, data._tables, data._highest = {}, {}, {}
    if isinstance(data, Conversations):
        data.columns_found = {}
    data.files, data.cache_dir = data.files | {"predict": path}, scratch
    trainer = Trainer(accelerator=accelerator, devices=1, **QUIET, default_root_dir=str(scratch))
    parts = trainer.predict(task, data)
    texts = data.table("predict")[0]["text"]
    found = sorted((row for part in parts for row in part), key=lambda row: row["row"])
    return [
        {name: value for name, value in row.items() if name != "row"} | {"text": texts[row["row"]]} for row in found
    ]


def _rows(data: FineTuneData, given: Sequence[Any], path: str) -> list[dict[str, Any]]:
    """Return the rows of a file that the data module reads."""
    if isinstance(data, LabelledTexts):
        columns = data.layout(path).get("text_column", data.text_columns)
        return [_columns(text, columns) for text in given]
    if isinstance(data, Conversations):
        column, turns = data.columns_given["prompt"] or "prompt", data.columns_given["messages"] or "messages"
        kinds = {isinstance(text, str) for text in given}
        if len(kinds) > 1:
            raise UserError("texts: give questions, or conversations, not both.")
        return [{column: text} if isinstance(text, str) else {turns: list(text)} for text in given]
    if isinstance(data, ImageFolder):
        return [{data.image_column: str(Path(image).expanduser().absolute())} for image in given]
    raise UserError(f"texts cannot be given to {type(data).__name__}; use litpeft predict with a file.")


def _columns(text: Any, columns: Sequence[str]) -> dict[str, Any]:
    if isinstance(text, Mapping):
        return dict(text)
    parts = [text] if isinstance(text, str) else list(text)
    if len(parts) != len(columns):
        wanted = "one text" if len(columns) == 1 else f"{len(columns)} texts ({', '.join(columns)})"
        raise UserError(f"texts: the run was trained on {wanted} per row, got {len(parts)}.")
    return dict(zip(columns, parts, strict=True))

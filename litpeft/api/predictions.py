"""Predictions for texts that are given in Python; errors name arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from litpeft.api.arguments import naming_arguments
from litpeft.cli.given_rows import predict_given
from litpeft.data import FineTuneData
from litpeft.tasks import FineTuner


def predictions(task: FineTuner, data: FineTuneData, texts: Sequence[Any], accelerator: str) -> list[dict[str, Any]]:
    """Return one prediction per text, in their order.

    Args:
        task: the task, with its trained weights.
        data: its data module.
        texts: texts, pairs of texts, questions or conversations; paths of images.
        accelerator: as `trainer__accelerator`.

    Raises:
        UserError: the data module reads no texts, or a text cannot be used.
    """
    if not texts:
        return []
    with TemporaryDirectory() as scratch, naming_arguments(Path(scratch), "texts"):
        return predict_given(task, data, texts, accelerator, Path(scratch))

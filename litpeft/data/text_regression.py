"""Texts with numbers as targets, from local files or the hub."""

from __future__ import annotations

from typing import Any

from litpeft.data.labelled_texts import LabelledTexts
from litpeft.data.number_labels import NumberLabels


class TextRegression(LabelledTexts):
    """Texts, or pairs of texts, with one or several numbers each, from local files or the hub.

    The model learns standardised targets, (target - mean) / deviation, with the mean and the standard deviation of the
    used training rows; errors and predictions are in the targets' own unit. Rows with a missing target, NaN or infinity
    cannot be used (see `on_bad_row`).

    Args:
        text_column: name of the column with the text. Two columns are a pair, which the tokenizer joins with its
            separator; the longer text is truncated first.
        label_column: name of the column with the target, or of several; `predict_file` does not need it.
        target_mean: number to subtract from each target, instead of the mean of the training rows.
        target_deviation: number to divide each target by, instead of the standard deviation of the training rows.
        join_columns: join the columns with a space into one text, instead of a pair.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    def __init__(
        self,
        text_column: str | list[str] = "text",
        label_column: str | list[str] = "label",
        target_mean: float | list[float] | None = None,
        target_deviation: float | list[float] | None = None,
        join_columns: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(text_column=text_column, join_columns=join_columns, **options)
        columns = [label_column] if isinstance(label_column, str) else list(label_column)
        self.labels: NumberLabels = NumberLabels(self, columns, target_mean, target_deviation)

"""Text classification data from local files or the hub; SST2 and AGNews are presets of it."""

from __future__ import annotations

from typing import Any, Literal

from litpeft.data.class_labels import ClassLabels
from litpeft.data.labelled_texts import LabelledTexts


class TextClassification(LabelledTexts):
    """Texts, or pairs of texts, with one class each, from local files or the hub.

    Labels are numbers (starting at `label_offset`, or -1 and 1) or names. The classes come from `label_names`, else
    from the data set's description on the hub, else from the training rows. Empty cells, NaN, NA and null are missing.

    Args:
        text_column: name of the column with the text. Two columns are a pair, which the tokenizer joins with its
            separator; the longer text is truncated first.
        label_column: name of the column with the label; `predict_file` does not need it.
        label_names: names of the classes, in the order of their numbers.
        label_offset: number of the first class in the files: 0, or 1 if the files count from 1.
        join_columns: join the columns with a space into one text, instead of a pair.
        val_cut: how validation rows are cut from the training rows if there is no validation split: `stratified` (each
            class in proportion) or `random`, as up to version 0.1.0.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    def __init__(
        self,
        text_column: str | list[str] = "text",
        label_column: str = "label",
        label_names: list[str] | None = None,
        label_offset: int = 0,
        join_columns: bool = False,
        val_cut: Literal["stratified", "random"] = "stratified",
        **options: Any,
    ) -> None:
        super().__init__(text_column=text_column, join_columns=join_columns, **options)
        self.label_column, self.label_offset = label_column, label_offset
        self.labels: ClassLabels = ClassLabels(self, label_column, label_names, label_offset, val_cut)

    def layout(self, path: str) -> dict[str, Any]:
        """Return how to read a file, with `text_column` and `label_offset`."""
        return super().layout(path) | {"label_offset": self.label_offset}

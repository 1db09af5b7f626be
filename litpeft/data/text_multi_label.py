"""Texts with any number of labels each, from local files or the hub."""

from __future__ import annotations

from typing import Any

from litpeft.data.label_sets import LabelSets
from litpeft.data.labelled_texts import LabelledTexts


class TextMultiLabel(LabelledTexts):
    """Texts, or pairs of texts, with any number of labels each, from local files or the hub.

    Labels are names or numbers (from 0): a list (`["joy", "love"]`), text with a separator (`joy, love`), a list with 0
    or 1 for each label (`[0, 1, 1]`), or one column of 0 and 1 for each label. The names come from `label_names`, else
    from the columns or the data set's description on the hub, else from the training rows. An empty list or text is a
    row without labels; these rows are counted.

    Args:
        text_column: name of the column with the text. Two columns are a pair, which the tokenizer joins with its
            separator; the longer text is truncated first.
        label_column: name of the column with the labels of a row, or of several columns of 0 and 1, which name the
            labels; `predict_file` does not need it.
        label_names: names of the labels, in the order of their numbers or columns.
        label_separator: what stands between two labels in one text.
        join_columns: join the columns with a space into one text, instead of a pair.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    def __init__(
        self,
        text_column: str | list[str] = "text",
        label_column: str | list[str] = "labels",
        label_names: list[str] | None = None,
        label_separator: str = ",",
        join_columns: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(text_column=text_column, join_columns=join_columns, **options)
        columns = [label_column] if isinstance(label_column, str) else list(label_column)
        self.labels: LabelSets = LabelSets(self, columns, label_names, label_separator)

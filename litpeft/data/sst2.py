"""SST-2: sentiment of sentences from film reviews (Socher et al. 2013, https://aclanthology.org/D13-1170)."""

from typing import Any

from litpeft.data.text_classification import TextClassification


class SST2(TextClassification):
    """SST-2, from the hub (67,349 training phrases, 872 validation sentences) or from GLUE's TSV files.

    The test split on the hub has no labels (all are -1): use it with `litpeft predict`, not `litpeft test`.

    Args:
        dataset: hub id, used if no file is given.
        text_column: name of the column with the text; two columns are a pair.
        label_names: names of the classes, in the order of their numbers.
        options: files and the other options of `TextClassification`.
    """

    def __init__(
        self,
        dataset: str | None = "stanfordnlp/sst2",
        text_column: str | list[str] = "sentence",
        label_names: list[str] | None = ["negative", "positive"],  # noqa: B006 (shown by --help)
        **options: Any,
    ) -> None:
        super().__init__(dataset=dataset, text_column=text_column, label_names=label_names, **options)

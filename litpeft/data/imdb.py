"""IMDB: sentiment of film reviews (Maas et al. 2011, https://aclanthology.org/P11-1015)."""

from typing import Any

from litpeft.data.text_classification import TextClassification


class IMDB(TextClassification):
    """IMDB, from the hub (25,000 training and 25,000 test reviews) or from local files.

    There is no validation split, so validation rows are cut from the training rows. Most reviews have more than 256
    tokens: give `max_length` 512 to read them as the published results do.

    Args:
        dataset: hub id, used if no file is given.
        label_names: names of the classes, in the order of their numbers.
        options: files and the other options of `TextClassification`.
    """

    def __init__(
        self,
        dataset: str | None = "stanfordnlp/imdb",
        label_names: list[str] | None = ["negative", "positive"],  # noqa: B006 (shown by --help)
        **options: Any,
    ) -> None:
        super().__init__(dataset=dataset, label_names=label_names, **options)

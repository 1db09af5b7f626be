"""AG News: topics of news articles, four classes (Zhang et al. 2015, https://arxiv.org/abs/1509.01626)."""

from typing import Any

from litpeft.data.files import has_header
from litpeft.data.text_classification import TextClassification


class AGNews(TextClassification):
    """AG News, from the hub (120,000 training and 7,600 test articles, labels 0 to 3) or from local files.

    A .csv or .tsv file without a header is read in the authors' format: class (1 to 4), title, description. There is
    no validation split, so validation rows are cut from the training rows.

    Args:
        dataset: hub id, used if no file is given.
        label_names: names of the classes, in the order of their numbers.
        join_columns: join title and description with a space, instead of a pair.
        options: files and the other options of `TextClassification`.
    """

    def __init__(
        self,
        dataset: str | None = "fancyzhx/ag_news",
        label_names: list[str] | None = ["World", "Sports", "Business", "Sci/Tech"],  # noqa: B006 (shown by --help)
        join_columns: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(dataset=dataset, label_names=label_names, join_columns=join_columns, **options)

    def layout(self, path: str) -> dict[str, Any]:
        layout = super().layout(path)
        headers = ([self.label_column], self.text_columns)  # predict_file may have texts only
        if self.columns or any(has_header(path, names, self.delimiter, self.encoding) for names in headers):
            return layout
        return layout | {
            "columns": [self.label_column, "title", "description"],
            "text_column": ["title", "description"],
            "label_offset": 1,
        }

"""GLUE: nine tasks of one or two sentences (Wang et al. 2018, https://arxiv.org/abs/1804.07461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from litpeft.data.class_labels import ClassLabels
from litpeft.data.files import has_header
from litpeft.data.labelled_texts import LabelledTexts
from litpeft.data.number_labels import NumberLabels
from litpeft.errors import check_choices

STSB_LIMITS = (0.0, 5.0)  # similarity from unrelated to equivalent; -1 in the test split, which has no labels


@dataclass(frozen=True)
class Task:
    """A task of GLUE.

    Attributes:
        texts: columns with the text or the pair, as on the hub.
        classes: names of the classes in the order of the hub's numbers; none for a regression.
        official: the official metrics.
        further: metrics to log beside the official ones.
        original: column in GLUE's own files -> column on the hub, where they differ.
        without_header: columns of GLUE's own file, where it has no header.
    """

    texts: tuple[str, ...]
    classes: tuple[str, ...]
    official: tuple[str, ...] = ("accuracy",)
    further: tuple[str, ...] = ()
    original: tuple[tuple[str, str], ...] = ()
    without_header: tuple[str, ...] = ()


SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
MNLI = Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), original=(
    ("sentence1", "premise"), ("sentence2", "hypothesis"), ("gold_label", "label"),
))  # fmt: skip
TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), ("matthews",), ("accuracy",),
                 without_header=("source", "label", "judgement", "sentence")),
    "sst2": Task(("sentence",), ("negative", "positive")),
    "mrpc": Task(SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "binary_f1"),
                 original=(("#1 String", "sentence1"), ("#2 String", "sentence2"), ("Quality", "label"))),
    "stsb": Task(SENTENCES, (), ("pearson", "spearman"), ("rmse",), original=(("score", "label"),)),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "binary_f1"),
                original=(("is_duplicate", "label"),)),
    "mnli": MNLI,
    "mnli_mismatched": MNLI,
    "qnli": Task(("question", "sentence"), ENTAILMENT),
    "rte": Task(SENTENCES, ENTAILMENT),
    "wnli": Task(SENTENCES, ("not_entailment", "entailment")),
}  # fmt: skip


class GLUE(LabelledTexts):
    """One task of GLUE, from the hub or from local files; the official metrics are those of the task.

    All tasks are classifications (`--model SequenceClassification`) except `stsb` (`--model SequenceRegression`).
    Files have the columns of the hub, or those of GLUE's own download. MNLI trains on the same rows for both of its
    validation splits: `mnli` is validated on the matched rows, `mnli_mismatched` on the others. The test splits have no
    labels: use them with `litpeft predict`.

    Args:
        task: name of the task.
        dataset: hub id, used if no file is given.
        target_mean: for stsb, as for `TextRegression`.
        target_deviation: for stsb, as for `TextRegression`.
        options: files, batch size, limits and the other options of `TabularData` and `FineTuneData`.
    """

    def __init__(
        self,
        task: Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli_mismatched", "qnli", "rte", "wnli"],
        dataset: str | None = "nyu-mll/glue",
        target_mean: float | list[float] | None = None,
        target_deviation: float | list[float] | None = None,
        **options: Any,
    ) -> None:
        check_choices("data", GLUE.__init__, locals())
        self.task, spec = task, TASKS[task]
        if task.startswith("mnli"):
            half = "mismatched" if task == "mnli_mismatched" else "matched"
            options = {"val_split": f"validation_{half}", "test_split": f"test_{half}"} | {
                name: value for name, value in options.items() if value is not None
            }
        subset = "mnli" if task.startswith("mnli") else task
        super().__init__(text_column=list(spec.texts), join_columns=False, dataset=dataset, subset=subset, **options)
        self.labels = (
            ClassLabels(self, "label", list(spec.classes))
            if spec.classes
            else NumberLabels(self, ["label"], target_mean, target_deviation, STSB_LIMITS)
        )
        self.metrics, self.official_metrics = [*spec.official, *spec.further], len(spec.official)

    def layout(self, path: str) -> dict[str, Any]:
        """Return how to read a file: with the columns of the hub, or those of GLUE's own download."""
        spec = TASKS[self.task]
        layout = super().layout(path) | {"label_offset": 0}
        if self.columns:
            return layout
        own = {column: name for name, column in spec.original}
        texts, label = [own.get(name, name) for name in spec.texts], own.get("label", "label")
        original = layout | {"text_column": texts, "label_column": [label]}
        # with labels first: a file to predict may have texts only
        for names, found in (
            ([*spec.texts, "label"], layout),
            ([*texts, label], original),
            (spec.texts, layout),
            (texts, original),
        ):
            if has_header(path, names, self.delimiter, self.encoding):
                return found
        return layout | ({"columns": list(spec.without_header)} if spec.without_header else {})

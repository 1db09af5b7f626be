"""Tasks: what a model learns. One task per file; importing a class here makes it available in the command line."""

from litpeft.tasks.base import FineTuner
from litpeft.tasks.causal_lm import CausalLM
from litpeft.tasks.image_classification import ImageClassification
from litpeft.tasks.seq2seq_lm import Seq2SeqLM
from litpeft.tasks.sequence_classification import SequenceClassification
from litpeft.tasks.sequence_multi_label import SequenceMultiLabel
from litpeft.tasks.sequence_regression import SequenceRegression

__all__ = [
    "CausalLM",
    "FineTuner",
    "ImageClassification",
    "Seq2SeqLM",
    "SequenceClassification",
    "SequenceMultiLabel",
    "SequenceRegression",
]

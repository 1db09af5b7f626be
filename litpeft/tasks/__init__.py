"""Tasks: what is learned. A folder's file is a task; its import here makes it known to the command line."""

from litpeft.tasks.base import FineTuner
from litpeft.tasks.causal_lm import CausalLM
from litpeft.tasks.seq2seq_lm import Seq2SeqLM
from litpeft.tasks.sequence_classification import SequenceClassification

__all__ = ["CausalLM", "FineTuner", "Seq2SeqLM", "SequenceClassification"]

"""Tasks: what is learned. A folder's file is a task; its import here makes it known to the command line."""

from litpeft.tasks.base import FineTuner
from litpeft.tasks.sequence_classification import SequenceClassification

__all__ = ["FineTuner", "SequenceClassification"]

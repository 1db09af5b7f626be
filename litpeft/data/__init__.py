"""Data sets. A folder's file is a data set; its import here makes it known to the command line."""

from litpeft.data.ag_news import AGNews
from litpeft.data.alpaca import Alpaca
from litpeft.data.arithmetic import ArithmeticInstructions
from litpeft.data.base import FineTuneData
from litpeft.data.sst2 import SST2
from litpeft.data.text_classification import TextClassification

__all__ = ["SST2", "AGNews", "Alpaca", "ArithmeticInstructions", "FineTuneData", "TextClassification"]

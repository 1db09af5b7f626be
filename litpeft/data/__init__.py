"""Data sets. One per file; importing a class here makes it available in the command line."""

from litpeft.data.ag_news import AGNews
from litpeft.data.alpaca import Alpaca
from litpeft.data.arithmetic import ArithmeticInstructions
from litpeft.data.base import FineTuneData
from litpeft.data.conversations import Conversations
from litpeft.data.sst2 import SST2
from litpeft.data.text import Text
from litpeft.data.text_classification import TextClassification

__all__ = [
    "SST2",
    "AGNews",
    "Alpaca",
    "ArithmeticInstructions",
    "Conversations",
    "FineTuneData",
    "Text",
    "TextClassification",
]

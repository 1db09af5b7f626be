"""Data sets. One per file; importing a class here makes it available in the command line."""

from litpeft.data.ag_news import AGNews
from litpeft.data.alpaca import Alpaca
from litpeft.data.arithmetic import ArithmeticInstructions
from litpeft.data.base import FineTuneData
from litpeft.data.conversations import Conversations
from litpeft.data.food101 import Food101
from litpeft.data.glue import GLUE
from litpeft.data.image_folder import ImageFolder
from litpeft.data.imdb import IMDB
from litpeft.data.sst2 import SST2
from litpeft.data.text import Text
from litpeft.data.text_classification import TextClassification
from litpeft.data.text_multi_label import TextMultiLabel
from litpeft.data.text_regression import TextRegression

__all__ = [
    "GLUE",
    "IMDB",
    "SST2",
    "AGNews",
    "Alpaca",
    "ArithmeticInstructions",
    "Conversations",
    "FineTuneData",
    "Food101",
    "ImageFolder",
    "Text",
    "TextClassification",
    "TextMultiLabel",
    "TextRegression",
]

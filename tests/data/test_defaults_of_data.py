"""Defaults of the data modules: one that changes gives other results to everybody who does not name the option."""

from __future__ import annotations

from typing import Any

import pytest

from litpeft import data
from tests.defaults import defaults_of

COMMON = {
    **{
        "tokenizer": None,
        "batch_size": 32,
        "batch_tokens": None,
        "max_length": 256,
        "seed": None,
        "num_workers": 0,
        "cache_dir": None,
    },
    **{"train_samples": None, "val_samples": None, "test_samples": None},
}
FILES = {
    **{"streaming": False, "shuffle_buffer": 10_000, "dataset": None, "subset": None, "columns": None},
    **dict.fromkeys(("train_file", "val_file", "test_file", "predict_file")),
    **dict.fromkeys(("train_split", "val_split", "test_split")),
    **{"delimiter": None, "encoding": "utf-8", "on_bad_row": "error"},
}
TOKENS = {"packing": False, "long_rows": "cut"}
ANSWERS = TOKENS | {"template": "auto", "train_on": "assistant"}
TEXTS = FILES | {"text_column": "text", "join_columns": False, "label_column": "label"}
CLASSES = {"label_names": None, "label_offset": 0, "val_cut": "stratified"}
IMAGES = {"image_column": "image", "random_crop": (0.5, 1.0), "random_flip": 0.5} | {
    **{"label_column": "label", "label_names": None, "val_cut": "stratified"}
}
TURNS = dict.fromkeys(
    f"{name}_column" for name in ("messages", "prompt", "input", "response", "system", "history", "tools")
)
SENTIMENT = {"label_names": ["negative", "positive"]}
EXPECTED = {
    "AGNews": TEXTS
    | CLASSES
    | {"dataset": "fancyzhx/ag_news", "join_columns": True, "label_names": ["World", "Sports", "Business", "Sci/Tech"]},
    "Alpaca": FILES
    | ANSWERS
    | TURNS
    | {"dataset": "tatsu-lab/alpaca", "template": "alpaca", "input_column": "input"}
    | {"instruction_column": "instruction", "output_column": "output"},
    "ArithmeticInstructions": ANSWERS
    | {"template": "alpaca", "digits": 2, "operations": ["add", "subtract"]}
    | {"train_rows": 4000, "val_rows": 200, "test_rows": 500},
    "Conversations": FILES | ANSWERS | TURNS,
    "Food101": FILES | IMAGES | {"dataset": "ethz/food101"},
    "GLUE": FILES
    | {"dataset": "nyu-mll/glue", "text_column": "text", "join_columns": False}
    | {"target_mean": None, "target_deviation": None},
    "IMDB": TEXTS | CLASSES | SENTIMENT | {"dataset": "stanfordnlp/imdb"},
    "ImageFolder": FILES | IMAGES,
    "SST2": TEXTS | CLASSES | SENTIMENT | {"dataset": "stanfordnlp/sst2", "text_column": "sentence"},
    "Text": FILES | TOKENS | {"packing": True, "text_column": "text", "documents": "file"},
    "TextClassification": TEXTS | CLASSES,
    "TextMultiLabel": TEXTS | {"label_column": "labels", "label_names": None, "label_separator": ","},
    "TextRegression": TEXTS | {"target_mean": None, "target_deviation": None},
}
NEEDED = {"GLUE": {"task": "mrpc"}}  # options without a default


@pytest.mark.parametrize("name", EXPECTED)
def test_the_defaults_of_a_data_module_stay(name: str) -> None:
    kind = getattr(data, name)
    expected: dict[str, Any] = COMMON | EXPECTED[name]
    assert defaults_of(kind) == expected
    files = {"train_file": "train.jsonl"} if "train_file" in expected else {}
    module = kind(**files | NEEDED.get(name, {}))
    assert (module.batch_size, module.max_length) == (32, 1 if "image_column" in expected else 256)

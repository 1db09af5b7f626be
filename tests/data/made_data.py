"""Made-up data of every kind, right and wrong, and what data sets make of them as text; `test_approved` compares it."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from litpeft.data import (
    GLUE,
    Alpaca,
    ArithmeticInstructions,
    Conversations,
    FineTuneData,
    ImageFolder,
    Text,
    TextClassification,
    TextMultiLabel,
    TextRegression,
)
from litpeft.data.sequences import Sequences
from litpeft.data.told import tell
from litpeft.errors import UserError
from tests.conftest import write_tiny_bert
from tests.data.image_files import write_images, write_vision_model
from tests.data.made_rows import files, labels, turns
from tests.data.test_conversations import TOOL_ROW, TURNS, WITH_TOOLS, tokenizer

WORDS = ("the", "film", "was", "very", "good", "bad", "fine")


def write(name: str, rows: Iterable[Any]) -> str:
    """Write JSON lines."""
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def shown(kind: type[FineTuneData], stage: str = "fit", batches: int = 2, **options: Any) -> list[str]:
    """Return what is told of a data set, its facts, and the first batches of each split, one line each."""
    lines, told = [f"# {kind.__name__} {json.dumps(options)}"], io.StringIO()
    try:
        with redirect_stderr(told):
            data = kind(**options | {"cache_dir": "cache"})
            data.setup(stage)
            facts = data.describe()
            tell(facts)
        lines += _without_bars(told.getvalue())
        for table in facts["tables"].values():
            table.pop("fingerprint")
        lines.append(f"facts {json.dumps(facts, ensure_ascii=False)}")
        for split in ("train", "val") if stage == "fit" else (stage,):
            for batch in itertools.islice(getattr(data, f"{split}_dataloader")(), batches):
                values = {name: tensor.tolist() for name, tensor in batch.items() if name != "pixel_values"}
                if "pixel_values" in batch:
                    means = batch["pixel_values"].mean(dim=(2, 3)).tolist()
                    values["means"] = [[round(mean, 3) for mean in image] for image in means]
                lines.append(f"{split} {json.dumps(values)}")
            if split == "train" and options.get("streaming"):
                lines += _later_batches(data)
            if batches and isinstance(data, Sequences):
                texts = [texts for _, *texts in data.prompts(split, 3)] if split in data.rows else []
                lines.append(f"prompts and responses {json.dumps(texts)}")
    except UserError as error:
        lines += [*_without_bars(told.getvalue()), f"UserError: {error}"]
    return lines


def _later_batches(data: FineTuneData) -> list[str]:
    """Return the row numbers and the tokens of a stream's first batches, its counts and its position after each."""
    loader, lines = data.train_dataloader(), []
    for batch in itertools.islice(loader, 14):
        state = loader.state_dict()
        carried = state.pop("carried")
        place = state | {"row": batch["row"].tolist(), "tokens": int((batch["input_ids"] > 0).sum())}
        lines.append(f"stream {json.dumps(place | data.measured() | {'has_rows_left': carried is not None})}")
    return lines


def _without_bars(told: str) -> list[str]:
    """Return the lines of a text without progress bars."""
    return [line for line in told.splitlines() if line.strip() and "examples/s]" not in line]


def sentences(number: int) -> str:
    """Return a text of up to seven words of the tiny model's vocabulary."""
    return " ".join(WORDS[(number + place) % 7] for place in range(number % 7 + 1))


def classes() -> list[str]:
    """Show classes: numbers and names, with bad rows, long rows, pairs, a header of its own, and rows to predict."""
    model = write_tiny_bert(Path("bert"))
    common = {"tokenizer": model, "batch_size": 3, "seed": 0, "max_length": 6}
    rows = [{"text": sentences(n), "label": ("Good", "bad", "good ", "fine")[n % 4], "more": 1} for n in range(24)]
    odd = [{"text": None, "label": "bad", "more": 1}, {"text": 3, "label": "bad"}, {"text": " ", "label": "bad"}]
    odd += [{"text": "fine", "label": label} for label in (None, ["a"], "nan", "worse")]
    file, few = write("classes.jsonl", rows), write("few.jsonl", rows[:5])
    lines = shown(TextClassification, train_file=file, **common)
    lines += shown(TextClassification, train_file=write("odd.jsonl", rows + odd), val_file=few, **common)
    skip = {"on_bad_row": "skip", "label_names": ["Good", "bad", "good", "fine", "none"]}
    lines += shown(TextClassification, train_file="odd.jsonl", val_file=few, **skip, **common)
    pair = {"text_column": ["a", "b"], "label_column": "y", "val_samples": 4, "train_samples": 10}
    whole = [{"a": sentences(n), "b": sentences(n + 2), "c": "x", "y": n % 3 + 1} for n in range(20)]
    numbers = {"train_file": write("pairs.jsonl", whole), "label_offset": 1}
    lines += shown(TextClassification, **pair, **numbers, **common)
    lines += shown(TextClassification, **pair | {"text_column": ["a", "b", "c"]}, **numbers, **common)
    lines += shown(TextClassification, **pair | {"join_columns": True, "val_cut": "random"}, **numbers, **common)
    lines += shown(TextClassification, "predict", train_file=file, val_file=few, **common)
    lines += shown(TextClassification, batch_tokens=18, train_file=file, val_file=few, **common)
    lines += shown(TextClassification, batch_tokens=5, train_file=file, val_file=few, **common)
    stream = {"streaming": True, "shuffle_buffer": 7, "label_names": ["Good", "bad", "good", "fine"]}
    lines += shown(TextClassification, train_file=file, val_samples=5, **stream, **common)
    lines += shown(TextClassification, train_file=file, val_samples=5, **stream | {"label_names": None}, **common)
    Path("glue.tsv").write_text("a\t0\t\tthe film\nb\t1\t*\tvery bad\n" * 4)
    lines += shown(GLUE, task="cola", train_file="glue.tsv", **common)
    Path("stsb.tsv").write_text("sentence1\tsentence2\tscore\n" + "the film\tbad\t4.5\ngood\tbad\t0\n" * 4)
    return lines + shown(GLUE, task="stsb", train_file="stsb.tsv", **common)


def sets_and_numbers() -> list[str]:
    """Show labels that are sets or numbers."""
    common = {"tokenizer": write_tiny_bert(Path("bert")), "batch_size": 3, "seed": 0}
    given = ["a,b", "", "b", '["a", "c"]', "['c']", ["a"], [], 2.0, "b, a,"]
    rows = [{"text": sentences(n), "label": label} for n, label in enumerate(given * 2)]
    file = write("sets.jsonl", rows)
    lines = shown(TextMultiLabel, train_file=file, label_column="label", label_names=["a", "b", "c", "d"], **common)
    lines += shown(TextMultiLabel, train_file=file, label_column="label", **common)
    two = [{"text": "the film", "label": "a;b"}, {"text": "was bad", "label": "b"}]
    for label in ("a;2", "a;9", None, "[1, {}]", "nan", "3", "4", "-1", ["a", ""], {"a": 1}, "[a", 4, True, [None]):
        several = write("one.jsonl", [*two, {"text": "bad", "label": label}])
        options = {"label_names": ["a", "b", "c", "d"], "label_separator": ";", "label_column": "label"}
        lines += shown(TextMultiLabel, train_file=several, val_file=several, batches=0, **options, **common)
    flags = [{"text": sentences(n), "x": n % 2, "y": str(n % 3 == 0), "z": "no"} for n in range(9)]
    columns = {"label_column": ["x", "y", "z"], "train_file": write("flags.jsonl", flags)}
    lines += shown(TextMultiLabel, **columns, **common)
    lines += shown(TextMultiLabel, **columns, label_names=["1", "2"], **common)
    lines += shown(TextMultiLabel, **columns | {"label_column": ["x", "text"]}, **common)
    numbers = [{"text": sentences(n), "x": n / 4, "y": str(10 - n)} for n in range(12)]
    file = write("numbers.jsonl", numbers)
    lines += shown(TextRegression, train_file=file, label_column=["x", "y"], **common)
    lines += shown(TextRegression, train_file=file, label_column="x", target_mean=1.0, target_deviation=2.0, **common)
    lines += shown(TextRegression, "test", train_file=file, test_file=file, label_column="x", **common)
    for value in (None, "", "high", [1], float("inf"), "nan"):
        bad = write("bad.jsonl", [*numbers, {"text": "bad", "x": value, "y": 1}])
        lines += shown(TextRegression, train_file=bad, val_file=file, label_column="x", batches=0, **common)
    lines += shown(TextRegression, train_file=file, label_column="x", target_mean=[1.0, 2.0], **common)
    lines += shown(TextRegression, train_file=file, label_column="x", target_deviation=0.0, **common)
    equal = write("equal.jsonl", [row | {"x": 1} for row in numbers])
    return lines + shown(TextRegression, train_file=equal, label_column="x", **common)


def chats() -> list[str]:
    """Show conversations: templates, weights, tools, thoughts, what is dropped, packing, streams and prompts."""
    tokenizer("bytes", Path("tokenizer"))
    common = {"tokenizer": "tokenizer", "batch_size": 2, "seed": 0, "max_length": 80}
    system = {"role": "system", "content": "Be short."}
    rows: list[dict[str, Any]] = [
        {"messages": TURNS},
        {"messages": [system, *TURNS]},
        {"messages": [TURNS[0], TURNS[1] | {"weight": 0}, *TURNS[2:]]},
        {"messages": [*TURNS, TURNS[0]], "more": 1},
        {"messages": TURNS[:1]},
        {"messages": [TURNS[0], {"role": "assistant", "content": " "}]},
        {"messages": [TURNS[0], {"role": "assistant", "content": ""}, *TURNS[2:]]},
        {"messages": [TURNS[0], {"role": "assistant", "content": "one </s>", "thinking": "a thought"}]},
        {"messages": [TURNS[0] | {"content": "What is one? " * 30}, TURNS[1]]},
    ]
    file, few = write("chats.jsonl", rows), write("few.jsonl", rows[:2])
    lines = []
    for template in (
        "chatml",
        "llama2",
        "gemma",
        "phi3",
        "plain",
        "none",
        "alpaca",
        "chat",
        "no such",
        "{{ messages }}",
    ):
        lines += shown(Conversations, train_file=file, val_file=few, template=template, batches=0, **common)
    for more in ({"train_on": "last"}, {"train_on": "all", "long_rows": "drop"}, {"packing": True}):
        lines += shown(Conversations, train_file=file, val_file=few, template="chatml", **more, **common)
    lines += shown(Conversations, "predict", train_file=file, val_file=few, template="zephyr", **common)
    stream = {"streaming": True, "shuffle_buffer": 4, "val_samples": 2, "on_bad_row": "skip"}
    lines += shown(Conversations, train_file=file, template="plain", **stream, **common)
    lines += shown(Conversations, train_file=file, template="plain", packing=True, **stream, **common)
    tools = write("tools.jsonl", [TOOL_ROW] * 2)
    lines += shown(Conversations, train_file=tools, template=WITH_TOOLS, batches=1, **common | {"max_length": 400})
    lines += shown(Conversations, train_file=tools, template="chatml", **common)
    one = [{"instruction": f"What is {n}?", "input": "one" * (n % 2), "output": f"It is {n}."} for n in range(12)]
    lines += shown(Alpaca, train_file=write("alpaca.jsonl", one), **common | {"max_length": 300}, val_samples=3)
    lines += shown(Alpaca, train_file="alpaca.jsonl", output_column="answer", **common)
    lines += shown(ArithmeticInstructions, train_rows=6, val_rows=3, template="plain", **common)
    lines += shown(ArithmeticInstructions, digits=1, train_rows=1000, **common)
    Path("a.txt").write_text("the cat sat\n\nIt is one and two.\n \n" + "and two " * 30)
    for documents in ("file", "paragraph", "line"):
        more = {"documents": documents, "train_file": "a.txt", "val_file": "a.txt"}
        lines += shown(Text, **more, **common | {"max_length": 20}, batches=1)
    return lines + shown(Text, train_file="a.txt", **common | {"max_length": 1})


def images() -> list[str]:
    """Show images from folders and tables, with damaged ones, crops and limits."""
    vit, folder = write_vision_model(Path("vit")), write_images(Path("images"), per_class=4)
    common: dict[str, Any] = {"tokenizer": vit, "batch_size": 3, "seed": 0, "batches": 1}
    lines = shown(ImageFolder, train_file=folder, **common)
    cropping = write_vision_model(Path("cropping"))
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}}
    settings |= {"crop_size": {"height": 32, "width": 32}}
    Path("cropping/preprocessor_config.json").write_text(json.dumps(settings))
    lines += shown(ImageFolder, train_file=folder, val_file=folder, **common | {"tokenizer": cropping})
    lines += shown(ImageFolder, train_file=folder, val_file=folder, random_crop=None, random_flip=0.0, **common)
    lines += shown(ImageFolder, "predict", train_file=folder, predict_file=folder, **common)
    Path("images/red/broken.png").write_bytes(b"no image")
    lines += shown(ImageFolder, train_file=folder, val_samples=2, **common)
    lines += shown(ImageFolder, train_file=folder, val_samples=2, on_bad_row="skip", **common)
    rows = [{"image": f"images/red/0{n}.png", "label": n % 2} for n in range(4)]
    lines += shown(ImageFolder, train_file=write("images.jsonl", rows), val_samples=1, **common)
    more = write("more.jsonl", [*rows, {"image": "nowhere.png", "label": 1}, {"image": None, "label": 0}])
    lines += shown(ImageFolder, train_file=more, val_samples=1, **common)
    held = io.BytesIO()
    Image.fromarray(np.full((8, 6, 3), 7, dtype=np.uint8)).save(held, "PNG")
    cells = [{"bytes": held.getvalue(), "path": "seen.png"}, {"bytes": held.getvalue(), "path": None}] * 3
    parquet.write_table(pa.table({"image": cells, "label": [0, 1] * 3}), "images.parquet")
    lines += shown(ImageFolder, train_file="images.parquet", val_samples=2, **common)
    for crop in ((0.0, 1.0), (0.6, 0.5), (0.5, 1.1)):
        lines += shown(ImageFolder, train_file=folder, random_crop=crop, **common)
    for flip in (-0.1, 1.1):
        lines += shown(ImageFolder, train_file=folder, random_flip=flip, **common)
    os.mkdir("images/empty")
    return lines + shown(ImageFolder, train_file=folder, **common)


CASES: dict[str, Callable[[], list[str]]] = {
    each.__name__: each for each in (labels, files, turns, classes, sets_and_numbers, images, chats)
}

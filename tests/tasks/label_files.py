"""Files of made-up rows with numbers or sets of labels, and the options to fit the tiny model on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.conftest import BAD, GOOD, REST

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.batch_size", "8"]
ADAMW = ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "3e-3"]


def write_numbers(path: Path, rows: int, seed: int = 0) -> str:
    """Write rows with the text, the share of good words `share` and a price `price`, and return the path."""
    draw, lines = random.Random(seed), []
    for _ in range(rows):
        words = draw.choices([*GOOD, *BAD, *REST[:3]], k=draw.randint(2, 10))
        share = sum(word in GOOD for word in words) / len(words)
        row = {"text": " ".join(words), "share": share, "price": 250_000 + 40_000 * share + draw.gauss(0, 2000)}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_sets(path: Path, rows: int, seed: int = 0) -> str:
    """Write rows with the text, and the labels `good`, `bad` and `film` that its words have; return the path."""
    draw, lines = random.Random(seed), []
    for _ in range(rows):
        words = draw.choices([*GOOD, *BAD, "film", "the", "of", "of"], k=draw.randint(1, 5))
        kinds = {"good": GOOD, "bad": BAD, "film": ["film"]}
        labels = [name for name, group in kinds.items() if set(words) & set(group)]
        lines.append(json.dumps({"text": " ".join(words), "labels": labels}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def regression(model: str, folder: Path, columns: str = "share") -> list[str]:
    """Return the arguments of `litpeft` for a regression on 64 rows, without the verb and the run folder."""
    train, val = write_numbers(folder / "train.jsonl", 64), write_numbers(folder / "val.jsonl", 24, seed=1)
    return [
        *("--model", "SequenceRegression", "--model.model_name", model, "--model.dtype", "fp32", "--data"),
        *("TextRegression", "--data.train_file", train, "--data.val_file", val, "--data.label_column", columns),
        *(*QUIET, *ADAMW),
    ]


def multi_label(model: str, folder: Path) -> list[str]:
    """Return the arguments of `litpeft` for labels of 64 rows, without the verb and the run folder."""
    train, val = write_sets(folder / "train.jsonl", 64), write_sets(folder / "val.jsonl", 24, seed=1)
    return [
        *("--model", "SequenceMultiLabel", "--model.model_name", model, "--model.dtype", "fp32"),
        *("--data", "TextMultiLabel", "--data.train_file", train, "--data.val_file", val, *QUIET, *ADAMW),
    ]


def rows_of(path: Path | str) -> list[dict]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]

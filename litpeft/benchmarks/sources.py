"""The items of litpeft's lm-eval tasks: from data files in a local folder, from the hub, or generated.

lm-eval calls these functions through `custom_dataset` in a task's YAML, with the task's `dataset_kwargs` and metadata.
The metadata include `data_dir`: `benchmarks.data_dir` in litpeft, `--metadata '{"data_dir": "FOLDER"}'` in lm-eval.
Items have the same columns as on the hub, so that one YAML works for both.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from litpeft.data.arithmetic import SIGNS, answer, held_out
from litpeft.errors import UserError
from litpeft.runs.record_schema import NUMBER, OTHERS, TEXT, schema_error
from litpeft.runs.safe_read import parse_error_reason, read_json_file, read_text

WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}
VERBS = {"addition": "add", "subtraction": "subtract"}
GENERATED = 2000  # maximum number of items, as in each published file
SEED = 3

OPTION = "benchmarks.data_dir:"
ANSWERS = {OTHERS: NUMBER}
QUESTION = {"question!": TEXT, "mc1_targets!": ANSWERS, "mc2_targets!": ANSWERS}

Splits = dict[str, datasets.Dataset]


def truthfulqa(data_dir: str | None = None, **_: Any) -> Splits:
    """Return TruthfulQA's questions with the answers of MC1 and MC2, from `mc_task.json`."""
    if data_dir is None:
        return _hub("truthfulqa/truthful_qa", "multiple_choice")
    path = _file(data_dir, "mc_task.json")
    rows = [
        {"question": row["question"]}
        | {
            kind: {"choices": list(row[kind]), "labels": list(row[kind].values())}
            for kind in ("mc1_targets", "mc2_targets")
        }
        for row in _shaped(path, read_json_file(path, OPTION), QUESTION)
    ]
    return {"validation": datasets.Dataset.from_list(rows)}


def share_of_true(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Return MC2: the total probability of the true answers, normalised over all answers."""
    logs = [log for log, _ in results]
    weights = [math.exp(log - max(logs)) for log in logs]  # avoids underflow
    true = sum(weight for weight, label in zip(weights, doc["mc2_targets"]["labels"], strict=True) if label)
    return {"acc": true / sum(weights)}


def arithmetic(digits: int, operation: str, data_dir: str | None = None, **_: Any) -> Splits:
    """Return GPT-3's arithmetic, from files such as `two_digit_subtraction.jsonl`."""
    name = f"{WORDS[digits]}_digit_{operation}.jsonl"
    if data_dir is None:
        files = {"validation": f"hf://datasets/EleutherAI/arithmetic/data/{name}"}
        rows = datasets.load_dataset("json", data_files=files)["validation"]
    else:
        rows = _jsonl(_file(data_dir, name), {"context!": TEXT, "completion!": TEXT})
    return _questions((row["context"], row["completion"]) for row in rows)


def generated(digits: int, operation: str, **_: Any) -> Splits:
    """Return generated arithmetic questions in the format of `arithmetic`; every number has exactly `digits` digits.

    The pairs of numbers are held out from the training data of `ArithmeticInstructions`: 2,000 of them, or all if there
    are fewer (two digits: a tenth of 8,100; one digit: a tenth of 100).
    """
    draw = np.random.default_rng([SEED, digits, len(operation)])
    low, high = (0 if digits == 1 else 10 ** (digits - 1)), 10**digits
    numbers, verb = range(low, high), VERBS[operation]
    pairs: dict[tuple[int, int], None] = {}
    if digits < 3:
        there = [(first, second) for first in numbers for second in numbers if held_out(first, second)]
        pairs = dict.fromkeys(there[place] for place in draw.permutation(len(there)))
    while digits >= 3 and len(pairs) < GENERATED:
        first, second = (int(number) for number in draw.integers(low, high, size=2))
        if held_out(first, second):
            pairs[first, second] = None
    return _questions((f"Q: What is {a} {SIGNS[verb]} {b}?\n\nA:", f" {answer(a, b, verb)}") for a, b in pairs)


def _questions(pairs: Any) -> Splits:
    """Return items in lm-eval's wording: one line break, `Question:` and `Answer:`."""
    rows = [
        {
            "context": context.strip().replace("\n\n", "\n").replace("Q:", "Question:").replace("A:", "Answer:"),
            "completion": completion,
        }
        for context, completion in pairs
    ]
    return {"validation": datasets.Dataset.from_list(rows)}


def blimp(name: str, data_dir: str | None = None, **_: Any) -> Splits:
    """Return one of BLiMP's 67 sets of sentence pairs, from files such as `causative.jsonl`."""
    if data_dir is None:
        return _hub("nyu-mll/blimp", name)
    keys = ("sentence_good", "sentence_bad")
    rows = _jsonl(_file(data_dir, f"{name}.jsonl"), {f"{key}!": TEXT for key in keys})
    rows = [{key: row[key] for key in keys} for row in rows]
    return {"train": datasets.Dataset.from_list(rows)}


def mmlu(subject: str, data_dir: str | None = None, **_: Any) -> Splits:
    """Return one of MMLU's 57 subjects, from `SUBJECT_test.csv` and, for few-shot examples, `SUBJECT_dev.csv`."""
    if data_dir is None:
        return _hub("cais/mmlu", subject)
    splits = {}
    for split in ("test", "dev"):
        path = _file(data_dir, f"{subject}_{split}.csv")
        try:
            lines = list(csv.reader(io.StringIO(read_text(path, OPTION), newline="")))
        except csv.Error as error:
            raise UserError(f"{OPTION} {path}: {error}.") from error
        wrong = next((place for place, line in enumerate(lines, 1) if len(line) != 6 or line[5] not in [*"ABCD"]), None)
        if wrong is not None:
            raise UserError(
                f"benchmarks.data_dir: {path} line {wrong} must be a question, four answers, and A, B, C or D."
            )
        splits[split] = datasets.Dataset.from_list(
            [
                {"question": line[0], "subject": subject, "choices": line[1:5], "answer": "ABCD".index(line[5])}
                for line in lines
            ]
        )
    return splits


def _hub(path: str, name: str) -> Splits:
    return datasets.load_dataset(path, name)


def _file(data_dir: str, name: str) -> Path:
    """Return the file of this name in the folder or its subfolders, the least nested one first."""
    folder = Path(data_dir).expanduser()
    found = sorted(folder.rglob(name), key=lambda path: (len(path.parts), path))
    if not found:
        raise UserError(f"benchmarks.data_dir {data_dir}: there is no {name} in it or below it.")
    return found[0]


def _jsonl(path: Path, shape: dict[Any, Any]) -> list[dict[str, Any]]:
    rows = []
    # str.splitlines would also split at characters such as U+2028 inside a text
    for number, line in enumerate(read_text(path, OPTION).split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise UserError(f"{OPTION} {path} line {number} is not JSON: {parse_error_reason(error)}.") from error
    return _shaped(path, rows, shape)


def _shaped(path: Path, rows: Any, shape: dict[Any, Any]) -> list[dict[str, Any]]:
    if reason := schema_error(rows, [shape]) or ("it holds none" if not rows else None):
        raise UserError(f"{OPTION} {path} does not hold items of this benchmark: {reason}.")
    return rows

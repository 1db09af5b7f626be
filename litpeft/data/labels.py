"""Class labels as people write them: numbers, names, booleans, -1 and 1; missing ones; the classes of a data set."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from litpeft.data.bad_rows import BadRows
from litpeft.errors import UserError

ALWAYS_CLASSES = 20  # up to this many different labels are classes, even with few rows
MISSING = ("", "nan", "na", "n/a", "null", "<na>")  # how tables write a missing value, in any case
WHOLE = re.compile(r"([+-]?\d+)\.0*")  # a whole number with a decimal point: 1.0


def label_text(label: Any) -> str | None:
    """Return a label as text: the digits of a number, or a name without surrounding spaces; None if it is missing."""
    if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
        label = int(label)
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return None
    text = str(label).strip()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def is_number(label: str) -> bool:
    """Return whether a label is a whole number."""
    return label.removeprefix("-").isdecimal()


def counted(names: Sequence[str]) -> bool:
    """Return whether a number among the labels is the place of a class; not if some class has a number as its name."""
    return not any(map(is_number, names))


def class_numbers(
    labels: list[Any],
    places: list[str],
    names: list[str] | None,
    offset: int,
    bad: BadRows,
    coded: bool = False,
) -> tuple[list[int], list[str]]:
    """Return the class number of each row, from 0, and the class names.

    Args:
        labels: the labels as read.
        places: the place of each row, for messages.
        names: class names in the order of their numbers; None to take them from the labels.
        offset: number of the first class in the file.
        bad: collects the rows without a usable label; their number is -1.
        coded: whether each label is the number of its class, also where a class has a number as its name.
    """
    texts = [_usable(label, place, names or (), bad) for label, place in zip(labels, places, strict=True)]
    usable = [(text, place) for text, place in zip(texts, places, strict=True) if text is not None]
    bad.check(len(places))  # before classes are taken from what is left
    if names is None:
        names = _names_from_labels([text for text, _ in usable], [place for _, place in usable], offset)
    by_name = {} if coded else {name: i for i, name in enumerate(names)}
    by_number = coded or offset or counted(names)
    numbers = f" (numbers {offset} to {offset + len(names) - 1})" if by_number else ""
    ids = []
    for place, label in zip(places, texts, strict=True):
        if label is None:
            ids.append(-1)
            continue
        index = None if offset and is_number(label) else by_name.get(label)
        if index is None and by_number and is_number(label):
            index = int(label) - offset
        if index is None or not 0 <= index < len(names):
            bad.add(
                place,
                f"label {label!r} is not one of {', '.join(names)}{numbers}; see data.label_names, "
                "data.label_offset and data.label_column",
            )
            index = -1
        ids.append(index)
    return ids, names


def _usable(label: Any, place: str, names: Any, bad: BadRows) -> str | None:
    text = None if isinstance(label, (list, dict)) else label_text(label)
    if text is None or (text.lower() in MISSING and text not in names):
        missing = not isinstance(label, (list, dict))
        reason = "the label is missing" if missing else "a list of labels is no class"
        bad.add(place, f"{label!r}: {reason}; see data.label_column")
        return None
    return text


def warn_of_similar(names: list[str]) -> None:
    """Print a warning for classes whose names differ only in case, spaces or punctuation."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"[\W_]+", "", name).lower() or name, []).append(name)
    for group in groups.values():
        if len(group) > 1:
            listed = ", ".join(map(repr, group))
            print(f"litpeft: warning: data.label_column: {listed} count as {len(group)} classes.", file=sys.stderr)


def as_option(names: Sequence[str]) -> str:
    """Return names as they are typed after an option; with quotes where YAML reads other than text, such as 1 or no."""
    plain = f"[{', '.join(names)}]"
    try:
        read = yaml.safe_load(plain)
    except yaml.YAMLError:
        read = None
    return shlex.quote(plain if read == list(names) else json.dumps(list(names), ensure_ascii=False))


def classes_needed(labels: list[Any]) -> UserError:
    """Return the error of a stream without class names, with the classes among the first labels as a suggestion."""
    found = {label_text(label) for label in labels if not isinstance(label, (list, dict))} - {None}
    names = sorted(found, key=int if all(map(is_number, found)) else str)  # as without streaming
    listed = as_option(names) if len(names) <= ALWAYS_CLASSES else "'[...]'"
    return UserError(
        f"data.label_names is needed with data.streaming, because the labels are not read before training; the first "
        f"{len(labels)} rows have {len(names)} different ones: give all as --data.label_names {listed}."
    )


def _names_from_labels(labels: list[str], places: list[str], offset: int) -> list[str]:
    """Return the classes of the training rows: the sorted names, or the numbers if all labels are numbers.

    Labels -1 and 1 are two classes of these names.

    Raises:
        UserError: all labels are equal, too many are different, or a number is missing or below the offset.
    """
    distinct = set(labels)
    if len(distinct) < 2:
        raise UserError(f"{places[0]} and all other rows have the same label, {labels[0]}; two classes are needed.")
    file = places[0].rpartition(" ")[0].rpartition(" ")[0]
    if len(distinct) > max(ALWAYS_CLASSES, len(labels) / 2):
        raise UserError(
            f"{file}: {len(distinct)} different labels in {len(labels)} rows, for example {labels[0]!r}, are too many "
            "for classes; see data.label_column."
        )
    if not all(map(is_number, distinct)):
        return sorted(distinct)
    if distinct == {"-1", "1"}:
        return ["-1", "1"]
    numbers = sorted({int(label) for label in distinct})
    if numbers[0] < offset:
        place = next(place for label, place in zip(labels, places, strict=True) if int(label) == numbers[0])
        raise UserError(f"{place}: label {numbers[0]} is below data.label_offset {offset}.")
    if numbers != list(range(offset, offset + len(numbers))):
        if numbers[-1] - numbers[0] == len(numbers) - 1:
            raise UserError(
                f"{file}: labels go from {numbers[0]} to {numbers[-1]}; give data.label_offset {numbers[0]}."
            )
        absent = next(n for n, number in enumerate(numbers, offset) if n != number)
        raise UserError(
            f"{file}: labels go up to {numbers[-1]}, but no row has {absent}; "
            "give data.label_names if some classes have no rows, or see data.label_column."
        )
    return [str(number) for number in numbers]

"""The names and numbers that labels get when no names are given, and where labels begin to be too many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from litpeft.data.bad_rows import BadRows
from litpeft.data.class_labels import ClassLabels
from litpeft.data.label_sets import LabelSets
from litpeft.errors import UserError


def stored(kind: type, labels: list[Any], files: int = 1, **options: Any) -> tuple[list[str], list[Any]]:
    """Return the names that the labels of training rows, of one or two files, get, and what is stored of each row."""
    data = SimpleNamespace(files={"train": None}, streaming=False, dataset=None)
    column = "label" if kind is ClassLabels else ["labels"]
    options = {"names": None} | options
    places = [f"rows.jsonl line {number}" for number in range(1, len(labels) + 1)]
    if files == 2:
        places[-1] = "more.jsonl line 1"
    bad = BadRows(skip=False)
    found, facts = kind(data, column, **options).encode("train", [(label,) for label in labels], places, bad)
    bad.check(len(places))
    return facts["label_names"], found.to_pylist()


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([0, 1, 1], ["0", "1"], [0, 1, 1]),
        (["2", 0, 1.0], ["0", "1", "2"], [2, 0, 1]),
        ([1, -1, "1"], ["-1", "1"], [1, 0, 1]),  # as LIBSVM writes two classes
        (["b", "a", " b "], ["a", "b"], [1, 0, 1]),
        (["10", "9", "a"], ["10", "9", "a"], [0, 1, 2]),  # not all are numbers
        ([True, False], ["0", "1"], [1, 0]),
    ],
)
def test_classes_are_numbered_in_the_order_of_their_numbers_or_names(
    labels: list[Any], names: list[str], numbers: list[int]
) -> None:
    assert stored(ClassLabels, labels) == (names, numbers)


@pytest.mark.parametrize(
    ("labels", "options", "names", "numbers"),
    [
        ([1, 3, 2], {"offset": 1}, ["1", "2", "3"], [0, 2, 1]),
        ([1, 2], {"offset": 1, "names": ["a", "b"]}, ["a", "b"], [0, 1]),
        (["b", "a", 1], {"names": ["a", "b"]}, ["a", "b"], [1, 0, 1]),
        (["2", "1"], {"names": ["2", "1"]}, ["2", "1"], [0, 1]),  # a name comes before a number
        (["2", "1"], {"names": ["2", "1"], "offset": 1}, ["2", "1"], [1, 0]),
        (["none", "nan"], {"names": ["none", "nan"]}, ["none", "nan"], [0, 1]),
    ],
)
def test_a_label_is_a_name_or_a_number_that_counts_from_the_offset(
    labels: list[Any], options: dict[str, Any], names: list[str], numbers: list[int]
) -> None:
    assert stored(ClassLabels, labels, **options) == (names, numbers)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a"], {}, r"^rows.jsonl line 1 and all other rows have the same label, a; two classes are needed\.$"),
        ([1, 0, 2], {"offset": 1}, r"^rows.jsonl line 2: label 0 is below data.label_offset 1\.$"),
        ([1, 2], {}, r"^rows.jsonl: labels go from 1 to 2; give data.label_offset 1\.$"),
        ([2, 3], {"offset": 1}, r"^rows.jsonl: labels go from 2 to 3; give data.label_offset 2\.$"),
        ([0, 1, 3, 5], {}, r"^rows.jsonl: labels go up to 5, but no row has 2; give data.label_names if"),
        (
            [*range(300), 301] * 20,
            {},
            r"^rows.jsonl: labels go up to 301, but no row has 300; give data.label_names if",
        ),
        ([1, 3, 4], {"offset": 1}, r"^rows.jsonl: labels go up to 4, but no row has 2; give data.label_names if"),
        ([0, 2], {"names": ["a", "b"]}, r"line 2: label '2' is not one of a, b \(numbers 0 to 1\); see data.label"),
        ([1, 0], {"names": ["a", "b"], "offset": 1}, r"line 2: label '0' is not one of a, b \(numbers 1 to 2\)"),
        ([1, 3], {"names": ["a", "b"], "offset": 1}, r"line 2: label '3' is not one of a, b \(numbers 1 to 2\)"),
        # a number is no place where classes have numbers as names
        ([1, 2, 0], {"names": ["1", "2", "3"]}, r"line 3: label '0' is not one of 1, 2, 3; see data.label_names"),
        ([-1, 1, 0], {"names": ["-1", "1"]}, r"line 3: label '0' is not one of -1, 1; see data.label_names"),
        (["10", "2"], {"names": ["10", "9", "a"]}, r"line 2: label '2' is not one of 10, 9, a; see data.label_names"),
        (["a", "nan"], {}, "line 2: 'nan': the label is missing; see data.label_column"),
        (["a", ["b"]], {}, r"line 2: \['b'\]: a list of labels is no class; see data.label_column"),
    ],
)
def test_labels_that_are_no_classes_are_told(labels: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        stored(ClassLabels, labels, **options)


@pytest.mark.parametrize(
    ("labels", "names", "flags"),
    [
        ([[0, 2], [3]], ["0", "1", "2", "3"], [[1, 0, 1, 0], [0, 0, 0, 1]]),  # as many as the largest needs
        ([[0], [1]], ["0", "1"], [[1, 0], [0, 1]]),
        ([["-1"], ["1"]], ["-1", "1"], [[1, 0], [0, 1]]),  # names, because a label below 0 has no number
        ([["b", "a"], ["b"], []], ["a", "b"], [[1, 1], [0, 1], [0, 0]]),
        ([["10", "9"], ["a"]], ["10", "9", "a"], [[1, 1, 0], [0, 0, 1]]),
    ],
)
def test_sets_of_labels_are_numbered_in_the_order_of_their_numbers_or_names(
    labels: list[Any], names: list[str], flags: list[list[int]]
) -> None:
    assert stored(LabelSets, labels) == (names, flags)


def test_a_number_in_a_set_is_no_place_where_labels_have_numbers_as_names() -> None:
    assert stored(LabelSets, [[0], [2, 1]], names=["a", "b", "c"])[1] == [[1, 0, 0], [0, 1, 1]]
    assert stored(LabelSets, [[1], [3, 2]], names=["1", "2", "3"])[1] == [[1, 0, 0], [0, 1, 1]]
    with pytest.raises(UserError, match=r"^rows.jsonl line 2: label '0' is not one of 1, 2, 3; see data.label_names"):
        stored(LabelSets, [[1], [0, 2]], names=["1", "2", "3"])


@pytest.mark.parametrize("kind", [ClassLabels, LabelSets])
def test_labels_from_the_hub_are_the_numbers_of_its_names_also_if_those_are_numbers(kind: type) -> None:
    feature = datasets.ClassLabel(names=["1", "2", "3"])
    labels, column = ([0, 1, 2], "label") if kind is ClassLabels else ([[0], [1, 2], []], ["label"])
    feature = feature if kind is ClassLabels else datasets.Sequence(feature)
    rows = datasets.Dataset.from_dict({"label": labels}, features=datasets.Features(label=feature))
    data = SimpleNamespace(files={"train": None}, streaming=False, dataset="some/set", hub_rows=lambda split: rows)
    places, bad = [f"some/set train row {number}" for number in range(1, 4)], BadRows(skip=False)
    found, facts = kind(data, column, names=None).encode("train", [(label,) for label in labels], places, bad)
    assert facts["label_names"] == ["1", "2", "3"]
    assert found.to_pylist() == (labels if kind is ClassLabels else [[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert not bad.reasons


@pytest.mark.parametrize(
    ("names", "offset", "another"),
    [(["a", "b"], 0, False), (["0", "1"], 0, False), (["1", "2"], 1, False), (["1", "2"], 0, True)],
)
def test_tables_that_may_have_rows_in_the_wrong_class_are_built_once_more(
    names: list[str], offset: int, another: bool
) -> None:
    data = SimpleNamespace(files={"train": None}, streaming=False, dataset=None)
    assert ("numbers" in ClassLabels(data, "label", names, offset).rules("train")) == another


@pytest.mark.parametrize("value", [["a", "NaN"], ["a", ""], ["a", None], ["a", ["b"]], ["a", "n/a"]])
def test_what_is_missing_in_a_list_is_no_label(value: list[Any]) -> None:
    with pytest.raises(UserError, match=r"^rows.jsonl line 3: \['a', .*\] holds something that is no label"):
        stored(LabelSets, [["a"], ["b"], value])


@pytest.mark.parametrize("kind", [ClassLabels, LabelSets])
@pytest.mark.parametrize(
    ("different", "rows", "fine"),
    [(20, 20, True), (21, 41, False), (21, 42, True), (40, 80, True), (41, 80, False), (22, 43, False)],
)
def test_more_than_20_different_labels_need_twice_as_many_rows(
    kind: type, different: int, rows: int, fine: bool
) -> None:
    labels = [f"name {number % different:02d}" for number in range(rows)]
    given = labels if kind is ClassLabels else [[label] for label in labels]
    if fine:
        assert stored(kind, given)[0] == sorted(set(labels))
    else:
        with pytest.raises(UserError, match=rf"^rows\.jsonl: {different} different labels in {rows} rows"):
            stored(kind, given)


@pytest.mark.parametrize("labels", [[[f"name {number}"] for number in range(30)], [["a"]] * 3])
def test_of_several_files_the_first_is_named(labels: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"^rows\.jsonl: "):
        stored(LabelSets, labels, files=2)
    if len(labels) == 30:
        with pytest.raises(UserError, match=r"^rows\.jsonl: .*, for example 'name 0', are too many"):
            stored(ClassLabels, [label for (label,) in labels], files=2)
    else:
        with pytest.raises(UserError, match=r"^rows\.jsonl line 1 and all other rows have the same label, a; two"):
            stored(ClassLabels, [label for (label,) in labels], files=2)


def test_names_must_be_two_or_more_and_different() -> None:
    for kind, column in ((ClassLabels, "label"), (LabelSets, ["labels"])):
        kind(None, column, ["a", "b"])
        for names in ([], ["a"], ["a", "a"], ["a", "b", "a"]):
            with pytest.raises(UserError, match=r"^data.label_names needs two or more different names, got \["):
                kind(None, column, names)


@pytest.mark.parametrize(
    ("columns", "names", "fine"),
    [
        (["x", "y"], None, True),
        (["x", "y"], ["a", "b"], True),
        (["x", "y"], ["a", "b", "c"], False),
        (["x", "y", "z"], ["a", "b"], False),
        (["x"], ["a", "b", "c"], True),  # one column with lists
    ],
)
def test_each_column_of_flags_has_a_name(columns: list[str], names: list[str] | None, fine: bool) -> None:
    if fine:
        assert LabelSets(None, columns, names).given == (names or columns)
    else:
        with pytest.raises(UserError, match=r"different columns of 0 and 1, and data.label_names \d labels; give one"):
            LabelSets(None, columns, names)


@pytest.mark.parametrize("names", [None, ["a", "b"], ["a", "b", "c"]])
def test_a_column_of_flags_is_named_once(names: list[str] | None) -> None:
    with pytest.raises(
        UserError, match=r"^data.label_column needs one or several different columns, got \['x', 'x', 'y'\]"
    ):
        LabelSets(None, ["x", "x", "y"], names)


@pytest.mark.parametrize(
    ("labels", "options", "names", "flags"),
    [
        ([[0, 0, 1], [1, 1, 0], [0, 0, 0]], {}, ["0", "1", "2"], [[0, 0, 1], [1, 1, 0], [0, 0, 0]]),
        ([[0.0, 1.0], [1.0, 0.0]], {"names": ["a", "b"]}, ["a", "b"], [[0, 1], [1, 0]]),
        (["0,1,1", "[1 0 0]"], {"names": ["a", "b", "c"]}, ["a", "b", "c"], [[0, 1, 1], [1, 0, 0]]),
        ([[0, 1], [0, 1]], {}, ["0", "1"], [[1, 1], [1, 1]]),  # lists of labels
        ([[0], [1]], {}, ["0", "1"], [[1, 0], [0, 1]]),
        ([[0, 0], [1]], {}, ["0", "1"], [[1, 0], [0, 1]]),
    ],
)
def test_a_list_may_have_0_or_1_for_each_label(
    labels: list[Any], options: dict[str, Any], names: list[str], flags: list[list[int]]
) -> None:
    assert stored(LabelSets, labels, **options) == (names, flags)


def test_a_list_of_flags_has_one_for_each_label() -> None:
    with pytest.raises(UserError, match=r"^rows.jsonl line 1: the labels are lists of 3 numbers 0 and 1, .* 2 labels"):
        stored(LabelSets, [[0, 0, 1], [1, 1, 0]], names=["a", "b"])


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("a, b", ["a", "b"]),
        ("a,,b,", ["a", "b"]),
        ("", []),
        (" ", []),
        ("[]", []),
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("[a, b]", ["a", "b"]),
        ("[a], [b]", ["[a]", "[b]"]),
        ("['a' 'b']", ["a", "b"]),  # as NumPy writes an array
        ("[1 2\n 3]", ["1", "2", "3"]),
        ("[1. 0.]", ["1", "0"]),
        ("['a 1 2', 'b']", ["a 1 2", "b"]),
        ("[a", ["[a"]),
        ("b]", ["b]"]),
        (3, ["3"]),
        (2.0, ["2"]),
        (True, ["1"]),
        (("a", 1), ["a", "1"]),
        ("(1, 2)", ["(1", "2)"]),
    ],
)
def test_a_cell_holds_a_list_or_separated_labels(cell: Any, labels: list[str]) -> None:
    bad = BadRows(skip=False)
    assert LabelSets(None, ["labels"])._listed((cell,), "line 1", bad) == labels
    assert not bad.reasons


@pytest.mark.parametrize("cell", [None, "nan", "NULL", float("nan"), {"a": 1}])
def test_a_cell_without_a_list_is_told(cell: Any) -> None:
    bad = BadRows(skip=False)
    assert LabelSets(None, ["labels"])._listed((cell,), "line 1", bad) == []
    assert bad.reasons["line 1"].endswith("the labels are missing; an empty list is a row without labels")

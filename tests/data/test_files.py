"""Reading of local files, and error messages with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from litpeft.data import Alpaca, Text, TextClassification
from litpeft.data.files import check_columns, has_header, read_rows
from litpeft.data.raw_files import sampled_hash
from litpeft.errors import UserError
from tests.data.test_text_classification import make

ROWS = [{"text": 'he said "no", twice', "label": "1"}, {"text": "null", "label": "0"}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, required=("text", "label"), **options) -> list[dict]:
    return [row for _, row in read_rows(path, dict.fromkeys(required, "data.text_column"), **options)]


def test_every_file_type_gives_the_same_rows(tmp_path: Path) -> None:
    files = {
        "a.tsv": 'text\tlabel\nhe said "no", twice\t1\nnull\t0\n',
        "a.csv": 'text,label\n"he said ""no"", twice",1\nnull,0\n',
        "a.jsonl": '{"text": "he said \\"no\\", twice", "label": "1"}\n\n{"text": "null", "label": "0"}\n',
        "a.json": '[{"text": "he said \\"no\\", twice", "label": "1"}, {"text": "null", "label": "0"}]',
    }
    for name, content in files.items():
        assert read(write(tmp_path / name, content)) == ROWS, name
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ROWS


def test_headers_marks_encodings_and_delimiters(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare.csv", "3,A title,A story\n4,Other,Words\n")
    assert read(bare, ["label"], columns=["label", "title", "text"])[1] == {
        "label": "4",
        "title": "Other",
        "text": "Words",
    }
    assert not has_header(bare, ["label"])
    marked = write(tmp_path / "marked.tsv", b"\xef\xbb\xbftext\tlabel\nx\t1\n")
    assert read(marked) == [{"text": "x", "label": "1"}]
    assert has_header(marked, ["text"])
    latin = write(tmp_path / "latin.tsv", "text\tlabel\ncaf\xe9\t1\n".encode("latin-1"))
    assert read(latin, encoding="latin-1")[0]["text"] == "caf\xe9"
    assert read(write(tmp_path / "semi.csv", "text;label\nx, y;1\n"), delimiter=";")[0]["text"] == "x, y"
    # a header is recognised even if columns are given
    assert read(marked, columns=["label", "text"]) == [{"text": "x", "label": "1"}]


def test_places_are_line_numbers_of_an_editor(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",1\nlast,0\n')
    assert [place.removeprefix(f"{path} ") for place, _ in read_rows(path, {"text": "data.text_column"})] == [
        "line 2",
        "line 4",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.tsv", None, "there is no such file"),
        ("a.xlsx", "x", "unknown kind of file; give one of .tsv"),
        ("a.tsv", "", "the file has no rows"),
        ("a.tsv", "text\tlabel\n", "the file has no rows"),
        (
            "a.tsv",
            "sentence\tlabel\nx\t1\n",
            "line 2: no column 'text'; it has: sentence, label (see data.text_column, data.delimiter",
        ),
        ("a.jsonl", '{"a": "x"}', "line 1: no column 'text'; it has: a (see data.text_column)."),
        (
            "a.tsv",
            "text\tlabel\nx\t1\ny\n",
            "line 3: 1 columns, expected 2 (text, label); see data.delimiter.",
        ),
        ("a.tsv", b"text\tlabel\nx\t1\n\xff\xfe\t0\n", "line 3: not utf-8; give data.encoding"),
        ("a.csv", 'text,label\n"open,1\n', "a quote is opened in this row"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', "line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object with named columns, got list"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "line 1: an escape such as \\ud800 is half a character"),
        ("a.jsonl", '{"text": "x", "label": ' + "9" * 5000 + "}", "line 1: not valid JSON: Exceeds the limit"),
        ("a.json", '{"text": "x"}', "must contain a list of objects"),
        ("a.json", '[{"text": ' + "9" * 5000 + "}]", "a.json line 1: not valid JSON: Exceeds the limit"),
        ("a.json", "[" * 100_000, "a.json line 1: not valid JSON: "),
        ("a.json", '[{"text": "x"},\n{"text": "y"},\n{"text": ]', "a.json line 3: not valid JSON: Expecting value."),
        ("a.json", '[{"text": "x", "label": 1}, {"text": "y", "label": 1}, 3]', "item 3: expected an object"),
        ("a.jsonl", '{"text": "x", "label": 1}\n\n3\n', "line 3: expected an object with named columns, got int"),
        ("a.csv", 'text,label\nx,1\n"a"b,2\n', "line 3: ',' expected after '\"'."),
        ("a.csv", 'text,label\n"x\ny",1\n\n"a\nb"c,2\n', "line 6: ',' expected after '\"'."),
        ("a.csv", "text,label,text\nx,1,y\n", "line 1: two columns are called 'text'; rename one of them."),
        ("a.tsv", "\n\ntext\tlabel\nx\t1\n\n\ny\n", "line 7: 1 columns, expected 2"),
        ("a.json", "[1]", "item 1: expected an object with named columns, got int"),
        ("a.parquet", "no parquet", "not a readable Parquet file"),
    ],
)
def test_an_error_has_its_place(tmp_path: Path, name: str, content, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("names", "said"), [("abb", "b"), ("aab", "a"), ("abbcc", "b"), ("acbbc", "c"), ("abc", None)])
def test_a_parquet_file_with_two_columns_of_one_name_is_refused(names: str, said: str | None, tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_arrays([pa.array([1, 2])] * len(names), list(names)), tmp_path / "a.parquet")
    if said is None:
        places = [place.removeprefix(f"{tmp_path}/") for place, _ in read_rows(tmp_path / "a.parquet", {})]
        assert places == ["a.parquet row 1", "a.parquet row 2"]
    else:
        with pytest.raises(UserError, match=rf"a.parquet: two columns are called '{said}'; rename one of them\.$"):
            read(tmp_path / "a.parquet", [])


def test_a_first_line_that_is_no_csv_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.csv line 1: ',' expected after '\"'\.$"):
        has_header(write(tmp_path / "a.csv", '"a"b,c\n'), ["text"])


def test_an_encoding_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.encoding utf-9: Python has no such encoding"):
        read(write(tmp_path / "a.tsv", "text\tlabel\nx\t1\n"), encoding="utf-9")


@pytest.mark.parametrize("option", ["instruction_column", "output_column"])
def test_a_missing_column_is_refused_with_its_option(tmp_path: Path, tiny_model: str, option: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"instruction": "x", "output": "y"}')
    data = Alpaca(train_file=str(path), tokenizer=tiny_model, **{option: "z"})
    with pytest.raises(UserError, match=rf"no column 'z'; it has: instruction, output \(see data.{option}\)"):
        data.table("train")


def test_a_column_that_is_found_by_its_name_stands_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "question,answer,answer,,\nq,one,two,,\n")
    with pytest.raises(UserError, match=r"a.csv line 1: two columns are called 'answer'; rename one of them\.$"):
        list(read_rows(file, {}))
    assert [row["answer"] for _, row in read_rows(file, {"question": "data.prompt_column"})] == ["two"]


def test_an_error_about_a_file_has_its_option(tmp_path: Path, tiny_model: str) -> None:
    data = Alpaca(train_file=str(write(tmp_path / "a.json", "{}")), tokenizer=tiny_model)
    with pytest.raises(UserError, match=r"^data.train_file \S+a.json: a .json file must contain a list of objects"):
        data.table("train")


@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.csv", "No such file or directory."),
        ("*.csv", "there is no file with one of the suffixes .tsv, .csv"),
        ("empty", "there is no file with one of the suffixes .tsv, .csv"),
        ("mixed", "the folder has files of several kinds (.csv, .jsonl); give a pattern."),
    ],
)
def test_files_that_are_not_there_are_told_with_their_option(split: str, name: str, said: str, tmp_path: Path) -> None:
    for folder in ("empty", "mixed"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "mixed" / "a.csv", "text\n")
    write(tmp_path / "mixed" / "b.jsonl", "{}")
    data = Text(**{"train_file": "train.txt", f"{split}_file": str(tmp_path / name)})
    with pytest.raises(UserError, match=rf"^data\.{split}_file {re.escape(str(tmp_path / name))}: {re.escape(said)}"):
        data.source_of_rows(split)


MIB = 2**20
ROW = {"a.b": "whole", "a": {"b": "nested", "c": 3}, "d": {}, "e": 1}


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    ("name", "row", "found"),
    [
        ("a.b", ROW, "whole"),  # a column of that name
        ("a.b", {"a": {"b": "nested"}}, "nested"),
        ("a.b.c", {"a": {"b": {"c": "deep"}}}, "deep"),
        ("a", ROW, ROW["a"]),
        ("d.x", ROW, None),
        ("e.x", ROW, None),
        ("f.x", ROW, None),
        ("f", ROW, None),
    ],
)
def test_a_name_with_a_dot_is_a_column_or_else_a_field(required: bool, name: str, row: dict, found: object) -> None:
    kept = dict(row)
    if not required:
        data = Text(train_file="rows.jsonl")
        ((place, read),) = data.read("train", {}, [name], rows=[("row 1", kept)])
        assert place == "row 1"
        assert {column for column in row if column == name.partition(".")[0]} <= set(data.used_columns["train"])
    elif found is None:
        with pytest.raises(UserError, match=rf"^row 1: no column '{re.escape(name)}'; it has: a\.b, a, d, e \(see"):
            check_columns("row 1", kept, {name: "data.option"})
        return
    else:
        check_columns("row 1", kept, {name: "data.option"})
        read = kept
    assert read.get(name) == found
    assert read == row | ({} if found is None else {name: found})


@pytest.mark.parametrize("streaming", [True, False])
def test_only_a_streamed_file_may_change_in_its_middle_without_being_seen(streaming: bool, tmp_path: Path) -> None:
    """A table in the cache must not stand for rows that it has not; a stream is too large to be read twice."""
    file, keys = tmp_path / "rows.txt", []
    splits = ("train", "val", "test", "predict")
    data = Text(**{f"{split}_file": str(file) for split in splits}, streaming=streaming)
    for middle in (b"a", b"b"):
        file.write_bytes(b"x" * (MIB + 9) + middle + b"y" * (MIB + 9))
        keys.append([data.source_of_rows(split) for split in splits])
    assert [one == other for one, other in zip(*keys, strict=True)] == [streaming, False, False, False]


@pytest.mark.parametrize(
    ("size", "place", "counts"),
    [
        *[(size, place, True) for size in (1, MIB, MIB + 9) for place in (0, size // 2, size - 1)],
        *[(3 * MIB, place, True) for place in (0, MIB - 1, 2 * MIB, 3 * MIB - 1)],
        *[(3 * MIB, place, False) for place in (MIB, 2 * MIB - 1)],  # too large to be read whole twice
    ],
)
def test_a_change_in_the_first_or_the_last_mebibyte_of_a_streamed_file_is_seen(
    size: int, place: int, counts: bool, tmp_path: Path
) -> None:
    held, file = bytearray(size), tmp_path / "rows.jsonl"
    file.write_bytes(held)
    before = sampled_hash(file)
    held[place] = 1
    file.write_bytes(held)
    assert (sampled_hash(file) != before) == counts


def test_the_size_of_a_streamed_file_counts(tmp_path: Path) -> None:
    found = set()
    for size in (0, 1, MIB, MIB + 1, 2 * MIB, 3 * MIB, 3 * MIB + 1):
        (tmp_path / "rows.jsonl").write_bytes(bytes(size))
        found.add(sampled_hash(tmp_path / "rows.jsonl"))
    assert len(found) == 7


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ",", None])
def test_columns_are_separated_by_the_given_character(delimiter: str | None, tiny_model: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(
        "".join((delimiter or ",").join(row) + "\n" for row in (("text", "label"), ("the cat", "a"), ("sat", "b")))
    )
    data = make(tokenizer=tiny_model, train_file=str(file), val_file=str(file), delimiter=delimiter)
    assert data.table("train")[0]["text"] == ["the cat", "sat"]
    assert data.label_names == ["a", "b"]


@pytest.mark.parametrize("delimiter", ["", "::", "tab"])
def test_a_delimiter_of_several_characters_is_refused(delimiter: str) -> None:
    with pytest.raises(UserError, match=r"^data.delimiter must be one character, got '"):
        TextClassification(train_file="a.csv", delimiter=delimiter)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "missing.csv"])
def test_only_files_of_lines_may_lack_a_header(name: str, tmp_path: Path) -> None:
    if name != "missing.csv":
        (tmp_path / name).write_text("text,label\n")
    assert has_header(tmp_path / name, ["other"])

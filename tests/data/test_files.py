"""Reading of local files, and error messages with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from litpeft.data import Alpaca
from litpeft.data.files import has_header, read_rows
from litpeft.errors import UserError

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


def test_an_encoding_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.encoding utf-9: Python has no such encoding"):
        read(write(tmp_path / "a.tsv", "text\tlabel\nx\t1\n"), encoding="utf-9")


@pytest.mark.parametrize("option", ["instruction_column", "output_column"])
def test_a_missing_column_is_refused_with_its_option(tmp_path: Path, tiny_model: str, option: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"instruction": "x", "output": "y"}')
    data = Alpaca(train_file=str(path), tokenizer=tiny_model, **{option: "z"})
    with pytest.raises(UserError, match=rf"no column 'z'; it has: instruction, output \(see data.{option}\)"):
        data.table("train")


def test_an_error_about_a_file_has_its_option(tmp_path: Path, tiny_model: str) -> None:
    data = Alpaca(train_file=str(write(tmp_path / "a.json", "{}")), tokenizer=tiny_model)
    with pytest.raises(UserError, match=r"^data.train_file \S+a.json: a .json file must contain a list of objects"):
        data.table("train")

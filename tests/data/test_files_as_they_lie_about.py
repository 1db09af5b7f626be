"""Compressed files, patterns, folders, JSON of several forms, nested fields, encodings, unclosed quotes."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from litpeft.data.files import read_rows
from litpeft.data.raw_files import expand
from litpeft.errors import UserError
from tests.data.test_text_classification import make

CSV = "text,label\ngood film,1\nbad plot,0\n"


def rows(path: Path, **options: str) -> list[tuple[str, str]]:
    required = {"text": "data.text_column", "label": "data.label_column"}
    return [(row["text"], str(row["label"])) for _, row in read_rows(path, required, **options)]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "zip"])
def test_compressed_files_are_read(suffix: str, tmp_path: Path, tiny_model: str) -> None:
    file = tmp_path / f"train.csv.{suffix}"
    raw = CSV.encode()
    if suffix == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("train.csv", raw)
    elif suffix == "zst":
        with pa.output_stream(str(file), compression="zstd") as stream:
            stream.write(raw)
    else:
        compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
        file.write_bytes(compress(raw))
    assert rows(file) == [("good film", "1"), ("bad plot", "0")]
    file.write_bytes(file.read_bytes()[:12])
    with pytest.raises(UserError, match=f"train.csv.{suffix}: not a readable .{suffix} file"):
        rows(file)


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("a.csv", CSV), archive.writestr("b.csv", CSV)
    with pytest.raises(UserError, match="the archive holds 2 files"):
        rows(tmp_path / "a.csv.zip")


def test_a_pattern_and_a_folder_are_several_files(tmp_path: Path, tiny_model: str) -> None:
    for number in range(3):
        (tmp_path / f"part-{number}.csv").write_text(f"text,label\ngood {number},1\nbad {number},0\n")
    (tmp_path / "notes.md").write_text("not data")
    for given in (f"{tmp_path}/part-*.csv", str(tmp_path)):
        data = make(tokenizer=tiny_model, train_file=given, val_file=str(tmp_path / "part-0.csv"))
        table, facts = data.table("train")
        assert table["text"] == [f"{word} {number}" for number in range(3) for word in ("good", "bad")]
        assert facts["total_rows"] == 6
    before = data.table("train")[1]["fingerprint"]
    (tmp_path / "part-2.csv").write_text("text,label\ngood 9,1\nbad 9,0\n")
    changed = make(tokenizer=tiny_model, train_file=str(tmp_path), val_file=str(tmp_path / "part-0.csv"))
    assert changed.table("train")[1]["fingerprint"] != before
    with pytest.raises(UserError, match=r"data.train_file .*/x-\*.csv: there is no file"):
        make(tokenizer=tiny_model, train_file=f"{tmp_path}/x-*.csv", val_file=str(tmp_path / "part-0.csv"))
    (tmp_path / "part-1.csv").write_text("text,label\n ,1\nbad,0\n")
    with pytest.raises(UserError, match=r"part-1.csv line 2: the text is empty"):
        make(tokenizer=tiny_model, train_file=str(tmp_path), val_file=str(tmp_path / "part-0.csv"))


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text(CSV)
    assert expand("~/a.csv") == [tmp_path / "a.csv"]


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "good film", "label": 1}, {"text": "bad plot", "label": 0}]',
        '{"text": "good film", "label": 1}\n{"text": "bad plot", "label": 0}\n',
        '{"version": "1.0", "data": [{"text": "good film", "label": 1}, {"text": "bad plot", "label": 0}]}',
        '{\n "data": [\n  {"text": "good film", "label": 1},\n  {"text": "bad plot", "label": 0}\n ]\n}',
    ],
)
def test_json_of_each_form(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    assert rows(file) == [("good film", "1"), ("bad plot", "0")]


def test_json_without_one_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [{"x": 1}], "b": [{"x": 1}]}')
    with pytest.raises(UserError, match="an object with one such list, or one object per line"):
        rows(tmp_path / "a.json")


def test_a_dotted_name_is_a_nested_field(tmp_path: Path, tiny_model: str) -> None:
    file = tmp_path / "a.jsonl"
    lines = [
        {"input": {"text": text}, "meta": {"label": {"name": name}}} for text, name in (("good", "b"), ("bad", "a"))
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    columns = {"text_column": "input.text", "label_column": "meta.label.name"}
    data = make(tokenizer=tiny_model, train_file=str(file), val_file=str(file), **columns)
    assert (data.table("train")[0]["text"], data.table("train")[0]["label"]) == (["good", "bad"], [1, 0])
    with pytest.raises(UserError, match="line 1: no column 'input.words'; it has: input, meta"):
        make(tokenizer=tiny_model, train_file=str(file), val_file=str(file), text_column="input.words")


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (CSV.encode("utf-16"), "utf-16"),
        (CSV.replace("good", "“good”").encode("cp1252"), "cp1252"),
        (CSV.replace("good", "schön").encode("latin-1"), "latin-1"),
    ],
)
def test_an_encoding_is_suggested_that_reads_the_file(raw: bytes, encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(raw)
    with pytest.raises(UserError, match=f"not utf-8; give data.encoding, for example {encoding}"):
        rows(file)
    assert rows(file, encoding=encoding)[1] == ("bad plot", "0")


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (b"\xe9" + b"\0" * 51, "utf-16"),  # no mark, but more than a quarter of the first 200 bytes are zero
        (b"\xe9" + b"\0" * 50, "latin-1"),
        (b"\xe9" + b"a" * 148 + b"\0" * 51, "utf-16"),
        (b"\xe9" + b"a" * 149 + b"\0" * 51, "latin-1"),
        (b"\xe9" + b"\1" * 100, "latin-1"),
        (b"\xe9\x7f", "latin-1"),
        (b"\xe9\x80", "cp1252"),
        (b"\xe9\x9f", "cp1252"),
        (b"\xe9\xa0", "latin-1"),
        (codecs.BOM_UTF16_BE + "a".encode("utf-16-be"), "utf-16"),
        (codecs.BOM_UTF16_LE + "a".encode("utf-16-le"), "utf-16"),
    ],
)
def test_an_encoding_is_guessed_by_zeros_and_control_characters(raw: bytes, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(UserError, match=rf"a.txt line 1: not utf-8; give data.encoding, for example {encoding}\.$"):
        list(read_rows(tmp_path / "a.txt", {}))


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf_8", "UTF8", "utf-16-le", "utf-16-be", "utf-16"])
def test_a_mark_at_the_start_is_no_text_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    text = "cat\nsat\n\ufeffmat\n"
    (tmp_path / "a.txt").write_bytes((text if encoding == "utf-16" else f"\ufeff{text}").encode(encoding))
    found = [row["text"] for _, row in read_rows(tmp_path / "a.txt", {}, encoding=encoding)]
    assert found == ["cat", "sat", "\ufeffmat"]


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.b.Csv", "a.csv.gz", "A.CSV.GZ"])
def test_the_kind_of_a_file_is_its_suffix_in_any_case(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(CSV.encode()) if name.lower().endswith("gz") else CSV.encode())
    assert rows(tmp_path / name) == [("good film", "1"), ("bad plot", "0")]
    assert expand(str(tmp_path)) == [tmp_path / name]


def test_patterns_may_name_folders_and_names_may_look_like_patterns(tmp_path: Path) -> None:
    for name in ("b/2/part.csv", "b/1/part.csv", "part.csv", "a[1].csv", "a1.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(CSV)
    (tmp_path / "folder.csv").mkdir()
    assert expand(f"{tmp_path}/**/part.csv") == [
        tmp_path / name for name in ("b/1/part.csv", "b/2/part.csv", "part.csv")
    ]
    assert expand(f"{tmp_path}/a[1].csv") == [tmp_path / "a[1].csv"]
    assert expand(str(tmp_path)) == [tmp_path / name for name in ("a1.csv", "a[1].csv", "part.csv")]


def test_folders_and_notes_of_an_archive_are_no_data(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        for name, text in (("data/", ""), ("data/a.csv", CSV), ("__MACOSX/data/._a.csv", "x")):
            archive.writestr(name, text)
    assert rows(tmp_path / "a.csv.zip") == [("good film", "1"), ("bad plot", "0")]
    with zipfile.ZipFile(tmp_path / "b.csv.zip", "w") as archive:
        archive.writestr("data/", "")
    with pytest.raises(UserError, match="the archive holds 0 files; give an archive of one, or unpack it"):
        rows(tmp_path / "b.csv.zip")


def test_an_unclosed_quote_is_reported_where_it_opens(tmp_path: Path) -> None:
    lines = ["text,label", *["good,1"] * 4, '"bad,0', *["fine,1"] * 25]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"a.csv line 6: a quote is opened in this row and never closed"):
        rows(tmp_path / "a.csv")

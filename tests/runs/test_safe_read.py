"""Files that cannot be read are reported in one sentence, with the line where it is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litpeft.errors import UserError
from litpeft.runs.safe_read import check_aliases, check_names, read_json_file, read_options, read_yaml_file


def message(path: Path, text: str | bytes) -> str:
    """Return the error of a YAML file."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_yaml_file(path, "--config")
    return str(error.value).replace(str(path), "FILE")


@given(before=st.lists(st.text("aé猫🙂 ", max_size=9), max_size=5), control=st.sampled_from("\x00\x01\x1b\x7f"))
def test_a_control_character_is_reported_with_its_line(
    before: list[str], control: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(f"# {line}\n" for line in before) + f"# {control}\n# after\n"
    found = message(tmp_path_factory.getbasetemp() / "control.yaml", text)
    assert f"FILE line {len(before) + 1}: not valid YAML: control characters are not allowed." in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [\n", "FILE line 3: not valid YAML: did not find expected node content."),
        ("a: 2001-99-99\n", "FILE: not valid YAML: month must be in 1..12."),
        ("a: !!int x\n", "FILE: not valid YAML: invalid literal for int() with base 10: 'x'."),
        ("[" * 99, "FILE: not valid YAML: it is nested too deeply."),
        ("&a [*a]", "FILE: not valid YAML: it contains itself, or more than 1,000,000 values."),
        (b"a: \xff", "FILE: 'utf-8' codec can't decode byte 0xff in position 3: invalid start byte."),
    ],
)
def test_what_is_no_yaml_is_one_sentence(text: str | bytes, expected: str, tmp_path: Path) -> None:
    assert message(tmp_path / "a.yaml", text).endswith(expected)


def test_a_file_may_be_as_deep_as_the_limit_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\ufeff" + "[" * 98 + "]" * 98)  # stream and document count
    found = read_yaml_file(tmp_path / "a.yaml")
    depth = 0
    while found:
        (found,), depth = found, depth + 1
    assert depth == 97


@pytest.mark.parametrize("text", ["- a\n", "1: x\n", "text\n", ""])
def test_options_are_a_mapping_from_names(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="it must be a mapping from option names to values"):
        read_options(tmp_path / "a.yaml", "--config")


@pytest.mark.parametrize("text", ["{", '{"a": ' + "9" * 5000 + "}", "[" * 100_000])
def test_what_is_no_json_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"^[^\n]*a\.json is not JSON: [^;\n]+\.$"):
        read_json_file(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": {"init_args": {"a b": 1}}}, "file: 'a b' is not an option name."),
        ({"model": {"": 1}}, "file: '' is not an option name."),
        ({"model": {1: 2}}, "file: 1 is not an option name."),
        ({"model": {"init_args": {"name": "a\0"}}}, "file: model.name holds a NUL character; remove it."),
        ({"seed": "\0"}, "file: seed holds a NUL character; remove it."),
    ],
)
def test_names_and_texts_are_checked_at_every_depth(content: dict, expected: str) -> None:
    with pytest.raises(UserError) as error:
        check_names("file", content)
    assert str(error.value) == expected


def test_usual_options_pass_the_checks() -> None:
    check_names("file", {"model": {"class_path": "a.B", "init_args": {"rank": 8, "names": ["a b"], "none": None}}})
    for text in ("a", "R&D * 2", "&a [1, *a", "[&a 1, *a]", "{a: !!timestamp x, b: &a 1, c: *a}", "&a [*b]"):
        check_aliases("--x", text)
    with pytest.raises(UserError, match="--x: it contains itself"):
        check_aliases("--x", "&a [*a]")


@pytest.mark.parametrize(("lists", "values"), [(999, 1000), (1000, 999)])
def test_a_value_has_up_to_a_million_values_once_its_aliases_are_expanded(lists: int, values: int) -> None:
    """The whole, its lists and their values: 1,000,000 and 1,000,001."""
    text = f"[&a [{', '.join(['0'] * values)}], {', '.join(['*a'] * (lists - 1))}]"
    if 1 + lists + lists * values <= 1_000_000:
        check_aliases("--x", text)
    else:
        with pytest.raises(UserError, match="--x: it contains itself, or more than 1,000,000 values"):
            check_aliases("--x", text)

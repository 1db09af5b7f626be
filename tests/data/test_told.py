"""What is told of the data before training: everything that was left out, with its number, and nothing that was not."""

from __future__ import annotations

from typing import Any

import pytest

from litpeft.data.told import SHOWN_CHARACTERS, shortened, shown, tell

TABLE_COUNTS = {
    "skipped_rows": "skipped",
    "empty_responses_dropped": "without a response",
    "truncated_rows": "truncated to data.max_length",
    "thoughts_left_out": "thoughts left out by the template",
    "answers_without_text": "answers without text, of which the end is learnt",
    "turns_after_last_answer": "turns after a last answer left out",
    "rows_without_label": "without any label",
}
SPLIT_COUNTS = {
    "dropped_without_response": "dropped because of data.max_length",
    "truncated_rows": "truncated to data.max_length",
    "truncated_prompts": "of them prompts that lost their end",
}


def told(capsys: pytest.CaptureFixture, **facts: Any) -> list[str]:
    """Return the lines that are told of these facts."""
    tell({"rows": {"train": 2345}, "tables": {}, "tokens_per_row": {}} | facts)
    return capsys.readouterr().err.splitlines()


def test_what_was_left_out_is_told_with_its_number(capsys: pytest.CaptureFixture) -> None:
    start = "litpeft: train: 2,345 rows"
    assert told(capsys) == [start]
    for count, added in ((0, ""), (1, ", 1 {}"), (1234, ", 1,234 {}")):
        for name, what in TABLE_COUNTS.items():
            assert told(capsys, tables={"train": {name: count}}) == [start + added.format(what)]
        for name, what in SPLIT_COUNTS.items():
            assert told(capsys, **{name: {"train": count, "val": 9}}) == [start + added.format(what)]
    # rows that `max_length` truncates are counted where rows are selected, or else in the table
    both = {"tables": {"train": {"truncated_rows": 7}}, "truncated_rows": {"train": 5}}
    assert told(capsys, **both) == [f"{start}, 5 truncated to data.max_length"]
    every = {name: number for number, name in enumerate(TABLE_COUNTS, 1)}
    (line,) = told(capsys, tables={"train": every})
    assert all(f", {number} {TABLE_COUNTS[name]}" in line for name, number in every.items())


def test_tokens_columns_files_and_what_was_asked_for_are_told(capsys: pytest.CaptureFixture) -> None:
    tokens = {"median": 7.5, "longest": 1234}
    table = {"files": 2, "columns": ["text", "label"], "unused_columns": ["more", "other"]}
    assert told(capsys, tokens_per_row={"train": tokens}, tables={"train": table}, asked={"train": 9000}) == [
        "litpeft: train: 2,345 rows (data.train_samples 9,000: there are no more); tokens per row: median 7.5, longest "
        "1,234; 2 files; columns used: text, label; columns not used: more, other"
    ]
    empty = {"files": 1, "columns": [], "unused_columns": []}
    assert told(capsys, tables={"train": empty}, asked={"val": 9}) == ["litpeft: train: 2,345 rows"]
    lines = told(capsys, val_cut_from_train="rows are cut", format="a template", target_mean=[0.5, 1e9],
                 label_names=["a", "b"], target_deviation=[0.25, 3.0])  # fmt: skip
    assert lines[1:] == [
        "litpeft: rows are cut", "litpeft: a template",
        "litpeft: targets, standardised for training: a (mean 0.5, standard deviation 0.25), b (mean 1e+09, standard "
        "deviation 3)",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [1, 10, 11, 1000])
def test_up_to_ten_classes_are_listed(number: int, capsys: pytest.CaptureFixture) -> None:
    classes = {f"c{n}": 1000 * n for n in range(number)}
    listed = ", ".join(f"c{n} {1000 * n:,}" for n in range(min(number, 10)))
    more = f", ... ({number} classes)" if number > 10 else ""
    lines = told(capsys, classes={"train": classes, "val": {"c0": 1}})
    assert lines[1:] == [f"litpeft: classes in train: {listed}{more}"]
    assert len(told(capsys, classes={"val": classes})) == 1


@pytest.mark.parametrize(("buffer", "kept"), [(0, "in their order"), (1000, "shuffled in blocks of 1,000")])
def test_the_first_rows_of_a_stream_are_told(buffer: int, kept: str, capsys: pytest.CaptureFixture) -> None:
    tokens = {"median": 7.5, "longest": 1234}
    first = {"rows": 1000, "tokens_per_row": tokens, "shuffle_buffer": buffer, "skipped_rows": 0, "dropped_rows": 0}
    facts = {"rows": {}, "tables": {"train": {"columns": ["text"]}}}
    start = f"litpeft: train: a stream of rows, {kept}; the first 1,000: tokens per row: median 7.5, longest 1,234"
    assert told(capsys, first_rows=first, **facts) == [f"{start}; columns used: text"]
    lost = first | {"skipped_rows": 1234, "truncated_rows": 2}
    assert told(capsys, first_rows=lost, **facts) == [
        f"{start}, 1,234 skipped, 2 truncated; all are counted in the record; columns used: text"
    ]


@pytest.mark.parametrize("parts", [1, 3, 100])
def test_the_middle_of_long_parts_is_left_out(parts: int) -> None:
    each = max(40, SHOWN_CHARACTERS // parts)
    for length in (0, each - 1, each, each + 1, 5 * each):
        text = "".join(chr(ord("a") + place % 26) for place in range(length))
        expected = text if length <= each else f"{text[: each // 2]} [...] {text[length - each // 2 :]}"
        assert shortened([(text, True)] * parts) == [(expected, True)] * parts
    assert shortened([]) == []


def test_a_row_is_shown_with_its_letters_and_without_codes_of_terminals() -> None:
    parts = [("é 猫\n\t\x1b[2J\x00 ", False), ("ja\x9b🙂", True)]
    assert shown(parts, colour=False) == "é 猫\n\t\\x1b[2J\\x00 «ja\\x9b🙂»"
    assert "ja\\x9b🙂" in shown(parts, colour=True)
    assert "«" not in shown(parts, colour=True)

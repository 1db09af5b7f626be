"""What a user is told about the data before training: rows, what was left out, classes, and an example."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

Part = tuple[str, bool]  # text, and whether its tokens have loss
SHOWN_CLASSES = 10
SHOWN_CHARACTERS = 1500  # of an example
LOSS = "\033[32m{}\033[0m"  # green, for terminals


def tell(data: dict[str, Any]) -> None:
    """Print the rows of each split, what was left out or truncated, tokens per row, the classes and a training row.

    Args:
        data: what `FineTuneData.describe` returns.
    """
    if first := data.get("first_rows"):
        table, tokens = data["tables"]["train"], first["tokens_per_row"]
        kept = f"shuffled in blocks of {first['shuffle_buffer']:,}" if first["shuffle_buffer"] else "in their order"
        lost = {name.removesuffix("_rows"): count for name, count in first.items() if name.endswith("d_rows") and count}
        told = "".join(f", {count:,} {what}" for what, count in lost.items()) + "; all are counted in the record"
        print(
            f"litpeft: train: a stream of rows, {kept}; the first {first['rows']:,}: tokens per row: median "
            f"{tokens['median']:g}, longest {tokens['longest']:,}{told if lost else ''}{_columns(table)}",
            file=sys.stderr,
        )
    for split, rows in data["rows"].items():
        table, tokens = data["tables"].get(split, {}), data["tokens_per_row"].get(split, {})
        notes = {
            "skipped": table.get("skipped_rows"),
            "without a response": table.get("empty_responses_dropped"),
            "dropped because of data.max_length": data.get("dropped_without_response", {}).get(split),
            "truncated to data.max_length": data.get("truncated_rows", {}).get(split, table.get("truncated_rows")),
            "of them prompts that lost their end": data.get("truncated_prompts", {}).get(split),
            "thoughts left out by the template": table.get("thoughts_left_out"),
            "answers without text, of which the end is learnt": table.get("answers_without_text"),
            "turns after a last answer left out": table.get("turns_after_last_answer"),
            "without any label": table.get("rows_without_label"),
        }
        told = "".join(f", {count:,} {what}" for what, count in notes.items() if count)
        told += f"; tokens per row: median {tokens['median']:g}, longest {tokens['longest']:,}" if tokens else ""
        told += _columns(table)
        asked = data.get("asked", {}).get(split)
        few = f" (data.{split}_samples {asked:,}: there are no more)" if asked else ""
        print(f"litpeft: {split}: {rows:,} rows{few}{told}", file=sys.stderr)
    if cut := data.get("val_cut_from_train"):
        print(f"litpeft: {cut}", file=sys.stderr)
    if written := data.get("format"):
        print(f"litpeft: {written}", file=sys.stderr)
    if classes := data.get("classes", {}).get("train"):
        listed = ", ".join(f"{name} {count:,}" for name, count in list(classes.items())[:SHOWN_CLASSES])
        more = f", ... ({len(classes)} classes)" if len(classes) > SHOWN_CLASSES else ""
        print(f"litpeft: classes in train: {listed}{more}", file=sys.stderr)
    if mean := data.get("target_mean"):
        targets = zip(data["label_names"], mean, data["target_deviation"], strict=True)
        listed = ", ".join(f"{name} (mean {m:.6g}, standard deviation {s:.6g})" for name, m, s in targets)
        print(f"litpeft: targets, standardised for training: {listed}", file=sys.stderr)
    if example := data.get("example"):
        parts = [(part["text"], part["has_loss"]) for part in example]
        how = "green has loss" if sys.stderr.isatty() else "« » has loss"
        print(f"litpeft: a training row ({how}): {shown(parts, sys.stderr.isatty())}", file=sys.stderr)


def _columns(table: dict[str, Any]) -> str:
    """Return the number of files and the columns of a table, for the line of its split."""
    used, unused = table.get("columns"), table.get("unused_columns")
    told = f"; {table['files']} files" if table.get("files", 1) > 1 else ""
    told += f"; columns used: {', '.join(used)}" if used else ""
    return told + (f"; columns not used: {', '.join(unused)}" if unused else "")


def shortened(parts: Sequence[Part], most: int = SHOWN_CHARACTERS) -> list[Part]:
    """Return the parts with the middle of long ones left out, so that all have about `most` characters together."""
    each = max(40, most // max(1, len(parts)))
    return [
        (text if len(text) <= each else f"{text[: each // 2]} [...] {text[-each // 2 :]}", has_loss)
        for text, has_loss in parts
    ]


def shown(parts: Sequence[Part], colour: bool) -> str:
    """Return a row as text that marks what has loss, in colour or between « and »."""
    mark = LOSS if colour else "«{}»"
    return "".join(mark.format(_printable(text)) if has_loss else _printable(text) for text, has_loss in parts)


def _printable(text: str) -> str:
    """Escape control characters: a text may hold codes of terminals."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)

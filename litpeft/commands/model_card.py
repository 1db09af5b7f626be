"""The model card of an exported adapter: README.md with the metadata that the hub reads and the figures of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from litpeft.runs.strategy_names import shown_name
from litpeft.runs.summary import summary


def write_model_card(folder: Path, record: dict[str, Any], base: str, settings: dict[str, Any]) -> None:
    """Write README.md: metadata in PEFT's form, the figures of the run, its adapter options and package versions.

    Args:
        folder: the exported folder.
        record: the run record.
        base: hub id or folder of the base model.
        settings: what a user needs beside the weights: `target_mean` and `target_deviation`, or `thresholds`.
    """
    metadata = {"base_model": base, "library_name": "peft", "tags": [record["adapter"], "litpeft"]}
    rows = [f"| {name.strip()} | {value} |" for name, value in summary(record)]
    options = [f"| {name} | {value} |" for name, value in (record["adapter_options"] or {}).items()]
    versions = [f"{name} {version}" for name, version in (record["packages"] or {}).items() if version]
    text = [
        *("---", yaml.safe_dump(metadata, sort_keys=False).strip(), "---", ""),
        f"# {shown_name(record['adapter'])} adapter of {record['model_name']}",
        "",
        f"Trained by litpeft on {record['data']} ({record['task']}, random seed {record['seed']}). Load it with "
        "`peft.PeftModel.from_pretrained(base_model, FOLDER)`.",
        *_how_to_load_the_base(record, settings),
        *("", "| figure | value |", "| --- | --- |", *rows),
        *("", "| adapter option | value |", "| --- | --- |", *options),
        *("", f"Versions: {', '.join(versions)}.", ""),
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")


def _how_to_load_the_base(record: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return sentences about the labels and new tokens of the base model, and about what the outputs mean."""
    names, lines = (record["data_summary"] or {}).get("label_names"), []
    if names:
        kind = {"target_mean": "regression", "thresholds": "multi_label_classification"}
        problem = next((f', problem_type="{kind[name]}"' for name in kind if name in settings), "")
        lines += [
            f"Load the base model with `num_labels={len(names)}, id2label={dict(enumerate(names))}{problem}, "
            "ignore_mismatched_sizes=True`."
        ]
    if "target_mean" in settings:
        mean, deviation = (dict(zip(names, settings[f"target_{each}"], strict=True)) for each in ("mean", "deviation"))
        lines += [f"Value in the target's own unit = output x deviation + mean: mean {mean}, deviation {deviation}."]
    if "thresholds" in settings:
        lines += [f"A text has a label from this probability (sigmoid of the output) on: {settings['thresholds']}."]
    if (record["adapter_summary"] or {}).get("new_tokens"):
        lines += [
            "Before, call `base_model.resize_token_embeddings(len(tokenizer))` with the tokenizer of this folder."
        ]
    return lines

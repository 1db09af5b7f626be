"""The model card of an export: README.md with the metadata that the hub reads and the figures of the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from litpeft.runs.benchmark_results import final_evaluation, scores
from litpeft.runs.folder import CHECKPOINTS, STEP, step_of
from litpeft.runs.record import FIELDS, by_field
from litpeft.runs.strategy_names import shown_name
from litpeft.runs.summary import summary

PIPELINES = {  # task -> the hub's name of it
    "CausalLM": "text-generation",
    "Seq2SeqLM": "text-generation",
    "SequenceClassification": "text-classification",
    "SequenceRegression": "text-classification",
    "SequenceMultiLabel": "text-classification",
    "ImageClassification": "image-classification",
}
LOADING = {  # format -> how the export is loaded
    "adapter": "`peft.PeftModel.from_pretrained(base_model, FOLDER)`",
    "merged": "`from_pretrained(FOLDER)` of a class of transformers",
    "gguf": "`llama-cli -m FILE`",
}
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
NO_METRICS = "val_step", "_seconds", "_bytes"  # ends of the names of other fields
SPLITS = {"val": "validation", "test": "test"}
PREFIXES = ("val_", "test_")  # starts of the names of metrics


def write_model_card(
    folder: Path, record: dict[str, Any], base: str, settings: dict[str, Any], form: str, licence: str | None
) -> None:
    """Write README.md: metadata in the hub's form, the figures of the run, its adapter options and package versions.

    Args:
        folder: the exported folder.
        record: the run record.
        base: hub id or folder of the base model; a folder is named in no metadata, because the hub does not know it.
        settings: what a user needs beside the weights: `target_mean` and `target_deviation`, or `thresholds`.
        form: format of the export: adapter, merged or gguf.
        licence: licence of the export, by the hub's name.
    """
    metadata = ModelCardData(
        base_model=None if os.path.isdir(base) else base,
        library_name=LIBRARIES[form],
        license=licence,
        pipeline_tag=PIPELINES.get(record["task"]),
        tags=[record["adapter"], "litpeft"],
        model_name=f"{Path(record['model_name']).name}-{record['adapter']}",
        eval_results=_results(record),
    )
    rows = [f"| {name.strip()} | {value} |" for name, value in summary(record)]
    options = [f"| {name} | {value} |" for name, value in (record["adapter_options"] or {}).items()]
    versions = [f"{name} {version}" for name, version in (record["packages"] or {}).items() if version]
    text = [
        *("---", metadata.to_yaml().strip(), "---", ""),
        f"# {shown_name(record['adapter'])} adapter of {record['model_name']}{'' if form == 'adapter' else ', merged'}",
        "",
        f"Trained by litpeft on {record['data']} ({record['task']}, random seed {record['seed']}). Load it with "
        f"{LOADING[form]}.",
        *(_how_to_load_the_base(record, settings) if form == "adapter" else []),
        *_what_outputs_mean(record, settings),
        *("", "| figure | value |", "| --- | --- |", *rows),
        *("", "| adapter option | value |", "| --- | --- |", *options),
        *("", f"Versions: {', '.join(versions)}.", ""),
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")


def at_checkpoint(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a record with the figures of another checkpoint, as far as the run validated or evaluated its weights.

    Args:
        record: the run record, whose figures are those of the checkpoint that it names.
        name: name of the checkpoint's folder.
    """
    if not record["checkpoint"] or Path(record["checkpoint"]).name == name:
        return record
    step = step_of(name) if STEP.fullmatch(name) else None
    found = next((row for row in reversed(record["validations"] or []) if row["step"] == step), {})
    of_weights = [field for field in FIELDS if field.startswith(PREFIXES)]
    metrics = {metric: value for metric, value in found.items() if metric.startswith("val_")}
    known = {"steps": step, "epochs": found.get("epochs"), "train_seconds": found.get("train_seconds")}
    empty = dict.fromkeys((*of_weights, "train_loss", "other_metrics", "merged_evaluation"))
    return record | empty | known | by_field(metrics) | {"checkpoint": f"{CHECKPOINTS}/{name}"}


def _results(record: dict[str, Any]) -> list[EvalResult]:
    """Return the metrics of the validation and test rows and the scores of benchmarks, as the hub shows them."""
    task, data = PIPELINES.get(record["task"], "other"), record["data"]
    metrics = record | (record["other_metrics"] or {})
    named = {
        (data, SPLITS[prefix], name.removeprefix(f"{prefix}_")): value
        for prefix in SPLITS
        for name, value in metrics.items()
        if name.startswith(f"{prefix}_") and not name.endswith(NO_METRICS) and isinstance(value, float)
    }
    evaluation = final_evaluation(record) or {"results": {}}
    for name in evaluation["results"]:
        only = {"results": {name: evaluation["results"][name]}}
        named |= {(name, None, metric.removeprefix(f"{name}_")): value for metric, value in scores(only).items()}
    return [
        EvalResult(
            task_type=task,
            dataset_type=name.lower(),
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_value=value,
        )
        for (name, split, metric), value in named.items()
    ]


def _how_to_load_the_base(record: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return sentences about the labels and new tokens of the base model."""
    names, lines = (record["data_summary"] or {}).get("label_names"), []
    if names:
        kind = {"target_mean": "regression", "thresholds": "multi_label_classification"}
        problem = next((f', problem_type="{kind[name]}"' for name in kind if name in settings), "")
        lines += [
            f"Load the base model with `num_labels={len(names)}, id2label={dict(enumerate(names))}{problem}, "
            "ignore_mismatched_sizes=True`."
        ]
    if (record["adapter_summary"] or {}).get("new_tokens"):
        lines += [
            "Before, call `base_model.resize_token_embeddings(len(tokenizer))` with the tokenizer of this folder."
        ]
    return lines


def _what_outputs_mean(record: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return sentences about the outputs of regression and of several labels."""
    names, lines = (record["data_summary"] or {}).get("label_names"), []
    if any(settings.get("target_mean", ())):  # 0 where a merged model gives values in their own unit
        mean, deviation = (dict(zip(names, settings[f"target_{each}"], strict=True)) for each in ("mean", "deviation"))
        lines += [f"Value in the target's own unit = output x deviation + mean: mean {mean}, deviation {deviation}."]
    if "thresholds" in settings:
        lines += [f"A text has a label from this probability (sigmoid of the output) on: {settings['thresholds']}."]
    return lines

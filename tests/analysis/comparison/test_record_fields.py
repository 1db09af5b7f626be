"""Each field of the record changes what a comparison says when it alone changes in one run, or is listed as harmless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.answer import answer
from litpeft.analysis.comparison.figures import KNOWN
from litpeft.analysis.comparison.formats import FORMATS
from litpeft.errors import UserError
from litpeft.runs.record import FIELDS
from tests.analysis.comparison.build import write_run
from tests.analysis.comparison.test_benchmarks import evaluation, result

HARMLESS = {
    # what is in `config` too, which is compared option by option
    *("adapter_options", "task", "model_name", "data", "optimizer", "scheduler", "precision", "base", "tf32", "kernels"),
    *("effective_batch_size", "processes", "strategy", "run_name", "started_at"),
    # what explains a figure, and is no figure
    *("adapter_summary", "peaks_by_process", "others_bytes", "tracked_steps", "memory_phases", "new_tensors"),
    *("head_labels", "stream", "skipped_steps", "warmup_steps_left_out", "sampled_steps", "step_split_seconds_p50"),
    *("step_split_seconds_p95", "peak_flops_per_second", "energy_joules_by_source", "validations", "selection"),
    *("val_examples_bytes", "val_examples_seconds", "confusion_matrix", "image_grid"),
}  # fmt: skip
RICH = {
    **{"test_accuracy": 0.8, "test_loss": 0.5, "test_f1": 0.7, "val_f1": 0.8, "train_loss": 0.3, "steps": 100, "epochs": 1.0},
    **{"load_seconds": 3.0, "wall_seconds": 120.0, "energy_joules": 500.0, "peak_reserved_bytes": 2 * 10**9},
    **{"peak_allocated_bytes": 10**9, "padded_tokens_per_second": 2500.0, "trained_tokens_per_second": 100.0},
    **{"train_samples_per_second": 50.0, "step_seconds_p95": 0.5, "model_flops_per_second": 1e9, "flops_utilisation": 0.4},
    **{"model_flops_per_step": 1e8, "total_params": 10**7, "checkpoint": "checkpoints/step-000100"},
    **{"other_metrics": {"val_mae": 1.5}, "main_metrics": ["val_f1"], "metric_directions": {"mae": "lower", "accuracy": "higher"}},
    **{"merged_evaluation": {kind: {"val_accuracy": 0.85, "rows_per_second": 90.0} for kind in ("adapter", "merged")}},
}  # fmt: skip
EXAMPLES = {"loss": [0.1, 2.0, 0.2], "correct": [1, 0, 1]}
SPECIAL: dict[str, Any] = {  # values that another rule below would not find
    "seed": 7,
    "status": "failed",
    "adapter": "dora",
    "checkpoint": "checkpoints/step-000050",
    "main_metrics": ["val_loss"],
    "metric_directions": {"mae": "higher", "accuracy": "higher"},
    "val_examples": None,
    "val_step": 50,
    "other_metrics": {"val_mae": 2.5},
    "machine": {"processor": "y"},
    "packages": {"torch": "2.6"},
    "git": {"commit": "b" * 40, "dirty": True},
    "config": {"seed_everything": 1, "trainer": {"max_epochs": 9}},
    "data_summary": {"rows": {"val": 10}, "tables": {"val": {"fingerprint": "other"}}},
    "optimizer_settings": [{"initial_lr": 0.5}],
    "benchmarks": [evaluation(100, task=result(0.1))],
    "merged_evaluation": {"adapter": {"val_accuracy": 0.1}, "merged": {"val_accuracy": 0.1}},
    "peaks_by_process": [{"peak_rss_bytes": 1}],
    "validations": [{"step": 1, "val_loss": 0.1}],
    "head_labels": {"matched_by": "name", "names": {"a": "b"}},
    "adapter_summary": {"adapted_layers": {"query": 9}},
}
MAPPINGS = ("adapter_options", "memory_phases", "stream", "step_split_seconds_p50", "step_split_seconds_p95")
LISTS = ("tracked_steps", "new_tensors")
TEXTS = (
    *(
        "error",
        "started_at",
        "experiment",
        "run_name",
        "task",
        "model_name",
        "data",
        "optimizer",
        "scheduler",
        "precision",
    ),
    *("base", "kernels", "strategy", "selection", "confusion_matrix", "image_grid"),
)


def another(name: str, before: Any) -> Any:
    """Return another value of a field."""
    if name in SPECIAL:
        return SPECIAL[name]
    if name in TEXTS:
        return "another"
    if name in LISTS:
        return [3] if name == "tracked_steps" else ["x"]
    if name in MAPPINGS or name == "energy_joules_by_source":
        return {"x": 1} if name != "memory_phases" else {"train": {"peak_tensor_bytes": 1}}
    return name == "tf32" or (2 * before + 1 if before is not None else 5)


def write(folder: Path, **fields: Any) -> None:
    """Write two seeds of two groups; `fields` are those of the last run."""
    for number, (adapter, seed) in enumerate((a, s) for a in ("none", "lora") for s in (0, 1)):
        figures = {key: item + seed / 100 if isinstance(item, float) else item for key, item in RICH.items()}
        figures["benchmarks"] = [evaluation(100, task=result(0.7 + seed / 100))]
        given = figures | (fields if number == 3 else {})
        write_run(
            folder / f"{adapter}{seed}", adapter, seed, **{"accuracy": 0.85 + seed / 100, "examples": EXAMPLES} | given
        )


def said(folder: Path, name: str) -> str:
    """Return all that a comparison says, with a column of this field if there is one."""
    figures = [["val_loss", name]] if name in KNOWN else [None]
    try:
        found = [compare([folder], figures=names, examples=True) for names in figures]
    except UserError as error:
        return str(error)
    return "\n".join(f"{FORMATS['json'](each)} {answer(each)}" for each in found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "version"])
def test_a_field_that_changes_alone_is_heard_of_or_is_harmless(plain: Path, name: str) -> None:
    last = plain / "lora1" / "record.json"
    text = last.read_text()
    before = said(plain, name)
    record = json.loads(text)
    changed = another(name, record[name])
    assert changed != record[name]
    try:
        last.write_text(json.dumps(record | {name: changed}))
        assert (said(plain, name) == before) == (name in HARMLESS)
    finally:
        last.write_text(text)

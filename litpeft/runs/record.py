"""Read and write the record of a run, a flat JSON file; defines its fields. Does not import torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.runs.atomic_write import write_atomically
from litpeft.runs.record_schema import RECORD, acceptor, schema_error
from litpeft.runs.safe_read import read_json_file

VERSION = 1
FILE_NAME = "record.json"

# name -> definition. Bytes and seconds are not scaled; an unknown value is null.
FIELDS = {
    "version": "version of this list of fields",
    "status": "ok, oom (out of memory), failed, or interrupted (also after the process was killed)",
    "error": "error message, if status is not ok",
    "started_at": "start time, UTC, ISO 8601",
    "experiment": "name of the experiment that the run belongs to",
    "run_name": "name of the run within its experiment",
    # configuration
    "adapter": "name of the fine-tuning strategy: none (full fine-tuning), frozen, lora, ...",
    "adapter_options": "options of the adapter",
    "adapter_summary": "number of adapted layers by the last part of their name; number of quantised layers, their "
    "parameters and bytes; weights that the adapter leaves out (experts, vision part, unknown layers); number of "
    "tokens added to the model",
    "task": "class of the task",
    "model_name": "model name or path, as given",
    "data": "class of the data set",
    "data_summary": "rows used, tokens per row, rows truncated or skipped, classes, label names, fingerprints of "
    "the tables",
    "optimizer": "class of the optimizer",
    "optimizer_settings": "settings of each parameter group; lr is the learning rate of the first step, initial_lr the "
    "configured one",
    "scheduler": "class of the learning-rate schedule; null: constant learning rate",
    "seed": "random seed (seed_everything)",
    "precision": "compute dtype and dtype of the frozen weights, bf16, fp16 or fp32; trainable parameters are fp32 "
    "unless adapter_options has dtype bf16",
    "base": "how the frozen weights are held: nf4, fp4, int8, or the package that quantised them; null: in the compute "
    "dtype, and in old records",
    "tf32": "whether factors of fp32 products were rounded to TF32 on a GPU; null in old records",
    "kernels": "kernels: none, Liger's, C functions (native), or `products in fp32` (of 16-bit numbers); null in old "
    "records",
    "effective_batch_size": "rows per optimizer step: batch size per device x gradient accumulation x processes; with "
    "data.batch_tokens the mean, rounded",
    "processes": "number of training processes, one per device. Losses, metrics, rows, tokens, operations and energy "
    "are totals or means over all processes; seconds are those of the first process. Null in old records",
    "strategy": "how training is distributed over devices: `one_device`, `ddp` (each process holds the model), `fsdp2` "
    "(each process holds a shard)",
    # sizes
    "trainable_params": "number of trainable parameters, head included",
    "total_params": "number of parameters of the model, adapter included",
    "adapter_bytes": "bytes of the trainable tensors, which is the size of the model part of a checkpoint",
    "model_bytes": "bytes of all parameters and buffers in memory",
    # memory
    "peak_allocated_bytes": "peak memory allocated by PyTorch on the GPU during training, without benchmarks; null "
    "without a GPU",
    "peak_reserved_bytes": "peak memory reserved by PyTorch on the GPU during training, without benchmarks; null "
    "without a GPU",
    "peak_rss_bytes": "peak resident host memory of the process since its start",
    "peak_tensor_bytes": "peak tensor memory: largest total size of live tensors in the tracked steps",
    "peaks_by_process": "peaks of each process, where several trained; the fields above have those of the process with "
    "the highest peak. Null for one process",
    "others_bytes": "GPU memory in use before the run, by other processes and the CUDA context; null on a CPU",
    "tracked_steps": "training steps, since start or resume, in which tensors were tracked; step times and rates "
    "exclude these steps",
    "memory_phases": "for each phase (load, first_step, train, validate, save, benchmark): peak host, GPU and tensor "
    "memory, and tensor memory by kind of tensor at its peak (for load: at its end). With several processes, those of "
    "the first, and `sent_bytes`, the bytes that it sent to others in the last tracked step or batch of the phase (in "
    "rings of all processes); an unknown value is null or missing",
    "new_tensors": "names of newly initialised parameters, which are trained",
    "head_labels": "how a pretrained classification head was matched with the labels of the data: `matched_by` (name, "
    "or number if the names differ), and `names`, label of the data -> label in the model's file; null if the head is "
    "new or has the same names in the same order",
    # time
    "load_seconds": "seconds to load the model and add the adapter",
    "train_seconds": "seconds of all optimizer steps: data loading, forward, backward, update; without validation and "
    "checkpoints. A resumed run includes the seconds before its checkpoint",
    "wall_seconds": "seconds since start or resume, including loading, validation, checkpoints and benchmarks",
    "epochs": "passes over the training rows; a partial pass counts as a fraction; null for a stream",
    "stream": "with data.streaming: training rows read and used so far, rows trained on, rows skipped, dropped or "
    "truncated, and whole passes over the rows; else null",
    "steps": "number of optimizer steps",
    "skipped_steps": "optimizer steps skipped because scaled fp16 gradients overflowed; null for other compute dtypes",
    "warmup_steps_left_out": "number of steps after start or resume that the step times and rates exclude",
    "step_seconds_p50": "median seconds per optimizer step, without sampled steps, as all per-second rates except "
    "model_flops_per_second",
    "step_seconds_p95": "95th percentile of the seconds per optimizer step",
    "train_samples_per_second": "training rows per second",
    "train_tokens_per_second": "tokens per second, without padding; unknown for images",
    "padded_tokens_per_second": "tokens per second, with padding",
    "trained_tokens_per_second": "positions with a loss per second (one per row in classification)",
    "sampled_steps": "number of steps whose time was split into parts: every tenth step, or as set by "
    "throughput.sample_every",
    "step_split_seconds_p50": "median seconds of each part of a sampled step: data_wait, forward, backward, optimizer",
    "step_split_seconds_p95": "95th percentile of the seconds of each part of a sampled step",
    "model_flops_per_step": "mean floating-point operations per sampled step: matrix products of forward and backward; "
    "without gradients of frozen weights and without recomputation (litpeft/profiling/flops.py)",
    "model_flops_per_second": "model_flops_per_step divided by the seconds of the sampled steps",
    "peak_flops_per_second": "peak operations per second of one device: throughput.peak_flops, or measured with "
    "throughput.measure_peak",
    "flops_utilisation": "model_flops_per_second / (peak_flops_per_second x processes)",
    "energy_joules": "energy from the start to the end of training, all sources, with validation and checkpoints, "
    "without benchmarks and without the time before a resume; null unless every source is known",
    "energy_joules_by_source": "energy of cpu_packages (processors) and gpu (board); other programs on the same "
    "hardware count too",
    # quality
    "train_loss": "mean loss over the last finished epoch, in training mode (with dropout)",
    "val_step": "optimizer step at which the val_* metrics were measured",
    "val_loss": "mean loss over the validation rows",
    "val_accuracy": "share of correctly classified validation rows",
    "val_f1": "macro F1 on the validation rows: mean of the F1 of each class",
    "validations": "every validation in order: step, epochs, train_seconds, and its metrics by name",
    "val_examples": "file in the run folder with the results of each validation row, as record.predictions says: JSON "
    "with `step`, `table` (fingerprint of the rows), in row order `loss` and, for classifiers, `correct`, and `wrong`, "
    "the wrong predictions with the highest probability",
    "val_examples_bytes": "size of that file",
    "val_examples_seconds": "time to gather and write that file, all validations",
    "benchmarks": "every benchmark evaluation in order of its step: step, seconds, results of each benchmark (scores, "
    "standard_errors over items, items, items_of (number for metrics over only some), num_fewshot, fingerprint of "
    "the items, tasks of a group), and skipped benchmarks with the reason",
    "other_metrics": "validation and test metrics without a field of their own, by name; null if there are none",
    "main_metrics": "validation metrics, by name, whose mean is the score of the run: the first of model.metrics, the "
    "official ones of GLUE, or that of the task; null for language models and in old records",
    "metric_directions": "whether `higher` or `lower` is better, by name of the metric without val_ or test_; null in "
    "old records",
    "confusion_matrix": "file in the run folder with the confusion matrix of the last validation, for up to fifty "
    "classes: JSON with `step`, `label_names` and `rows`, the number of rows of each class (list) by predicted class",
    "image_grid": "file in the run folder with a picture of validation images, wrong ones first",
    "merged_evaluation": "validation metrics and rows_per_second of the run as trained (`adapter`) and with the "
    "adapter merged into the base (`merged`), after `litpeft evaluate --merged`",
    "test_loss": "mean loss over the test rows, after `litpeft test`",
    "test_accuracy": "share of correctly classified test rows, after `litpeft test`",
    "test_f1": "macro F1 on the test rows, after `litpeft test`",
    "checkpoint": "folder of the selected checkpoint, within the run folder",
    "selection": "how the checkpoint was selected: `last`, or `best` and the metric",
    # environment
    "config": "complete resolved configuration",
    "packages": "versions of Python and of the installed packages",
    "machine": "processor, threads, accelerator, operating system",
    "git": "commit and uncommitted changes of the working directory; null outside a git repository",
}

ACCEPTS = acceptor(RECORD)


def new_record() -> dict[str, Any]:
    """Return an empty record, with status interrupted."""
    return dict.fromkeys(FIELDS) | {"version": VERSION, "status": "interrupted"}


def by_field(metrics: dict[str, float]) -> dict[str, Any]:
    """Return metrics by field name; metrics without a field go into `other_metrics`."""
    others = {name: value for name, value in metrics.items() if name not in FIELDS}
    known = {name: value for name, value in metrics.items() if name in FIELDS}
    return known | ({"other_metrics": others} if others else {})


def with_metrics(record: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
    """Return a record with metrics added; its other metrics stay."""
    added = by_field(metrics)
    others = (record.get("other_metrics") or {}) | added.get("other_metrics", {})
    return record | added | {"other_metrics": others or None}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `record.json` atomically.

    Raises:
        KeyError: a name in the record is not in `FIELDS`.
    """
    if unknown := record.keys() - FIELDS.keys():
        raise KeyError(f"not in record.FIELDS: {', '.join(sorted(unknown))}")
    write_atomically(folder / FILE_NAME, as_json(record))


def as_json(record: dict[str, Any]) -> str:
    """Return a record as JSON text; NaN and infinity become null."""
    return json.dumps(_finite(record), indent=2, ensure_ascii=False, default=str) + "\n"


def read_record(folder: Path, to_write: bool = False) -> dict[str, Any]:
    """Return the record of a run folder; fields missing in an old record are null.

    Args:
        folder: the run folder.
        to_write: refuse fields that `write_record` would refuse.

    Raises:
        UserError: the record is missing or invalid.
    """
    path = folder / FILE_NAME
    record = read_json_file(path)
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise UserError(f"{path} is not a run record of version {VERSION}.")
    known = {name: record[name] for name in FIELDS if name in record}
    if not ACCEPTS(known) and (error := schema_error(known, RECORD)):
        raise UserError(f"{path} is not a valid run record: {error}.")
    if to_write and (unknown := sorted(record.keys() - FIELDS.keys())):
        raise UserError(f"{path} holds {unknown[0]!r}, which is not a field of this version; correct or remove it.")
    return dict.fromkeys(FIELDS) | record | {"benchmarks": complete_evaluations(record.get("benchmarks"))}


def complete_evaluations(evaluations: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the evaluations of a record, with fields that earlier versions did not write empty or null."""
    return evaluations and [
        {"seconds": None}
        | evaluation
        | {
            "skipped": evaluation.get("skipped") or {},
            "results": {
                name: {"items": None, "num_fewshot": None, "fingerprint": None, "items_of": {}}
                | result
                | {"standard_errors": result.get("standard_errors") or {}, "tasks": result.get("tasks") or []}
                for name, result in evaluation["results"].items()
            },
        }
        for evaluation in evaluations
    ]


def path_in_run_folder(folder: Path, name: str) -> Path:
    """Return the path of a file or folder that a record names.

    Raises:
        UserError: the path is outside the run folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / FILE_NAME}: {name} is outside the run folder.")
    return path


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot hold, by None."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The record of a run: one flat JSON file whose names, units and definitions are here. Reading it needs no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from litpeft.errors import UserError
from litpeft.runs.atomic_write import write_atomically
from litpeft.runs.record_schema import RECORD, misfit
from litpeft.runs.safe_read import read_json_file

VERSION = 1
FILE_NAME = "record.json"

# name -> what it is. Bytes and seconds are raw; what is not known is null.
FIELDS = {
    "version": "of this list of names",
    "status": "ok, oom (out of memory), failed, or interrupted (also what a killed process leaves)",
    "error": "the sentence that the run ended with, where status is not ok",
    "started_at": "when, UTC, ISO 8601",
    "experiment": "name under which runs are grouped",
    "run_name": "what this run varies",
    # what was run
    "adapter": "name of the strategy: none, frozen, lora, ...",
    "adapter_options": "its options",
    "adapter_summary": "what it did to this model: layers adapted, by name; layers, numbers, bytes held in four bits",
    "task": "class of the task",
    "model_name": "as given",
    "data": "class of the data set",
    "data_summary": "rows used, rows cut to the greatest length, names of labels, fingerprints of the tables",
    "optimizer": "class of the optimizer",
    "optimizer_settings": "what it really ran with, by group; lr is the first step's, initial_lr what was asked for",
    "scheduler": "class of the learning-rate schedule; null is a constant rate",
    "seed": "seed_everything",
    "precision": "what products are computed and frozen weights held in, bf16 or fp32; what trains is held in fp32",
    "effective_batch_size": "rows an optimizer step: batch size x accumulated batches x processes",
    "processes": "that trained together, one a device; losses, metrics, rows, tokens, operations and energy are those "
    "of all, seconds those of the first, which ends each step with the others; null in records of before there were "
    "several",
    "strategy": "how: `one_device`, `ddp` (each holds the model), `fsdp2` (each holds a share of it)",
    # sizes
    "trainable_params": "numbers that train, head included",
    "total_params": "numbers in the model, adapter included",
    "adapter_bytes": "bytes of the trainable tensors: what a checkpoint holds of the model",
    "model_bytes": "bytes of all parameters and buffers as they are held",
    # memory
    "peak_allocated_bytes": "most that CUDA's allocator had handed out at once during the fit, benchmarks left out; "
    "null without CUDA",
    "peak_reserved_bytes": "most that CUDA's allocator had taken from the device, likewise; null without CUDA",
    "peak_rss_bytes": "most host memory that the process has held since it started",
    "peak_tensor_bytes": "most bytes of tensors alive at once in the steps that were followed",
    "peaks_by_process": "of several processes, each one's peaks, as above, where those of the one that needed most "
    "stand; null of one",
    "others_bytes": "held on the GPU before the run by other processes and this one's CUDA context; null on a CPU",
    "tracked_steps": "training steps since the start or resume whose tensors were followed: all figures of time but "
    "train_seconds leave them out",
    "memory_phases": "by phase (load, first_step, train, validate, save, benchmark): peaks of the host, of CUDA, and "
    "of tensors with its split by what they are for (litpeft/profiling/memory/tracker.py), of load that of what it leaves; "
    "null or absent is not known; of several processes, the first one's",
    # time
    "new_tensors": "names of parameters that no file held: drawn at random and trained",
    "load_seconds": "reading the model and putting the adapter in",
    "train_seconds": "all optimizer steps: waiting for data, forward, backward, update; no validation, no checkpoints; "
    "of a resumed run, also those before the checkpoint that it was resumed from",
    "wall_seconds": "the fit since it was started or resumed, loading, validation, checkpoints and benchmarks included",
    "epochs": "passes over the training rows, the part of one that was begun included",
    "steps": "optimizer steps",
    "warmup_steps_left_out": "first steps since the start or resume, that the following figures leave out",
    "step_seconds_p50": "median seconds an optimizer step; it and the rates leave the sampled steps out",
    "step_seconds_p95": "95th percentile of the same",
    "train_samples_per_second": "rows a second",
    "train_tokens_per_second": "real tokens a second, padding not counted",
    "padded_tokens_per_second": "tokens a second, padding counted",
    "trained_tokens_per_second": "positions that carry loss a second (one a row in classification)",
    "sampled_steps": "how many were split into parts, every tenth or as throughput.sample_every says",
    "step_split_seconds_p50": "median seconds of a sampled step's parts: data_wait, forward, backward, optimizer",
    "step_split_seconds_p95": "95th percentile of the same, each by itself",
    "model_flops_per_step": "mean of the sampled steps: operations of the matrix products that the batch needs in "
    "forward and backward; no gradient of a frozen weight, nothing for what is computed twice (litpeft/profiling/flops.py)",
    "model_flops_per_second": "the same a second of the sampled steps",
    "peak_flops_per_second": "what a device can make: throughput.peak_flops, or as throughput.measure_peak found",
    "flops_utilisation": "model_flops_per_second as a share of that, times the processes",
    "energy_joules": "of all sources from the start of training to its end, validation and checkpoints included, "
    "benchmarks left out, and before a resume; null unless each is known",
    "energy_joules_by_source": "cpu_packages (processors) and gpu (its board), whoever made them work",
    # quality
    "train_loss": "mean over the last finished epoch, in training mode (dropout on)",
    "val_step": "optimizer steps after which val_* were measured; those of `checkpoint` where validation ended the run",
    "val_loss": "mean over the validation rows",
    "val_accuracy": "share of validation rows that are right",
    "val_f1": "mean of the classes' F1 on the validation rows",
    "validations": "each validation of the fit, in order: step, epochs, train_seconds, and its metrics by name",
    "val_examples": "file in the run folder with what each validation row gave, where record.predictions asked for it: "
    "JSON of `step`, `table` (fingerprint of the rows), and, in the order of the rows, `loss` and (of a classifier) "
    "`correct`",
    "benchmarks": "each evaluation, in order of its step: step, seconds, results by benchmark (scores, standard_errors "
    "over items, items, num_fewshot, the fingerprint of the items as they were asked, and of a group its tasks), and "
    "what was skipped and why",
    "other_metrics": "validation metrics of other names, by name; null where a task has none",
    "test_loss": "as val_loss on the test rows, after `litpeft test`",
    "test_accuracy": "as val_accuracy on the test rows, after `litpeft test`",
    "test_f1": "as val_f1 on the test rows, after `litpeft test`",
    "checkpoint": "folder of the weights that the run stands for, within the run folder",
    "selection": "how they were chosen: `last`, or `best` and the metric",
    # surroundings
    "config": "the whole resolved configuration",
    "packages": "versions",
    "machine": "processor, threads, accelerator, system",
    "git": "commit and state of the working directory; null where there is none",
}


def new_record() -> dict[str, Any]:
    """A record in which nothing is known yet. Until it is said otherwise, the run counts as interrupted."""
    return dict.fromkeys(FIELDS) | {"version": VERSION, "status": "interrupted"}


def named(metrics: dict[str, float]) -> dict[str, Any]:
    """Metrics by the record's names; those that it has no name for go under `other_metrics`."""
    others = {name: value for name, value in metrics.items() if name not in FIELDS}
    known = {name: value for name, value in metrics.items() if name in FIELDS}
    return known | ({"other_metrics": others} if others else {})


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `record.json`; it is never seen half-written.

    Raises:
        KeyError: the record holds a name that `FIELDS` does not define.
    """
    if unknown := record.keys() - FIELDS.keys():
        raise KeyError(f"not in records.FIELDS: {', '.join(sorted(unknown))}")
    write_atomically(folder / FILE_NAME, as_json(record))


def as_json(record: dict[str, Any]) -> str:
    """The record as text; what is no number is null in it."""
    return json.dumps(_finite(record), indent=2, ensure_ascii=False, default=str) + "\n"


def read_record(folder: Path, to_write: bool = False) -> dict[str, Any]:
    """The record of a run folder; what an older one does not tell is null.

    Args:
        folder: of the run.
        to_write: the record is going to be written again, which one with other names than ours cannot.

    Raises:
        UserError: there is none, or it is not one.
    """
    path = folder / FILE_NAME
    record = read_json_file(path)
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise UserError(f"{path} is no run record of version {VERSION}.")
    if told := misfit({name: record[name] for name in FIELDS if name in record}, RECORD):
        raise UserError(f"{path} is no run record as it was written: {told}.")
    if to_write and (unknown := sorted(record.keys() - FIELDS.keys())):
        raise UserError(f"{path} holds {unknown[0]!r}, which no run record of this version does; mend or remove it.")
    return dict.fromkeys(FIELDS) | record | {"benchmarks": _evaluations(record.get("benchmarks"))}


def _evaluations(told: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Those of a record; what earlier versions did not write of them is empty or null."""
    return told and [
        {"seconds": None}
        | evaluation
        | {
            "skipped": evaluation.get("skipped") or {},
            "results": {
                name: {"items": None, "num_fewshot": None, "fingerprint": None}
                | result
                | {"standard_errors": result.get("standard_errors") or {}, "tasks": result.get("tasks") or []}
                for name, result in evaluation["results"].items()
            },
        }
        for evaluation in told
    ]


def in_folder(folder: Path, name: str) -> Path:
    """A file or folder that a record names, which lies within the run's own folder.

    Raises:
        UserError: it does not.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / FILE_NAME}: {name} is not within the run's folder.")
    return path


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON: null, as all that is not known."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Comparisons of made-up runs that have everything a table or a report can show; `test_approved` writes them as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from litpeft.analysis.comparison import Comparison, compare
from litpeft.runs.record import read_record, write_record
from tests.analysis.comparison.build import write_run
from tests.analysis.comparison.test_benchmarks import evaluation, result

MIB = 2**20
LR = "model.init_args.optimizer.init_args.lr"
RANK = "model.init_args.adapter.init_args.rank"
ACCURACIES = {
    "none": [0.900, 0.905, 0.902, 0.899, 0.904],
    "lora": [0.901, 0.904, 0.903, 0.899, 0.905],  # equivalent
    "dora": [0.930, 0.936, 0.931, 0.928, 0.934],  # better
    "qlora-nf4": [0.930, 0.880, 0.900, 0.870, 0.930],  # undecided
}
MEMORY = {"none": (90, 90, 180, 200), "lora": (92, 2, 4, 190), "dora": (95, 3, 6, 230), "qlora-nf4": (26, 2, 4, 150)}
SECONDS = {"none": 0.6, "lora": 0.4, "dora": 0.8, "qlora-nf4": 0.5}
WRONG = {"row": 3, "text": "a dull <film>", "label": "bad", "prediction": "good", "probability": 0.99}


def write_curves(folder: Path, seconds: float, seed: int, first: int = 0, start: float = 0.9) -> None:
    """Write the curves of a run of 40 steps, logged every tenth step."""
    lines: list[dict[str, Any]] = [] if first else [{"step": 0, "tokens": 0, "seconds": 0.0, "values": {}}]
    for step in (10, 20, 30, 40):
        values = {"train_loss": start - 0.01 * step + 0.02 * seed, "lr": 1e-3 * (1 - step / 50)}
        values |= {"train_tokens_per_second": 1000 / seconds + 7 * seed + step, "unknown_tag": 1.0}
        lines.append({"step": step, "tokens": 512 * step, "seconds": seconds * step, "values": values})
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def details(adapter: str, seed: int, accuracy: float | None) -> dict[str, Any]:
    """Return fields of a record with memory by phase, validations and times."""
    sizes, seconds = MEMORY[adapter], SECONDS[adapter] * (1 + seed * (1 + list(MEMORY).index(adapter)) % 5 / 50)
    split = dict(zip(("weights", "gradients", "optimizer_state", "activations"), sizes, strict=True))
    tensors = {name: size * MIB for name, size in split.items()}
    steps = (20, 40)
    validations = [
        {"step": step, "epochs": step / 40, "train_seconds": seconds * step, "val_loss": loss, "val_accuracy": shown}
        for step, loss, shown in zip(steps, (0.5, 0.47 if adapter == "none" else 0.498), (0.8, accuracy), strict=True)
    ]
    peak = sum(sizes) * MIB
    return {
        "steps": 40,
        "validations": validations if accuracy else None,
        "val_loss": 0.3 + sizes[0] / 300 + 0.004 * (seed * sizes[1] % 5),
        "train_loss": 0.25,
        "train_seconds": seconds * 40,
        "step_seconds_p50": seconds,
        "step_split_seconds_p50": {"data_wait": 0.01, "forward": seconds / 3, "backward": None, "optimizer": 0.02},
        "train_tokens_per_second": 1000 / seconds,
        "peak_tensor_bytes": peak,
        "peak_rss_bytes": peak + (600 + seed) * MIB,
        "memory_phases": {
            "load": {"peak_rss_bytes": 500 * MIB, "tensor_bytes": tensors | {"gradients": 0}},
            "first_step": {"peak_rss_bytes": (650 + seed) * MIB},
            "train": {"peak_rss_bytes": 700 * MIB, "peak_tensor_bytes": peak, "tensor_bytes": tensors},
        },
        "trainable_params": sizes[1] * MIB // 4,
        "total_params": 45 * MIB,
        "adapter_bytes": sizes[1] * MIB,
        "model_bytes": sizes[0] * MIB,
        "energy_joules": 100 * seconds,
        "started_at": "2026-01-02T03:04:05",
    }


def summary(**more: Any) -> dict[str, Any]:
    """Return a data summary."""
    tables = {split: {"fingerprint": f"{split}-1", "truncated_rows": 0} for split in ("train", "val")}
    found = {"rows": {"train": 1600, "val": 872, "test": 0}, "tables": tables}
    found |= {"classes": {"train": {f"c{n}": 1000 + n for n in range(14)}, "val": {"c0": "unknown"}}}
    found |= {"tokens_per_row": {"train": {"median": 26.5, "longest": 1024, "kind": "x"}}}
    found |= {"truncated_rows": {"train": 1005, "val": 0}, "val_cut_from_train": "cut from the training rows"}
    example = [{"text": "a" * 590 + "b", "has_loss": False}, {"text": 3}, {"text": "c" * 12, "has_loss": True}]
    return found | {"example": [*example, {"text": "not shown", "has_loss": True}]} | more


def write_methods(folder: Path) -> None:
    """Write four methods with five seeds, one run without memory, and two unfinished ones."""
    for adapter, values in ACCURACIES.items():
        for seed, accuracy in enumerate(values):
            rate = {"none": 1e-4}.get(adapter, 3e-3)
            fields = details(adapter, seed, accuracy) | {"data": "litpeft.data.SST2", "data_summary": summary()}
            if (adapter, seed) == ("dora", 1):
                fields |= {"others_bytes": 2 * 2**30, "git": {"commit": "a" * 40, "dirty": True}}
                fields["memory_phases"]["train"]["allocator_retries"] = 2
                fields["memory_phases"]["load"]["allocator_retries"] = 1
                fields["peak_tensor_bytes"], fields["image_grid"] = None, "grid.jpg"
                fields["data_summary"]["tables"]["train"]["truncated_rows"] = 1234
            if (adapter, seed) == ("dora", 2):
                fields |= {"others_bytes": 2**30, "image_grid": "missing.jpg", "packages": None, "git": None}
                fields |= {"machine": {"processor": "x", "cpu_count": 0}, "started_at": None}
            confusion = {"step": 40, "label_names": ["bad", "good"], "rows": [[5 + seed, 1], [2, 6]]}
            kept = {"correct": None, "loss": [0.1, 2.0], "wrong": wrong_rows(seed)} if adapter != "none" else None
            run = write_run(
                *(folder / adapter / f"seed{seed}", adapter, seed, accuracy),
                **{"options": {LR: rate}, "examples": kept, "confusion_matrix": "confusion_matrix.json"},
                **fields,
            )
            (run / "confusion_matrix.json").write_text(json.dumps(confusion))
            (run / "grid.jpg").write_bytes(b"picture")
            if seed < 2:
                write_curves(run, SECONDS[adapter], seed)
    for seed, status in ((7, "oom"), (8, "interrupted")):
        more = {"status": status, "error": "CUDA is out\nof memory." if status == "oom" else None}
        run = write_run(folder / "lora" / f"seed{seed}", "lora", seed, None, **details("lora", seed, None) | more)
        write_curves(run, 0.4, seed, start=1.0)


def wrong_rows(seed: int) -> list[dict[str, Any]]:
    """Return wrong predictions, one of which all seeds have."""
    more = [WRONG | {"row": 10 * seed + place, "probability": 0.5 + place / 20} for place in range(4, 6)]
    return [WRONG, *more, {"row": 1, "probability": 1}, {"row": 2, "probability": 0.999}]


PUBLISHED = {
    "source": "A paper.",
    "note": "2 epochs",
    "rows": [
        {"label": "LoRA of a <paper>", "val_accuracy": 0.875, "peak_tensor_bytes": 2e8, "train_loss": 0.5},
        {"label": "full of a paper", "val_accuracy": None, "peak_tensor_bytes": 3e8},
    ],
}


def methods(folder: Path) -> Comparison:
    """Compare four methods: one equivalent, one better, one undecided."""
    write_methods(folder)
    found = compare([folder], baseline="none", targets=[("val_accuracy", 0.9)])
    found.published = PUBLISHED
    return found


def relative(folder: Path) -> Comparison:
    """Compare costs relative to a baseline that is not the first group, preferring time."""
    write_methods(folder)
    return compare([folder], baseline="lora", relative=True, prefer="time", figures=SOME_FIGURES)


SOME_FIGURES = ["val_accuracy", "peak_tensor_bytes", "train_tokens_per_second", "train_seconds", "model_bytes"]


def write_sweep(folder: Path, trials: Sequence[Mapping[str, Any]], **content: Any) -> None:
    """Write a sweep's description."""
    whole = {"experiment": "sizes", "question": "Which rank is best?", "axes": ["rank"], "seeds": [0, 1, 2]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(whole | {"trials": list(trials)} | content))


def sweep(folder: Path) -> Comparison:
    """Compare the trials of a sweep that tuned the learning rate; some runs are left."""
    trials = []
    ranks = ((4, 1e-4, "lowest"), (8, 1e-3, None), (16, 1e-2, "highest"), (32, None, None), (64, 1e-4, "lowest"))
    for rank, best, edge in (*ranks, (128, 1e-3, None)):
        rates = {64: (1e-4, 1e-2), 128: (1e-3,)}.get(rank, (1e-4, 1e-3, 1e-2))
        means = {1e-4: 0.8 - rank / 1000, 1e-3: 0.85, 1e-2: None if rank == 8 else 0.82 + rank / 1000}
        tried = [{"values": {LR: rate}, "mean": means[rate], "runs": means[rate] and 2} for rate in rates]
        tuned = {"metric": "val_accuracy", "seeds": [7, 8], "tried": tried, "chosen": best and {LR: best}}
        tuned["edges"] = {LR: edge} if edge else {}
        if rank == 128:  # a second option whose values are lists
            both = {LR: best, "data.x": ["é", date(2026, 1, 2)]}
            tuned |= {"tried": [{"values": both, "mean": 0.5, "runs": 2}], "chosen": both}
        trials.append({"name": f"r{rank}", "label": f"rank={rank}", "axes": {"rank": str(rank)}, "tuned": tuned})
        for seed in range({4: 3, 8: 2, 16: 3, 32: 1}.get(rank, 0)):
            accuracy = 0.8 + rank / 500 + seed / 1000 * (1 if seed < 2 else -1)
            fields = details("lora", seed, accuracy) | {"data_summary": summary(classes={}, label_names=["x", "y"])}
            options = {RANK: rank, LR: best or 1e-3}
            write_run(folder / f"r{rank}" / f"seed{seed}", "lora", seed, accuracy, options=options, **fields)
    published = {"source": None, "note": None, "rows": [{"label": "none", "val_accuracy": "9.1e-1"}]}
    more = {"metric": "val_accuracy", "target": {"val_loss": 0.2}, "published": published, "baseline": "rank=8"}
    write_sweep(folder, trials, varies=["model.adapter.rank", "model.optimizer.lr"], **more)
    write_run(folder / "other" / "seed0", "lora", 0, 0.5)
    return compare([folder])


def tasks(folder: Path) -> Comparison:
    """Compare the average over two tasks, in one of which the groups also differ in the batch size."""
    for task, values in (("cola", (0.6, 0.58, 0.62)), ("mrpc", (0.85, 0.86, 0.84))):
        for place, adapter in enumerate(("none", "lora")):
            for seed, score in enumerate(values):
                options = {
                    "data.init_args.task": task,
                    "data.init_args.batch_size": 32 if task == "cola" else 16 + place,
                }
                metrics = {f"val_{task}": score - place * (0.02 + seed / 100)}
                tables = {split: {"fingerprint": f"{task}-{split}"} for split in ("train", "val")}
                known = details(adapter, seed, 0.9) | {"validations": None, "other_metrics": metrics}
                known |= {"main_metrics": list(metrics), "metric_directions": {task: "higher"}, "data": "litpeft.GLUE"}
                if task == "mrpc":  # as in old records: the score is the accuracy
                    known |= {"main_metrics": None, "val_accuracy": metrics["val_mrpc"], "other_metrics": None}
                known |= {"data_summary": {"rows": {"val": 100 * (1 + place)}, "tables": tables}}
                write_run(folder / f"{task}-{adapter}-{seed}", adapter, seed, None, options=options, **known)
    return compare([folder], average_over="data.task")


def rows(folder: Path) -> Comparison:
    """Compare one seed of each method over validation rows and benchmark items, on different machines."""
    for place, adapter in enumerate(("none", "lora", "dora")):
        correct = [int(row % (7 - 2 * place) > 0) for row in range(60)]
        losses = [0.1 + row / 100 + place * (0.2 if row % 3 else -0.1) for row in range(60)]
        scores = [float(row % (4 - place) > 0) for row in range(40)]
        done = result(sum(scores) / 40, "f", 40, scores={"acc": sum(scores) / 40, "loss": 1.0 + place})
        before = result(0.25, "f", 40)
        run = write_run(
            *(folder / adapter, adapter, place // 2, sum(correct) / 60),
            examples={"correct": correct, "loss": losses},
            benchmarks=[evaluation(0, mine=before), evaluation(100, mine=done)],
            machine={"processor": f"p{place // 2}", "cpu_count": 2, "threads": 1, "device": "cpu", "cuda": None},
            packages={"torch": f"2.1{place}.0"},
            git={"commit": f"{place}" * 40, "dirty": place > 0},
            data_summary={"rows": {"val": 60}, "tables": {"val": {"fingerprint": "val-1"}}},
            train_tokens_per_second=None,
            train_samples_per_second=100.0 + place,
        )
        items = {"mine": {"fingerprint": "f", "acc": scores}}
        (run / "benchmark_items").mkdir(exist_ok=True)
        (run / "benchmark_items" / "step-000100.json").write_text(json.dumps(items))
    return compare([folder], figures=["val_accuracy", "val_loss", "mine_acc", "mine_acc_change", "peak_rss_bytes"])


def images(folder: Path) -> Comparison:
    """Show one group of runs on a GPU, without curves and without a comparison."""
    for seed in (0, 1, None):
        fields = details("lora", seed or 0, 0.75) | {"train_tokens_per_second": None}
        fields |= {
            "train_samples_per_second": 50.0 + (seed or 2),
            "peak_reserved_bytes": 2**30,
            "peak_tensor_bytes": None,
        }
        evaluated = {"val_loss": 0.5, "val_accuracy": 0.75 + 0.01 * (seed or 0), "rows_per_second": 90.0}
        faster = {"val_loss": 0.5, "val_accuracy": 0.74, "rows_per_second": 120.0 + (seed or 0)}
        fields |= {"merged_evaluation": {"adapter": evaluated, "merged": faster}}
        fields["memory_phases"] = {
            phase: {"peak_allocated_bytes": size * MIB, "peak_reserved_bytes": 2 * size * MIB, "peak_rss_bytes": None}
            for phase, size in (("load", 100), ("validate", 300 + (seed or 0)), ("save", 50))
        }
        fields["validations"] = [
            {"step": 40, "train_seconds": 9.0, "val_loss": 0.5, "val_accuracy": 0.75, "val_x": 2.0}
        ]
        run = write_run(folder / f"{seed}", "lora", seed or 0, 0.75, **fields, data_summary={"rows": {"val": 8}})
        write_record(run, read_record(run) | {"seed": seed})
        if seed is not None:
            write_curves(run, 0.5, seed, first=1)
    return compare(folder)


def curves(folder: Path) -> Comparison:
    """Show curves of few and of many points, of one step, without spread, and of a run without a seed."""
    for seed in (0, 1):
        found = [evaluation(step, mine=result(0.2 + step / 100 + seed / 10)) for step in (0, 10, 20)]
        validations = [
            {"step": step, "val_loss": 0.5, "val_accuracy": 0.98 + seed / 50, "val_x_y": step / 10.0}
            for step in (10, 20)
        ]
        more = {
            "val_loss": 0.5,
            "steps": 20,
            "benchmarks": found,
            "validations": validations,
            "checkpoint": "checkpoints/step-000020",
        }
        run = write_run(folder / f"lora{seed}", "lora", seed, 0.98 + seed / 50, **more)
        lines = [
            {"step": step, "tokens": 0, "seconds": 0.0, "values": {"train_loss": 1.0 / step}} for step in range(1, 21)
        ]
        (run / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        run = write_run(
            folder / f"dora{seed}", "dora", seed, 0.9, validations=None, steps=20, data_summary={"rows": {}}
        )
        line = {"step": 5, "tokens": 0, "seconds": 0.0, "values": {"train_loss": 2.0 + seed, "lr": 0.5}}
        (run / "curves.jsonl").write_text(json.dumps(line) + "\n")
    validations = [{"step": step, "val_loss": None, "val_accuracy": 0.7} for step in (10, 20)]
    run = write_run(
        folder / "none", "none", 0, 0.7, validations=validations, val_loss=None, main_metrics=["val_accuracy"]
    )
    write_record(run, read_record(run) | {"seed": None})
    write_curves(run, 0.5, 0)
    return compare(folder, figures=["val_accuracy", "peak_tensor_bytes"])


CASES: dict[str, Callable[[Path], Comparison]] = {
    "methods": methods,
    "relative": relative,
    "sweep": sweep,
    "tasks": tasks,
    "rows": rows,
    "images": images,
    "curves": curves,
}

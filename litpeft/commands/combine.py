"""`litpeft combine`: combine the LoRA adapters of several runs into one, with the functions of PEFT."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError, first_sentence
from litpeft.runs.atomic_write import whole_folder
from litpeft.runs.record import new_record, read_record, write_record

if TYPE_CHECKING:
    from litpeft.cli.finished_run import FinishedRun

DESCRIPTION = """combine the LoRA adapters of several runs into one, with PEFT's add_weighted_adapter

OUT is the folder of an adapter for PEFT and for model.adapter.init_from, and a run folder for evaluate, predict, test
and export. The runs need the same base and the same targets; with linear, ties and dare_ties also the same rank.
"""
# PEFT's names -> what they do
KINDS = {
    "linear": "the weighted mean of the A and of the B, not of their products",
    "cat": "the weighted sum of the updates, exactly; the rank is the sum of the ranks",
    "svd": "the best approximation of the weighted sum with the largest of the ranks",
    "ties": "TIES: prunes small values and resolves signs (https://arxiv.org/abs/2306.01708)",
    "dare_ties": "DARE: drops random values, then TIES (https://arxiv.org/abs/2311.03099)",
}
PRUNING = ("ties", "dare_ties")
SAME = ("model_name", "task", "data_summary", "precision", "base", "tf32", "seed", "new_tensors", "head_labels")


def main(arguments: list[str]) -> int:
    parser = CommandParser("combine", description=DESCRIPTION)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of at least two finished runs", metavar="run_dir")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--weights", help="comma-separated, one per run, such as 0.7,0.3 (default: 1/n each)")
    kinds = "\n".join(f"{name}: {text}" for name, text in KINDS.items())
    parser.add_argument("--how", choices=[*KINDS], default="cat", help=f"(default: cat)\n{kinds}")
    parser.add_argument("--density", type=float, help="share of values that ties and dare_ties keep (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of dare_ties (default: 0)")
    options = parser.parse_args(arguments)
    _check(options)
    for run_dir in options.runs:
        read_record(run_dir)  # report a folder without a run before torch is imported
    try:
        with whole_folder(options.out, checksums=False) as folder:
            result = _combine(options, folder)
    except OSError as error:
        raise UserError(f"{options.out}: {error.strerror or error}.") from error
    print(f"{options.out}: {result}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Fill in the defaults, and raise a UserError for options that do not fit together."""
    options.out = Path(os.path.abspath(options.out))
    count = len(options.runs)
    if count < 2:
        raise UserError("litpeft combine: give at least two runs and the folder OUT.")
    if options.out.exists():
        raise UserError(f"{options.out} exists already; give another folder.")
    try:
        options.weights = [float(w) for w in options.weights.split(",")] if options.weights else [1 / count] * count
    except ValueError:
        raise UserError(f"--weights must be numbers such as 0.7,0.3, got {options.weights}.") from None
    if not all(map(math.isfinite, options.weights)):
        raise UserError(f"--weights must be finite numbers, got {', '.join(map(str, options.weights))}.")
    if len(options.weights) != count:
        raise UserError(f"--weights has {len(options.weights)} numbers for {count} runs; give one per run.")
    if options.density is not None and options.how not in PRUNING:
        raise UserError(f"--density applies to --how {' and '.join(PRUNING)}; leave it out with {options.how}.")
    options.density = 0.5 if options.density is None and options.how in PRUNING else options.density
    if options.density is not None and not 0 < options.density <= 1:
        raise UserError(f"--density must be above 0 and at most 1, got {options.density}.")


def _combine(options: argparse.Namespace, folder: Path) -> str:
    """Write the combined adapter into an empty folder and return a description of it."""
    import torch  # slow imports, only now: mistakes in the options were reported before

    from litpeft.cli.console import quieten
    from litpeft.cli.finished_run import FinishedRun
    from litpeft.commands.export_check import check_adapter
    from litpeft.hub.hub import local_or_hub

    quieten()
    first = FinishedRun(options.runs[0], None, "cpu", "combined")
    base = local_or_hub(first.model.model_name, "model.model_name")
    base = str(Path(base).resolve()) if os.path.isdir(base) else base
    with tempfile.TemporaryDirectory() as scratch:
        folders = []
        for number, run_dir in enumerate(options.runs):
            run = first if number == 0 else FinishedRun(run_dir, None, "cpu", "combined")
            _check_run(run, first)
            model = run.build(torch.device("cpu"), like=None if run is first else first)
            _check_trained(run, model)
            folders.append(Path(scratch) / str(number))
            folders[-1].mkdir()
            run.model.adapter.export(folders[-1], model, base)
        kind, dtype = type(model), first.model.compute_dtype
        first.model.backbone = None  # frees the memory for PEFT's model
        del model
        rank = _with_peft(kind.from_pretrained(base, dtype=dtype), folders, options, folder)
    _write_run(folder, first, rank, options)
    made = FinishedRun(folder, None, "cpu", "checked")
    made.build(torch.device("cpu"))
    checked = check_adapter(folder, made, base)
    return f"{options.how} of {len(options.runs)} adapters, rank {rank}; {checked}"


def _check_run(run: FinishedRun, first: FinishedRun) -> None:
    """Raise a UserError if PEFT cannot combine the adapter of this run with that of the first."""
    from litpeft.adapters import LoRA

    adapter, like = run.model.adapter, first.model.adapter
    if not isinstance(adapter, LoRA) or adapter.magnitude:
        raise UserError(f"{run.run_dir} is a {adapter.name} run; PEFT combines LoRA and QLoRA adapters.")
    if adapter.rslora:  # PEFT's config of the result has alpha = rank, which is a scale of sqrt(rank) here
        raise UserError(f"{run.run_dir}: PEFT gives combined rsLoRA adapters another scale; train without rslora.")
    for option in ("targets", "exclude", "layers", "bias"):
        if getattr(adapter, option) != getattr(like, option):
            raise UserError(
                f"{run.run_dir} has model.adapter.{option} {getattr(adapter, option)}, but {first.run_dir} has "
                f"{getattr(like, option)}; combine runs with the same layers."
            )
    if run._loaded["origin"]["base"] != first._loaded["origin"]["base"]:
        raise UserError(f"{run.run_dir} and {first.run_dir} have different base weights; combine runs of one base.")


def _check_trained(run: FinishedRun, model: Any) -> None:
    added = run.model.adapter.added(model)
    if others := [name for name in run.state if name not in added]:
        raise UserError(f"{run.run_dir} trains {others[0]} in full, which PEFT does not combine.")


def _with_peft(model: Any, folders: list[Path], options: argparse.Namespace, out: Path) -> int:
    """Combine adapter folders with PEFT into the folder `out`, and return the rank of the result."""
    import torch
    from peft import PeftModel

    names = [f"run{number}" for number in range(len(folders))]
    try:
        wrapper = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            wrapper.load_adapter(str(folder), adapter_name=name)
        torch.manual_seed(options.seed)
        wrapper.add_weighted_adapter(names, options.weights, "combined", options.how, density=options.density)
        with tempfile.TemporaryDirectory() as scratch:
            wrapper.save_pretrained(scratch, selected_adapters=["combined"])
            for file in Path(scratch, "combined").iterdir():
                (out / file.name).write_bytes(file.read_bytes())
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"PEFT cannot combine these adapters with --how {options.how}: {first_sentence(error)}."
        ) from error
    return json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["r"]


def _write_run(folder: Path, first: FinishedRun, rank: int, options: argparse.Namespace) -> None:
    """Write config.yaml, record.json and a checkpoint, with which the folder is a run."""
    import torch
    import yaml

    from litpeft.adapters.peft_format import load_adapter
    from litpeft.callbacks import FolderCheckpointIO
    from litpeft.runs.folder import CONFIG, saved_config
    from litpeft.tasks.checkpoint_origin import origin

    changed = {"rank": rank, "alpha": rank, "rank_pattern": None, "alpha_pattern": None, "init_from": None}
    config = saved_config(options.runs[0])
    config["model"]["init_args"]["adapter"].setdefault("init_args", {}).update(changed)
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    task = first.model
    task.adapter = adapter = copy.deepcopy(task.adapter)
    for name, value in changed.items():
        setattr(adapter, name, {} if name.endswith("pattern") else value)
    task.build(first.datamodule, torch.device("cpu"))
    load_adapter(folder, task.backbone, adapter)
    checkpoint = {
        key: value for key, value in first._loaded.items() if key not in ("optimizer_states", "lr_schedulers")
    }
    checkpoint |= {"state_dict": task.state_dict(), "origin": origin(task.fingerprint, adapter, task.base)}
    place = Path("checkpoints") / first.checkpoint.name
    FolderCheckpointIO().save_checkpoint(checkpoint, folder / place)
    counts = adapter.describe(task.backbone)
    sizes = {name: counts.pop(name) for name in ("trainable_params", "total_params", "adapter_bytes", "model_bytes")}
    facts = {"runs": [str(run) for run in options.runs], "weights": options.weights, "how": options.how}
    facts |= {"density": options.density, "seed": options.seed if options.how == "dare_ties" else None}
    record = new_record() | {name: first.record[name] for name in (*SAME, "data", "packages", "machine", "git")}
    record |= sizes | {"adapter": adapter.name, "adapter_options": adapter.settings(), "config": config}
    record |= {"adapter_summary": counts | {"combined": facts}, "status": "ok", "checkpoint": str(place)}
    write_record(folder, record | {"selection": "last", "run_name": options.out.name, "experiment": "combined"})

"""`litpeft export`: write a finished run as a PEFT adapter or as a merged transformers model."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from safetensors import SafetensorError

from litpeft.commands.gguf_file import convert, find_converter
from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError
from litpeft.hub.upload import check_repository, upload
from litpeft.runs.atomic_write import whole_folder
from litpeft.runs.strategy_names import shown_name

MARK = "litpeft_export.json"  # says which run was exported; a folder without this file is never replaced


def main(arguments: list[str]) -> int:
    parser = CommandParser("export", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--format",
        choices=["adapter", "merged", "gguf"],
        required=True,
        help="adapter: the trained tensors in PEFT's format; merged: a full model that needs neither litpeft nor PEFT; "
        "gguf: a merged model in a file for llama.cpp, written by its converter",
    )
    parser.add_argument(
        "--base",
        choices=["dequantised", "original"],
        help="weights that an adapter of a quantised base is merged into: the dequantised weights that it was trained "
        "on (default), or the original weights, which the adapter has never seen",
    )
    parser.add_argument(
        "--dtype",
        choices=["bf16", "fp16", "fp32"],
        help="dtype of merged weights (default: the dtype of the run, fp32 for full fine-tuning)",
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="checkpoint folder (default: the checkpoint that the record names)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in OUT")
    parser.add_argument(
        "--push", metavar="USER/NAME", help="then upload to this repository of the hub, with your token (hf auth login)"
    )
    parser.add_argument("--public", action="store_true", help="with --push: make a new repository public, not private")
    parser.add_argument("--license", help="licence in the model card, such as apache-2.0")
    options = parser.parse_args(arguments)
    if options.push:
        check_repository(options.push)
    elif options.public:
        raise UserError("--public applies to --push; leave it out.")
    options.converter = find_converter() if options.format == "gguf" else None
    options.out = Path(os.path.abspath(options.out))
    if options.format == "adapter" and (options.base or options.dtype):
        raise UserError("--base and --dtype apply to merged models; leave them out with --format adapter.")
    if options.out.exists() and not (options.overwrite and (options.out / MARK).is_file()):
        reason = (
            "holds no earlier export" if options.overwrite else "exists already; give --overwrite or another folder"
        )
        raise UserError(f"{options.out} {reason}.")
    from rich.console import Console  # slow imports, only now: mistakes in the options were reported before

    try:
        terminal = Console(stderr=True, force_jupyter=False)
        telling = terminal.status("loading the model, writing the export and checking it")
        with telling, whole_folder(options.out, checksums=False) as folder:
            result = _export(options, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{getattr(error, 'filename', None) or options.out}: {reason}.") from error
    print(f"{options.out}: {result}")
    if options.push:
        print(f"uploaded: {upload(options.out, options.push, options.public, MARK)}")
    return 0


def _export(options: argparse.Namespace, folder: Path) -> str:
    """Write the export into an empty folder and return a description of it."""
    import torch

    from litpeft.adapters.quantised_model import quantised_layers
    from litpeft.cli.console import quieten
    from litpeft.cli.finished_run import FinishedRun
    from litpeft.commands.export_check import check_adapter, check_merged, example_inputs, logits
    from litpeft.commands.model_card import at_checkpoint, write_model_card
    from litpeft.hub.hub import local_or_hub
    from litpeft.tasks.compute_dtype import DTYPES
    from litpeft.tasks.sequence_task import SequenceTask

    quieten()
    run = FinishedRun(options.run_dir, options.checkpoint, "cpu", "exported")
    task, data, adapter = run.model, run.datamodule, run.model.adapter
    if options.base and not adapter.quantises:
        raise UserError(
            f"--base applies to runs that quantise the base, and {options.run_dir} is a {shown_name(adapter.name)} "
            "run; leave it out."
        )
    record = at_checkpoint(run.record, run.checkpoint.name)
    origin = {"run_dir": str(options.run_dir), "checkpoint": str(run.checkpoint), "format": options.format}
    model = run.build(torch.device("cpu"))
    settings = task.exported_settings(data) if isinstance(task, SequenceTask) else {}
    (folder / MARK).write_text(json.dumps(origin | settings, indent=2) + "\n", encoding="utf-8")
    data.tokenizer_to_export().save_pretrained(folder)
    base = local_or_hub(task.model_name, "model.model_name")
    base = str(Path(base).resolve()) if os.path.isdir(base) else base
    if options.format == "adapter":
        write_model_card(folder, record, base, settings, options.format, options.license)
        adapter.export(folder, model, base)
        size = sum(tensor.nbytes for tensor in run.state.values())
        return f"PEFT adapter, {len(run.state)} tensors, {size:,} bytes; {check_adapter(folder, run, base)}"
    inputs = example_inputs(run, model)
    trained = logits(model, inputs, task)
    quantises_inputs = any(layer.kind == "int8" for layer in quantised_layers(model))
    if options.base == "original":
        adapter.disable_quantisation("merged into the original base")
        model = run.build(torch.device("cpu"))
    dtype = DTYPES[options.dtype or ("fp32" if adapter.trains_base else task.dtype_name)]
    if dtype == torch.float32:  # convert before merging, so that the sum is not rounded
        for layer in quantised_layers(model):
            layer.dtype = dtype
        model.float()
    adapter.merge(model)
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False  # the adapter changed one of the two tied weights
    if ends := getattr(data, "stops", ([], []))[0]:  # answers end as in training, wherever the model is loaded
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    about = ""
    if isinstance(task, SequenceTask):
        trained, about = task.outputs_in_own_unit(model, dtype, trained)
        settings = task.exported_settings(data)
        model.config.update(settings)
    write_model_card(folder, record, base, settings, options.format, options.license)
    model.to(dtype).save_pretrained(folder)
    same_base = options.base != "original"
    checked = check_merged(folder, type(model), trained, inputs, same_base, quantises_inputs)
    if options.converter:
        name = next(name for name, each in DTYPES.items() if each == dtype)
        checked = convert(options.converter, folder, folder / f"{options.out.name}.gguf", name) + f", from {checked}"
        for path in folder.iterdir():
            if path.suffix not in (".gguf", ".md") and path.name != MARK:
                path.unlink()
    return f"{checked}; {about}" if about else checked

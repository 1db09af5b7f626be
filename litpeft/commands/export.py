"""`litpeft export`: a finished run as a PEFT adapter, or as a plain transformers model with the adapter folded in."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from litpeft.tasks import FineTuner

MARK = "litpeft_export.json"  # where an export comes from; a folder without it is not ours to replace


def main(arguments: list[str]) -> int:
    parser = CommandParser("export", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="folder to write, which must not exist")
    parser.add_argument(
        "--format",
        choices=["adapter", "merged"],
        required=True,
        help="adapter: what was trained, as PEFT reads it; merged: a whole model that needs neither litpeft nor PEFT",
    )
    parser.add_argument(
        "--base",
        choices=["dequantised", "original"],
        help="what a four-bit run is merged into: the weights that it was trained on, made whole again (the default), "
        "or those of the file, which the adapter has never seen",
    )
    parser.add_argument(
        "--dtype",
        choices=["bf16", "fp32"],
        help="of merged weights; by default the run's, fp32 of Full",
    )
    parser.add_argument("--checkpoint", type=Path, help="other than the one that the run stands for")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in that folder")
    options = parser.parse_args(arguments)
    options.out = Path(os.path.abspath(options.out))
    if options.format == "adapter" and (options.base or options.dtype):
        raise UserError("--base and --dtype say how to merge; leave them out with --format adapter.")
    if options.out.exists() and not (options.overwrite and (options.out / MARK).is_file()):
        way = "holds no earlier export" if options.overwrite else "exists already; give --overwrite or another folder"
        raise UserError(f"{options.out} {way}.")
    with _whole_or_not_at_all(options.out) as folder:
        told = _export(options, folder)
    print(f"{options.out}: {told}")
    return 0


@contextmanager
def _whole_or_not_at_all(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all is in it and on the disk."""
    scratch, old = (out.with_name(f".{out.name}.{kind}{os.getpid()}") for kind in ("", "old"))
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for file in scratch.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        if out.exists():
            out.rename(old)
        try:
            scratch.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{getattr(error, 'filename', None) or out}: {reason}.") from error
    finally:
        for left in (scratch, old):
            shutil.rmtree(left, ignore_errors=True)


def _export(options: argparse.Namespace, folder: Path) -> str:
    """Write into `folder`, which is empty; what was written, in a few words."""
    import torch  # with all that follows from it, seconds: not before it is needed

    from litpeft.adapters import LoRA
    from litpeft.adapters.peft_format import write_adapter
    from litpeft.adapters.qlora import four_bit_layers
    from litpeft.cli.console import quieten
    from litpeft.cli.finished_run import FinishedRun
    from litpeft.hub.hub import local_or_hub
    from litpeft.tasks.base import DTYPES

    quieten()
    run = FinishedRun(options.run_dir, options.checkpoint, "cpu", "exported")
    task, data, adapter = run.model, run.datamodule, run.model.adapter
    if options.base and not hasattr(adapter, "in_full_precision"):
        raise UserError(f"--base is for four-bit runs, and {options.run_dir} is one of {adapter.name}.")
    if options.format == "adapter" and not isinstance(adapter, LoRA):
        raise UserError(f"PEFT has no adapter like {adapter.name}; give --format merged.")
    origin = {"run_dir": str(options.run_dir), "checkpoint": str(run.checkpoint), "format": options.format}
    (folder / MARK).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    model = run.build(torch.device("cpu"))
    if options.format == "adapter":
        base = local_or_hub(task.model_name, "model.model_name")
        write_adapter(folder, model, adapter, str(Path(base).resolve()) if os.path.isdir(base) else base)
        return f"PEFT adapter, {len(run.state)} tensors, {sum(t.nbytes for t in run.state.values()):,} bytes"
    trained = _logits(model, task)
    if options.base == "original":
        adapter.in_full_precision("merged into the original base")
        model = run.build(torch.device("cpu"))
    dtype = DTYPES[options.dtype or ("fp32" if adapter.trains_base else task.dtype_name)]
    if dtype == torch.float32:  # before merging: what is added must not be rounded first
        for layer in four_bit_layers(model):
            layer.dtype = dtype
        model.float()
    adapter.merge(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and embedding is not None and head.weight is not embedding.weight:
        model.config.tie_word_embeddings = False  # an adapter of one of the two has parted them
    model.to(dtype).save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    difference, largest = (_logits(again) - trained).abs().max().item(), trained.abs().max().item()
    if options.base != "original" and not difference < 0.5 * largest:
        raise UserError(f"merged, the model is another (logits differ by {difference:.2e}): nothing is written.")
    return (
        f"{type(model).__name__} in {str(again.dtype).removeprefix('torch.')}; largest difference of its logits to "
        f"those of the trained model {difference:.2e}, with logits up to {largest:.2f}"
    )


def _logits(model: PreTrainedModel, task: FineTuner | None = None) -> Tensor:
    """What a model says of four rows of sixteen tokens drawn at random, the last of them ending the text."""
    import torch

    config = model.config
    ids = torch.randint(config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
    special = [token for token in (config.pad_token_id, config.eos_token_id) if isinstance(token, int)]
    for token in special:
        ids[ids == token] = next(other for other in range(config.vocab_size) if other not in special)
    if isinstance(config.eos_token_id, int):
        ids[:, -1] = config.eos_token_id
    decoder = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
    with torch.inference_mode(), task.computing() if task else nullcontext():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder).logits.float()

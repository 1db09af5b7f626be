"""Check an export: load the written folder with PEFT or transformers and compare its logits with the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from litpeft.adapters.lora import LoRA
from litpeft.adapters.new_tokens import embedding_rows
from litpeft.adapters.peft_format import load_adapter
from litpeft.adapters.quantised_model import quantised_layers
from litpeft.cli.finished_run import FinishedRun
from litpeft.errors import UserError, first_sentence
from litpeft.tasks import FineTuner, ImageClassification

ROWS = 4  # rows of the comparison
FP32_PARAMETERS = 2 * 10**9  # larger models are compared in the dtype of the run, to save memory
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # largest difference, as a share of the largest logit
MERGED_ROUNDING = {torch.float32: 0.05, torch.bfloat16: 0.2}  # of a merged model, beside a run that computes in bf16


@dataclass
class Inputs:
    """Rows to compare logits on.

    Attributes:
        tensors: arguments of the model's forward.
        source: where the rows are from, for the message.
    """

    tensors: Mapping[str, Tensor]
    source: str


def example_inputs(run: FinishedRun, model: PreTrainedModel) -> Inputs:
    """Return validation rows of the run, or random token ids if its data cannot be read here."""
    try:
        run.datamodule.prepare_data()
        run.datamodule.setup("validate")
        batch = next(iter(run.datamodule.val_dataloader()))
    except (UserError, OSError):
        batch = {}
    if batch and "position_ids" not in batch:  # packed rows need an attention mask of their own
        names = getattr(run.model, "input_names", ("input_ids", "attention_mask"))
        tensors = {name: batch[name][:ROWS] for name in names if name in batch}
        source = f"{len(next(iter(tensors.values())))} validation rows"
    elif isinstance(run.model, ImageClassification):
        images = run.model.example(ROWS, 1)["pixel_values"]
        images.normal_(generator=torch.Generator().manual_seed(0))
        tensors, source = {"pixel_values": images}, "random images"
    else:
        ids = _random_ids(model.config)
        tensors, source = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "random token ids"
    if getattr(model.config, "is_encoder_decoder", False):
        tensors["decoder_input_ids"] = tensors["input_ids"]
    return Inputs(tensors, source)


def logits(model: nn.Module, inputs: Inputs, task: FineTuner | None = None) -> Tensor:
    """Return the fp32 logits of a model, in the compute dtype of `task` if given; padded positions are left out."""
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.tensors.items()}  # images
    with torch.inference_mode(), task.autocast() if task else nullcontext():
        out = model.eval()(**tensors).logits.float()
    mask, width = inputs.tensors.get("attention_mask"), next(iter(inputs.tensors.values())).shape[1]
    if out.dim() == 3 and out.shape[1] > width:
        out = out[:, -width:]  # PEFT returns the logits of virtual tokens too
    return out[mask.bool()] if mask is not None and out.dim() == 3 and out.shape[:2] == mask.shape else out


def check_adapter(folder: Path, run: FinishedRun, base: str) -> str:
    """Load an exported adapter with PEFT and compare its logits with those of the trained adapter.

    Both adapters are on the same unquantised base. Without PEFT, the tensors in the folder are read back and compared.

    Args:
        folder: the exported folder.
        run: the run.
        base: hub id or folder of the base.

    Returns:
        The result as a phrase.

    Raises:
        UserError: PEFT cannot load the folder, or computes other logits.
    """
    task, adapter = run.model, run.model.adapter
    try:
        import peft
    except ImportError:
        _check_tensors(folder, task.backbone, adapter, run.state)
        return "PEFT is not installed, so the tensors were read back and compared, and no logits"
    in_run_dtype = task.backbone  # already built for the export
    if adapter.quantises:
        adapter.disable_quantisation("compared with PEFT on the unquantised base")
        try:
            in_run_dtype = run.build(torch.device("cpu"))
        except UserError as error:  # the constants of some methods of PEFT are computed from the weights of the base
            raise UserError(
                f"PEFT would compute other constants of {adapter.name} from the unquantised base; give --format merged."
            ) from error
    inputs = example_inputs(run, in_run_dtype)
    rounded = logits(in_run_dtype, inputs, task)
    dtype = task.compute_dtype
    count = sum(parameter.numel() for parameter in in_run_dtype.parameters())
    on_disk = bool(quantised_layers(in_run_dtype))  # the files are quantised, with constants in their own dtype
    if dtype != torch.float32 and count <= FP32_PARAMETERS and not on_disk:
        model, dtype = _in_fp32(run, in_run_dtype)
    else:
        model = in_run_dtype
    ours, kind, config = logits(model, inputs, task), type(model), model.config
    rows, old_rows = embedding_rows(model), getattr(model, "first_new_token", None)
    del model, in_run_dtype
    task.backbone = None  # frees the memory for PEFT's model
    if on_disk:
        config.quantization_config = AutoConfig.from_pretrained(base).quantization_config
    try:
        if old_rows is not None:
            config.get_text_config().vocab_size = old_rows
        # a head with another number of labels is in the adapter
        model = kind.from_pretrained(base, config=config, dtype=dtype, ignore_mismatched_sizes=True)
        if old_rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
        loaded = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # PEFT raises errors of many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"PEFT cannot load the adapter ({reason[:300]}); give --format merged.") from error
    difference = (logits(loaded, inputs) - ours).abs().max().item()
    rounding = ROUNDING[torch.bfloat16 if on_disk else dtype]  # kernels of packages compute in bf16
    if not difference <= rounding * max(ours.abs().max().item(), 0.1):
        raise UserError(
            f"PEFT computes other logits than the trained adapter (difference {difference:.2e} on {inputs.source}); "
            "give --format merged."
        )
    rounding = (rounded - ours).abs().max().item()
    beside = f" ({run.record['precision']} rounding of this model: {rounding:.1e})" if rounding else ""
    return f"PEFT's logits differ by at most {difference:.1e} on {inputs.source}{beside}: rounding"


def _in_fp32(run: FinishedRun, model: nn.Module) -> tuple[nn.Module, torch.dtype]:
    """Return the trained model in fp32 and its dtype; the model in the dtype of the run if fp32 changes its adapter.

    Some methods of PEFT compute constants from the base weights, and these depend on the dtype.
    """
    name, dtype, run.model.dtype_name = run.model.dtype_name, run.model.compute_dtype, "fp32"
    try:
        return run.build(torch.device("cpu")), torch.float32
    except UserError:
        run.model.dtype_name = name
        return model, dtype


def check_merged(
    folder: Path,
    kind: type[PreTrainedModel],
    trained: Tensor,
    inputs: Inputs,
    same_base: bool,
    quantises_inputs: bool = False,
) -> str:
    """Load a merged model with transformers and compare its logits with those of the trained model.

    Args:
        folder: the exported folder.
        kind: class of the model.
        trained: logits of the trained model.
        inputs: rows that the logits are of.
        same_base: the model was merged into the base that it was trained on.
        quantises_inputs: the trained model quantises the inputs of its layers (int8), and the merged model does not.

    Returns:
        The result as a phrase.

    Raises:
        UserError: the folder has tensors that the model lacks, or lacks tensors of the model (the adapter was not
            merged); transformers cannot run the model in this dtype; or the logits differ by more than rounding, on
            the same base.
    """
    reloaded, report = kind.from_pretrained(folder, output_loading_info=True)
    if wrong := sorted([*report["unexpected_keys"], *report["missing_keys"]]):
        raise UserError(
            f"{wrong[0]} belongs to the adapter and not to {kind.__name__}, so the adapter cannot be merged; "
            "give the adapter class a `merge` method."
        )
    try:
        found = logits(reloaded, inputs)
    except RuntimeError as error:  # DeBERTa v1 mixes dtypes in bf16
        raise UserError(
            f"transformers cannot run {kind.__name__} in {str(reloaded.dtype).removeprefix('torch.')} "
            f"({first_sentence(error)}); give --dtype fp32."
        ) from error
    difference, largest = (found - trained).abs().max().item(), trained.abs().max().item()
    rounding = MERGED_ROUNDING[torch.bfloat16 if quantises_inputs else reloaded.dtype]
    if same_base and not difference <= rounding * max(largest, 0.1):
        raise UserError(
            f"the logits of the merged model differ by {difference:.2e} from the trained model; nothing is written."
        )
    return (
        f"{kind.__name__} in {str(reloaded.dtype).removeprefix('torch.')}; its logits differ from the trained "
        f"model's by at most {difference:.2e}; the largest logit is {largest:.2f} ({inputs.source})"
    )


def _check_tensors(folder: Path, model: nn.Module, adapter: LoRA, state: Mapping[str, Tensor]) -> None:
    """Read an exported adapter into the model and compare every trained tensor with the checkpoint."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in state}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    load_adapter(folder, model, adapter)
    if changed := [name for name, parameter in parameters.items() if not torch.equal(parameter, state[name])]:
        raise UserError(f"the exported {changed[0]} differs from the checkpoint; give --format merged.")


def _random_ids(config: object) -> Tensor:
    """Return random token ids, (4, 16); the last token of each row ends the text, no other token is special."""
    size = config.get_text_config().vocab_size
    ids = torch.randint(size, (ROWS, 16), generator=torch.Generator().manual_seed(0))
    pad, end = (getattr(config.get_text_config(), name, None) for name in ("pad_token_id", "eos_token_id"))
    special = [token for token in (pad, end) if isinstance(token, int)]
    for token in special:
        ids[ids == token] = next(other for other in range(size) if other not in special)
    if isinstance(end, int):
        ids[:, -1] = end
    return ids

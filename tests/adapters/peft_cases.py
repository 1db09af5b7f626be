"""Tiny runs of PEFT's methods: their options for tiny models, their command lines, and PEFT's own model of a run."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from litpeft.__main__ import main
from litpeft.adapters.peft_options import PROMPTS, REFUSED
from litpeft.commands.export_check import Inputs
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests.conftest import GOOD, REST
from tests.watching import watching

# options that fit layers of 32 x 32 and 32 x 64, where a method's defaults do not
TINY: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1},
    "ADAMSS": {"r": 8, "num_subspaces": 2, "subspace_rank": 1},
    "ADAPTION_PROMPT": {"adapter_len": 4},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 50},
    "GRALORA": {"r": 8},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 8, "r": 0},
    "OSF": {"effective_rank": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"r": 8},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [7, 15, 20]},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"vector_length": 4, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 50},
}
# (method, kind of model) -> the sentence that says why the combination is refused
NOT_HERE = {
    ("ADAPTION_PROMPT", "bert"): "Unsupported model type for adaption prompt",
}
# (method, kind of model) -> the sentence that says why there is no merged export; "any" kind of model
NOT_MERGED = {
    ("ADAPTION_PROMPT", "any"): "PEFT cannot merge ADAPTION_PROMPT",
    ("BEFT", "llama"): "PEFT cannot merge BEFT into LlamaForCausalLM (Base layer has no bias",
    ("LILY", "any"): "PEFT cannot merge LILY",
    **{(method, "any"): "virtual tokens" for method in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")},
}
NOT_EXPORTED = {("TRAINABLE_TOKENS", "bert"): "PEFT stores no trained"}  # as an adapter
METHODS = sorted(kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING if kind.value not in REFUSED)


class Case:
    """One method on one tiny model.

    Args:
        method: PEFT's name of the method.
        kind: `bert` (a classifier) or `llama` (a language model).
        model: folder of the model.
        folder: an empty folder for files and runs.
        dtype: `fp32` or `bf16`.
        options: options instead of those in `TINY`.
    """

    def __init__(
        self, method: str, kind: str, model: str, folder: Path, dtype: str = "fp32", options: dict | None = None
    ) -> None:
        self.method, self.kind, self.base, self.folder = method, kind, model, folder
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(0)
        if kind == "bert":
            data = folder / "rows.tsv"
            rows = [f"{' '.join(draw.choices([*REST, *GOOD], k=draw.randint(2, 12)))}\t{i % 2}" for i in range(24)]
            data.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
            task = ["SequenceClassification", "--data", "SST2"]
        else:
            data = folder / "rows.json"
            rows = [
                {"instruction": " ".join(draw.choices(REST, k=draw.randint(1, 5))), "input": "", "output": word}
                for word in GOOD * 5
            ]
            data.write_text(json.dumps(rows))
            task = ["CausalLM", "--data", "Alpaca"]
        given = TINY.get(method, {}) if options is None else options
        self.arguments = [
            *("--model", *task, "--data.train_file", str(data), "--data.val_file", str(data)),
            *("--data.batch_size", "6", "--data.max_length", "64", "--model.model_name", model),
            *("--model.dtype", dtype, "--model.adapter", "Peft", "--model.adapter.method", method),
            *(f"--model.adapter.options.{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in given.items()),
            *("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"),
            *("--trainer.max_steps", "4", "--trainer.accelerator", "cpu"),
        ]

    def fit(self, name: str, *more: str, stop: int | None = None) -> str:
        """Train in the run folder `name`; check that nothing frozen changes; return the error, "" if there is none."""
        watch = ["--trainer.callbacks+", "tests.watching.Watch", "--trainer.enable_progress_bar", "false"]
        with watching(stop_step=stop):
            return run("fit", *self.arguments, *watch, *more, "--run_dir", str(self.folder / name))[1]

    def record(self, name: str = "run") -> dict[str, Any]:
        return read_record(self.folder / name)

    def export(self, form: str) -> tuple[str, str]:
        """Export the run; return the output and the error."""
        return run("export", str(self.folder / "run"), str(self.folder / form), "--format", form)

    def plain(self) -> nn.Module:
        """Return the base model of plain transformers in fp32, with a head of two labels for a classifier."""
        torch.manual_seed(5)  # another head than that of the run
        if self.kind == "bert":
            return AutoModelForSequenceClassification.from_pretrained(self.base, num_labels=2)
        return AutoModelForCausalLM.from_pretrained(self.base)

    def loaded(self) -> nn.Module:
        """Return PEFT's model of the exported adapter."""
        return peft.PeftModel.from_pretrained(self.plain(), str(self.folder / "adapter"))

    def in_training(self, trained: dict[str, Tensor]) -> nn.Module:
        """Return PEFT's model with the trained tensors, ready to train; PEFT loads no prompt for training."""
        folder = str(self.folder / "adapter")
        if self.method not in PROMPTS:
            return peft.PeftModel.from_pretrained(self.plain(), folder, is_trainable=True)
        config = peft.PeftConfig.from_pretrained(folder)
        config.inference_mode = False
        model = peft.get_peft_model(self.plain(), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    ours = name.removeprefix("base_model.").replace(".modules_to_save.default", "")
                    parameter.copy_(trained[ours])
        return model

    def weights(self, name: str = "run") -> dict[str, Tensor]:
        """Return the tensors of the newest checkpoint."""
        return load_file(next(newest_checkpoint(self.folder / name).glob("*.safetensors")))


def run(*arguments: str) -> tuple[str, str]:
    """Run a command; return its output and its error ("" if it succeeded)."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(list(arguments))
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("litpeft: error: ")]
    return out.getvalue(), "".join(lines) or ("" if code in (0, 130) else errors.getvalue()[-2000:])


def inputs() -> Inputs:
    """Return two rows of the tiny tokenizer, the second with padding on the right."""
    ids = torch.tensor([[2, 5, 9, 15, 7, 3], [2, 8, 20, 3, 0, 0]])
    return Inputs({"input_ids": ids, "attention_mask": (ids != 0).long()}, "two rows")

"""What errors call an option: as it is typed on the command line, or as the argument of a constructor."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from litpeft import (
    GLUE,
    SST2,
    CausalLM,
    Conversations,
    DoRA,
    ImageFolder,
    LoRA,
    Peft,
    QLoRA,
    SequenceClassification,
    SequenceMultiLabel,
    SequenceRegression,
    Text,
    TextClassification,
    UserError,
)
from litpeft.adapters.bases import FourBit
from litpeft.errors import naming_options


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LoRA(rank=0), "rank must be at least 1, got 0."),
        (lambda: DoRA(dropout=1.5), "dropout must be at least 0 and below 1, got 1.5."),
        (lambda: SST2(batch_size=0), "batch_size must be at least 1, got 0."),
        (lambda: Peft("nothing"), "method"),
        (lambda: QLoRA(rank=2).put_on(QLoRA(rank=2)._base), "base nf4: QLoRA quantises the base itself"),
        (lambda: SequenceClassification("x", label_smoothing=2), "label_smoothing must be at least 0"),
        (lambda: LoRA(targets="nothing").apply(nn.Sequential(nn.Linear(2, 2))), "targets 'nothing' matches no layer"),
        (lambda: LoRA(rank=99, targets="all-linear").apply(nn.Sequential(nn.Linear(2, 2))), "rank 99 is larger"),
    ],
)
def test_constructors_speak_of_arguments(make: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(sentence)
    assert "--" not in str(caught.value)
    assert "model." not in str(caught.value)


FILE = {"train_file": "no.csv"}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LoRA(init="pissa"), "init must be one of kaiming, gaussian, normal, got 'pissa'."),
        (lambda: DoRA(bias="lora"), "bias must be one of none, all, lora_only, got 'lora'."),
        (lambda: LoRA(dtype=torch.bfloat16), "dtype must be one of bf16, fp32, got torch.bfloat16."),
        (lambda: Peft("IA3", dtype="fp16"), "dtype must be one of bf16, fp32, got 'fp16'."),
        (lambda: QLoRA(quant_type="int4"), "quant_type must be one of nf4, fp4, got 'int4'."),
        (lambda: QLoRA(on_unavailable="warn"), "on_unavailable must be"),
        (lambda: QLoRA(bias=True), "bias must be"),
        (lambda: FourBit(compute_dtype="fp16"), "compute_dtype must be one of bf16, fp32, got 'fp16'."),
        (lambda: CausalLM("x", dtype="bfloat16"), "dtype must be one of bf16, fp16, fp32, got 'bfloat16'."),
        (lambda: CausalLM("x", gradient_checkpointing=True), "gradient_checkpointing must be"),
        (lambda: CausalLM("x", kernels="off"), "kernels must be one of auto, liger, native, none, got 'off'."),
        (lambda: SequenceClassification("x", class_weights="auto"), "class_weights must be one of balanced"),
        (lambda: SequenceMultiLabel("x", positive_weights="auto"), "positive_weights must be one of balanced"),
        (lambda: SequenceRegression("x", loss="mae"), "loss must be one of mse, l1, got 'mae'."),
        (lambda: Conversations(train_on="answers", **FILE), "train_on must be one of assistant, last, all"),
        (lambda: Conversations(long_rows="truncate", **FILE), "long_rows must be one of cut, drop"),
        (lambda: Text(documents="lines", **FILE), "documents must be one of file, paragraph, line, got 'lines'."),
        (lambda: TextClassification(val_cut="stratify", **FILE), "val_cut must be one of stratified, random"),
        (lambda: TextClassification(on_bad_row="ignore", **FILE), "on_bad_row must be one of error, skip"),
        (lambda: ImageFolder(val_cut="x", **FILE), "val_cut must be one of stratified, random"),
        (lambda: GLUE("rt"), "task must be one of cola, sst2"),
    ],
)
def test_an_argument_with_choices_takes_no_other_value(make: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(sentence)


def test_choices_beside_values_of_other_types_are_taken() -> None:
    assert SequenceClassification("x", class_weights=[1.0, 2.0]).class_weights == [1.0, 2.0]
    assert SequenceClassification("x", class_weights=None).class_weights is None
    assert QLoRA(compute_dtype=None, bias="all").bias == "all"


def test_the_command_line_speaks_of_options() -> None:
    with naming_options(), pytest.raises(UserError, match="^model.adapter.rank must be at least 1, got 0.$"):
        LoRA(rank=0)
    with pytest.raises(UserError, match="^rank must"):
        LoRA(rank=0)
    done = subprocess.run([sys.executable, "-m", "litpeft", "compare"], capture_output=True, text=True)
    assert "litpeft compare --help" in done.stderr


def test_a_notebook_shows_the_sentence_and_no_traceback() -> None:
    error = UserError("give --model.dtype fp32; see docs/python.md and data.csv.")
    assert error._render_traceback_() == ["UserError: give dtype fp32; see docs/python.md and data.csv."]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

"""What errors call an option: as it is typed on the command line, or as the argument of a constructor."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
from torch import nn

from litpeft import SST2, DoRA, LoRA, Peft, QLoRA, SequenceClassification, UserError
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

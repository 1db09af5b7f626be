"""What is printed before and after training: layers left out, labels of a head, a random model, no last validation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from litpeft.__main__ import main
from litpeft.callbacks.run_description import print_notices, tell_if_not_validated
from litpeft.runs.record import new_record

OUTSIDE = {"params": 20, "bytes": 40, "dtype": "bfloat16", "example": "vision.patch.weight"}
EXPERTS = OUTSIDE | {"params": 850, "example": "layers.0.experts.up_proj"}


def printed(capsys: pytest.CaptureFixture[str], first: bool = True, **fields: Any) -> list[str]:
    record = new_record() | {
        "data_summary": {"rows": {}, "tables": {}}, "adapter_summary": {}, "adapter_options": {}, "total_params": 1000, "trainable_params": 5,
    } | fields  # fmt: skip
    print_notices(SimpleNamespace(is_global_zero=first), record)
    return capsys.readouterr().err.splitlines()


def test_weights_that_an_adapter_leaves_out_are_named_from_two_percent(capsys: pytest.CaptureFixture[str]) -> None:
    line = "litpeft: {} ({}, ...): {} of the parameters; not adapted, in bfloat16{}."
    outside = line.format("outside the text part", "vision.patch.weight", "2%", "")
    for params, expected in ((20, [outside]), (19, [])):
        left_out = {"not_adapted": {"outside the text part": OUTSIDE | {"params": params}}}
        assert printed(capsys, adapter_summary=left_out) == expected
    left_out = {"not_adapted": {"experts": EXPERTS, "outside the text part": OUTSIDE}}
    advice = "; to adapt them, add mlp to model.adapter.targets"
    experts = line.format("experts", "layers.0.experts.up_proj", "85%", advice)
    assert printed(capsys, adapter_summary=left_out) == [experts, outside]
    by_peft = printed(capsys, adapter_summary=left_out, adapter_options={"method": "IA3"})
    assert by_peft == [experts.replace(advice, ""), outside]
    assert printed(capsys, first=False, adapter_summary=left_out) == []
    assert printed(capsys, adapter_summary=None) == []


@pytest.mark.parametrize(
    ("matched_by", "expected"),
    [
        (
            "name",
            "litpeft: the head's rows were reordered to the labels of the data, by name: NEG as bad, POS as good.",
        ),
        (
            "number",
            "litpeft: warning: the head has other label names than the data; its rows are kept in their order: NEG as "
            "bad, POS as good.",
        ),
    ],
)
def test_how_the_labels_of_a_head_match_is_said(
    matched_by: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    match = {"matched_by": matched_by, "names": {"bad": "NEG", "good": "POS"}}
    assert printed(capsys, head_labels=match) == [expected]
    assert printed(capsys, head_labels=None) == []


@pytest.mark.parametrize(
    ("trained", "new", "said"),
    [(0, ["head.weight", "head.bias", "pooler.weight"], True), (1, ["head.weight"], False), (0, [], False)],
)
def test_a_model_with_a_random_head_that_is_not_trained_says_nothing(
    trained: int, new: list[str], said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = (
        "litpeft: warning: head.weight and 2 other tensors are new and random, and nothing is trained: the figures say "
        "nothing about the model."
    )
    assert printed(capsys, trainable_params=trained, new_tensors=new) == ([expected] if said else [])


@pytest.mark.parametrize(
    ("validated", "step", "figures"),
    [([4, 8], 8, None), ([4, 8], 9, "those of step 8"), ([], 9, "unknown"), (None, 9, "unknown"), ([0], 0, None)],
)
def test_last_weights_that_were_not_validated_are_named(
    validated: list[int] | None, step: int, figures: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"validations": validated and [{"step": each} for each in validated]}
    trainer = SimpleNamespace(is_global_zero=True, enable_validation=True, global_step=step)
    tell_if_not_validated(trainer, record)
    expected = (
        f"litpeft: warning: the weights at the end (step {step}) were not validated; the validation figures are "
        f"{figures}: give a smaller trainer.val_check_interval or trainer.check_val_every_n_epoch."
    )
    assert capsys.readouterr().err.splitlines() == ([expected] if figures else [])
    for silent in ({"is_global_zero": False}, {"enable_validation": False}):
        tell_if_not_validated(SimpleNamespace(**vars(trainer) | silent), record)
    assert not capsys.readouterr().err


def test_a_run_says_that_its_last_weights_were_not_validated(
    tiny_model: str, sentences: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epochs of eight steps: validated after each third step of an epoch, or after each epoch."""
    words = ["fit", "--config", "lora", "--model", "SequenceClassification", "--model.model_name", tiny_model]
    words += ["--model.dtype", "fp32", "--data", "SST2", "--data.train_file", sentences["train"], "--data.val_file"]
    words += [sentences["val"], "--data.train_samples", "32", "--data.batch_size", "4", "--trainer.max_epochs", "1"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--run_dir"]
    said = []
    for number, more in enumerate([("--trainer.val_check_interval", "3"), ()]):
        assert main([*words, str(tmp_path / str(number)), *more]) == 0
        said.append([line for line in capsys.readouterr().err.splitlines() if "were not validated" in line])
    assert [len(lines) for lines in said] == [1, 0]
    assert "(step 8)" in said[0][0]
    assert "those of step 6:" in said[0][0]

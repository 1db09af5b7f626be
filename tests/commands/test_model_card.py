"""The model card of an export has the figures of the weights that were exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.commands.model_card import at_checkpoint, write_model_card
from litpeft.runs.record import new_record, read_record

LATE = {"val_loss": 0.25, "val_accuracy": 0.9375, "test_accuracy": 0.875, "train_loss": 0.125}
EARLY = {"val_loss": 0.5, "val_accuracy": 0.75, "val_kappa": 0.5}
RECORD = new_record() | LATE | {
    **{"status": "ok", "adapter": "lora", "task": "SequenceClassification", "model_name": "me/base", "data": "SST2"},
    **{"checkpoint": "checkpoints/step-000008", "steps": 8, "other_metrics": {"val_kappa": 0.875}},
    "validations": [{"step": 4, "epochs": 1.0, "train_seconds": 3.0, **EARLY}, {"step": 8, "val_loss": 0.25}],
    "benchmarks": [
        {"step": step, "seconds": 1.0, "skipped": {}, "results": {"task": {"scores": {"acc": acc}, "standard_errors": {}}}}
        for step, acc in ((4, 0.375), (8, 0.625))
    ],
}  # fmt: skip


def results(card: str) -> dict[str, float]:
    """Return the values in the metadata of a card, by split and name of the metric."""
    metadata = yaml.safe_load(card.split("---")[1])
    (index,) = metadata.get("model-index") or [{"results": []}]
    return {
        f"{each['dataset'].get('split', 'benchmark')} {metric['type']}": metric["value"]
        for each in index["results"]
        for metric in each["metrics"]
    }


OF_LAST = {"validation loss": 0.25, "validation accuracy": 0.9375, "validation kappa": 0.875, "test accuracy": 0.875}
OF_FIRST = {"validation loss": 0.5, "validation accuracy": 0.75, "validation kappa": 0.5}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step-000008", OF_LAST | {"benchmark acc": 0.625}),
        ("step-000004", OF_FIRST | {"benchmark acc": 0.375}),
        ("step-000006", {}),  # neither validated nor evaluated
    ],
)
def test_the_card_of_another_checkpoint_has_its_own_figures_or_none(
    name: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    write_model_card(tmp_path, at_checkpoint(RECORD, name), "me/base", {}, "adapter", None)
    card = (tmp_path / "README.md").read_text()
    assert results(card) == expected
    assert ("| training loss | 0.1250 |" in card) == (name == "step-000008")
    assert ("| steps | 4 in 3.0 s |" in card) == (name == "step-000004")


def test_an_export_of_an_earlier_checkpoint_does_not_claim_the_figures_of_the_last_one(
    tmp_path: Path, fit_arguments: list[str]
) -> None:
    run_dir = tmp_path / "run"
    options = ["--model.adapter", "LoRA", "--trainer.max_epochs", "2", "--checkpoint.keep", "all"]
    assert main([*fit_arguments, *options, "--run_dir", str(run_dir)]) == 0
    record = read_record(run_dir)
    for number, row in enumerate(record["validations"]):
        checkpoint, out = run_dir / "checkpoints" / f"step-{row['step']:06d}", tmp_path / f"{number}"
        words = ["export", str(run_dir), str(out), "--format", "adapter", "--checkpoint", str(checkpoint)]
        assert main(words) == 0
        assert results((out / "README.md").read_text())["validation loss"] == row["val_loss"]
    assert record["validations"][0]["val_loss"] != record["validations"][1]["val_loss"]

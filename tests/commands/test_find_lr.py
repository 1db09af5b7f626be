"""The learning-rate range test: its schedule, its summary, and the command."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from litpeft.__main__ import main
from litpeft.commands.find_lr import SMOOTHING, RateRange, _summary


def test_learning_rates_rise_by_a_constant_factor_and_losses_are_smoothed() -> None:
    rates, seen = [1e-3 * 2**step for step in range(6)], []
    groups = [{"params": [torch.zeros(1)], "lr": 0.5}, {"params": [torch.zeros(1)], "lr": 8.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    finder = RateRange(rates)
    trainer = SimpleNamespace(global_step=0, callback_metrics={}, should_stop=False)
    raw = [3.0, 2.0, 1.5, 1.0, 4.0, 4.0]
    for step, loss in enumerate(raw):
        for half in (loss - 0.5, loss + 0.5):  # two accumulated batches
            trainer.callback_metrics["train_loss"] = torch.tensor(half)
            if half > loss:
                finder.on_before_optimizer_step(trainer, None, optimizer)
                seen.append([group["lr"] for group in optimizer.param_groups])
                trainer.global_step = step + 1
            finder.on_train_batch_end(trainer, None)
    assert seen == [pytest.approx([rate, 16 * rate]) for rate in rates]
    weights = [[SMOOTHING ** (step - i) for i in range(step + 1)] for step in range(6)]
    means = [sum(w * x for w, x in zip(row, raw, strict=False)) / sum(row) for row in weights]
    assert finder.losses == pytest.approx(means)
    assert trainer.should_stop


def test_the_summary_of_a_curve() -> None:
    rates = [10.0 ** (step / 4 - 4) for step in range(24)]
    losses = [2 - 1 / (1 + 2.0 ** (10 - step)) for step in range(18)] + [1.2, 1.8, 2.6]
    suggested, lowest, diverged = _summary(rates, losses)
    assert rates[8] <= float(suggested) <= rates[10]  # a sigmoid is steepest in its middle
    assert float(lowest) == pytest.approx(rates[17], rel=0.05)
    assert float(diverged) == pytest.approx(rates[20], rel=0.05)
    assert _summary(rates, [1 + step / 10 for step in range(24)])[::2] == ["none: the loss never fell", "not reached"]


def test_each_adapter_starts_from_the_same_weights_and_the_curve_is_written(
    tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*fit_arguments[1:], "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-3"]
    options += ["--steps", "40", "--lowest", "1e-5", "--highest", "10", "--compare", "lora,none,lora"]
    assert main(["find_lr", *options, "--output", "curve.csv"]) == 0
    out = capsys.readouterr().out
    assert [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")] == ["lora", "full", "lora"]
    with open("curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {name: [row for row in rows if row["adapter"] == name] for name in ("lora", "none")}
    half = len(curves["lora"]) // 2
    assert curves["lora"][:half] == curves["lora"][half:]  # the second search does not continue the first one
    ratios = [float(b["lr"]) / float(a["lr"]) for a, b in zip(curves["none"], curves["none"][1:], strict=False)]
    assert ratios == pytest.approx([1e6 ** (1 / 39)] * len(ratios))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.csv"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "3"], "--steps must be at least 10"),
        (["--lowest", "1", "--highest", "0.1"], "--lowest above 0 and below --highest"),
        (["--trainer.accelerator", "abacus"], "trainer.accelerator: You selected an invalid accelerator name"),
        (["--compare", "lola"], "--compare: no adapter is named 'lola'"),
        (["--output", "no/such/folder.csv", "--steps", "10"], "--output no/such/folder.csv: No such file or directory"),
    ],
)
def test_mistakes_are_one_sentence(
    fit_arguments: list[str], options: list[str], sentence: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["find_lr", *fit_arguments[1:], *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_loss_that_is_not_finite_in_the_first_step_is_one_sentence(
    fit_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = list(fit_arguments[1:])
    place = words.index("--model.model_name") + 1
    model = AutoModel.from_pretrained(words[place])
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(words[place]).save_pretrained(tmp_path / "model")
    words[place] = str(tmp_path / "model")
    assert main(["find_lr", *words, "--model.adapter", "LoRA", "--steps", "10"]) == 2
    error = capsys.readouterr().err
    assert "find_lr: the training loss of lora is NaN or infinite in the first step" in error

"""The mean training loss of an epoch: weighted by rows or tokens, over a resume, and the first bad batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from litpeft.adapters import LoRA
from litpeft.data import SST2, Alpaca
from litpeft.errors import UserError
from litpeft.tasks import CausalLM, SequenceClassification
from litpeft.tasks.losses import TrainLoss, mean_over_ranks, non_finite_loss
from tests.conftest import QUIET

BATCHES = st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(1, 999)), min_size=1, max_size=9)


def added(batches: list[tuple[float, int]], losses: TrainLoss | None = None, start: int = 0) -> TrainLoss:
    losses = losses or TrainLoss()
    for number, (loss, weight) in enumerate(batches, start):
        losses.update(torch.tensor(loss), weight, number)
    return losses


@settings(max_examples=20, deadline=None, derandomize=True)
@given(batches=BATCHES, cut=st.integers(0, 9))
def test_the_mean_is_that_of_all_tokens_also_over_a_resume(batches: list[tuple[float, int]], cut: int) -> None:
    expected = sum(loss * weight for loss, weight in batches) / sum(weight for _, weight in batches)
    whole = added(batches)
    assert float(whole.mean()) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    resumed = TrainLoss()
    resumed.load_state_dict(added(batches[:cut]).state_dict())
    assert torch.equal(added(batches[cut:], resumed, cut).mean(), whole.mean())
    whole.reset()  # the next epoch
    assert float(added(batches[:1], whole).mean()) == pytest.approx(batches[0][0], rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_the_first_bad_batch_is_reported_and_kept_over_epochs_and_resumes(start: int, bad: float) -> None:
    losses = added([(1.0, 4), (2.0, 4)][:start])
    assert losses.first_non_finite() is None
    added([(bad, 4), (0.5, 4), (math.nan, 4)], losses, start)
    losses.reset()
    resumed = TrainLoss()
    resumed.load_state_dict(losses.state_dict())
    for each in (losses, resumed):
        batch, loss = each.first_non_finite()
        assert batch == start
        assert loss == bad or math.isnan(loss) == math.isnan(bad)


def test_the_message_names_step_and_batch_with_accumulation() -> None:
    losses = TrainLoss()
    losses.update(torch.tensor(math.inf), 1, 17)  # the eighth batch of the second epoch of ten
    trainer = SimpleNamespace(
        num_training_batches=10, accumulate_grad_batches=3, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.5}])]
    )
    message = str(non_finite_loss(losses, trainer))
    assert message.startswith("the training loss is inf at step 6 (batch 7 of epoch 1, learning rate 0.5);")
    assert "fp16" not in message
    assert "fp16 ends at 65,504" in str(non_finite_loss(losses, trainer, fp16=True))


def test_the_message_names_the_batch_of_the_run_where_a_dataloader_has_no_length() -> None:
    """Lightning then has an infinite number of batches per epoch, so no step and no epoch can be computed."""

    class Rows(IterableDataset):
        def __iter__(self) -> Iterator[torch.Tensor]:
            yield from torch.ones(5, 1)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.losses = torch.nn.Linear(1, 1), TrainLoss()

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            number = self.trainer.fit_loop.total_batch_idx
            loss = self.layer(batch).sum() * (math.nan if number == 7 else 1.0)
            self.losses.update(loss, 1, number)
            return loss

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            if self.losses.first_non_finite() is not None:
                raise non_finite_loss(self.losses, self.trainer)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.5)

    with pytest.raises(UserError, match=r"^the training loss is nan in batch 7 of the run \(learning rate 0\.5\); try"):
        L.Trainer(**QUIET, max_epochs=3).fit(Module(), DataLoader(Rows(), batch_size=1))


def test_one_process_has_its_own_mean() -> None:
    loss = torch.tensor(0.25)
    assert mean_over_ranks(loss, 7) == (loss, 7)


@pytest.mark.parametrize("kind", [SequenceClassification, CausalLM])
def test_a_task_trains_again_after_a_run_that_failed_in_the_middle_of_a_step(
    kind: type, tiny_model: str, tiny_llama: str, sentences: dict[str, str], tmp_path: Path
) -> None:
    """In a notebook, a task is given to a second Trainer: it trains as a new one does."""

    class Task(kind):
        fails = False

        def on_train_start(self) -> None:
            super().on_train_start()
            torch.manual_seed(1)  # the first of two runs has drawn initial values

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.fails and batch_idx == 1:
                self.train_loss.update(torch.tensor(float("nan")), 1, 1)
                raise RuntimeError("stopped")

    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"instruction": "the film", "output": "was fine"}\n' * 8)
    if kind is CausalLM:
        data = Alpaca(tokenizer=tiny_llama, train_file=str(answers), val_file=str(answers), batch_size=4)
    else:
        data = SST2(tokenizer=tiny_model, train_file=sentences["train"], val_file=sentences["val"], batch_size=4)

    def trained(task: Any) -> dict[str, torch.Tensor]:
        L.seed_everything(0, verbose=False)
        data.seed = 0
        L.Trainer(**QUIET, max_steps=1, accumulate_grad_batches=2).fit(task, datamodule=data)
        assert task.trainer.callback_metrics["train_loss_epoch"].isfinite()
        return {name: p.detach().clone() for name, p in task.backbone.named_parameters() if p.requires_grad}

    tasks = []
    for _ in range(2):
        L.seed_everything(0, verbose=False)
        sgd = partial(torch.optim.SGD, lr=1.0)
        tasks.append(Task(tiny_llama if kind is CausalLM else tiny_model, LoRA(rank=2), dtype="fp32", optimizer=sgd))
    tasks[1].fails = True
    with pytest.raises(RuntimeError, match="stopped"):
        trained(tasks[1])
    tasks[1].fails = False
    for one, two in zip(*(trained(task).values() for task in tasks), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-9)  # a task adds in another order from its second step

"""Learning-rate schedules step by step, and the settings that reach the optimizer."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, OneCycleLR, SequentialLR
from transformers.optimization import Adafactor

from litpeft.errors import UserError
from litpeft.optim import Constant, WarmupCosine, WarmupInverseSqrt, WarmupLinear, build_optimizer, build_scheduler
from litpeft.optim.build import fast_forward, optimizer_settings


def optimizer(lr: float = 1.0) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(2, 2))], lr=lr)


def rates(scheduler, steps: int) -> list[float]:
    """Return the learning rate of each optimizer step."""
    out = []
    for _ in range(steps):
        out.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return out


def test_warm_up_starts_above_zero_and_cosine_falls() -> None:
    seen = rates(WarmupCosine(optimizer(), warmup=0.25, total_steps=16), 16)
    rise = [1 / 5, 2 / 5, 3 / 5, 4 / 5]
    fall = [(1 + math.cos(math.pi * k / 12)) / 2 for k in range(12)]
    assert seen == pytest.approx(rise + fall)
    assert min(seen) > 0


def test_linear_falls_to_its_floor() -> None:
    seen = rates(WarmupLinear(optimizer(2.0), warmup=2, floor=0.1, total_steps=10), 12)
    assert seen[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert seen[2:10] == pytest.approx([2 * (0.1 + 0.9 * (1 - k / 8)) for k in range(8)])
    assert seen[10:] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("options", [{"warmup": -1}, {"floor": 1.5}, {"total_steps": None}])
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(UserError, match="model.scheduler WarmupCosine"):
        WarmupCosine(optimizer(), **{"total_steps": 10} | options)


@pytest.mark.parametrize(
    ("factory", "total"),
    [
        (WarmupCosine, 30),
        (partial(WarmupCosine, total_steps=None), 30),
        (partial(WarmupCosine, total_steps=12), 12),
        (partial(WarmupCosine, warmup=2), 30),  # as users of Python write it
        (partial(WarmupCosine, floor=0.1, total_steps=12), 12),
        (lambda optimizer, total_steps: WarmupCosine(optimizer, 0.5, total_steps=total_steps), 30),
        (partial(OneCycleLR, max_lr=0.1, total_steps=None), 30),
        (partial(OneCycleLR, max_lr=0.1), 30),
        (lambda optimizer: WarmupCosine(optimizer, warmup=0.1), 30),
        (lambda optimizer: WarmupCosine(optimizer, warmup=0.1, total_steps=12), 12),
        (partial(OneCycleLR, max_lr=0.1, epochs=5, steps_per_epoch=7), 35),
        (partial(OneCycleLR, max_lr=0.1, epochs=5, steps_per_epoch=7, total_steps=None), 35),  # of the command line
        (partial(CosineAnnealingLR, T_max=7), None),
    ],
)
def test_total_steps_is_set_if_it_is_not_given(factory, total: int | None) -> None:
    scheduler = build_scheduler(factory, optimizer(), 30)
    assert scheduler["interval"] == "step"
    assert getattr(scheduler["scheduler"], "total_steps", None) == total


def test_a_schedule_that_would_end_in_the_middle_of_the_run_is_refused_before_it() -> None:
    for lengths in ({"epochs": 3, "steps_per_epoch": 7, "total_steps": None}, {"total_steps": 29}):
        with pytest.raises(
            UserError, match=r"^model\.scheduler OneCycleLR ends after 2[19] steps, and the run has 30; "
        ):
            build_scheduler(partial(OneCycleLR, max_lr=0.1, **lengths), optimizer(), 30)
    made = build_scheduler(partial(OneCycleLR, max_lr=0.1, total_steps=30), optimizer(), 30)["scheduler"]
    assert len(rates(made, 30)) == 30


def test_schedules_inside_a_schedule_of_a_lambda_end_with_the_run() -> None:
    def two_parts(optimizer: SGD) -> SequentialLR:
        parts = [ConstantLR(optimizer, 0.5, total_iters=5), WarmupLinear(optimizer, warmup=0)]
        return SequentialLR(optimizer, parts, milestones=[5])

    found = rates(build_scheduler(two_parts, optimizer(), 20)["scheduler"], 10)
    assert found == pytest.approx([0.5] * 5 + [1 - step / 20 for step in range(5)])
    with pytest.raises(UserError, match="the run has no end"):
        build_scheduler(two_parts, optimizer(), None)
    with pytest.raises(UserError, match="the run has no end"):  # the length of an earlier run is not kept
        WarmupLinear(optimizer())


def test_lr_scale_multiplies_the_learning_rate_through_the_schedule() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr_scale": 16.0}]
    made = build_optimizer(partial(AdamW, lr=1e-3), groups, default_lr=1.0)
    schedule = build_scheduler(WarmupCosine, made, 10)["scheduler"]
    for _ in range(10):
        low, high = (group["lr"] for group in made.param_groups)
        assert high == pytest.approx(16 * low)
        made.step()
        schedule.step()


def test_the_default_is_adamw_at_the_adapters_learning_rate() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    made = build_optimizer(None, [{"params": [parameter]}], default_lr=3e-4)
    (settings,) = optimizer_settings(made)
    assert isinstance(made, AdamW)
    assert (settings["lr"], settings["weight_decay"], settings["params"]) == (3e-4, 0.01, 4)


def test_an_optimizer_error_is_one_sentence() -> None:
    with pytest.raises(UserError, match="model.optimizer cannot be created: Invalid learning rate: -1"):
        build_optimizer(partial(AdamW, lr=-1), [{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1.0)


def test_constant_stays_constant_after_warm_up() -> None:
    assert rates(Constant(optimizer(2.0), total_steps=4), 6) == [2.0] * 6
    assert rates(Constant(optimizer(2.0), warmup=1, total_steps=4), 3) == [1.0, 2.0, 2.0]


def test_inverse_sqrt_equals_its_formula() -> None:
    seen = rates(WarmupInverseSqrt(optimizer(), warmup=4, floor=0.5, total_steps=30), 30)
    assert seen[:4] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5])
    assert seen[4:17] == pytest.approx([math.sqrt(4 / step) for step in range(4, 17)])
    assert seen[17:] == [0.5] * 13
    assert rates(WarmupInverseSqrt(optimizer(), warmup=0, total_steps=9), 4) == pytest.approx(
        [1 / math.sqrt(step) for step in range(1, 5)]
    )


def test_t_max_of_minus_one_is_the_length_of_the_run() -> None:
    made = build_scheduler(partial(CosineAnnealingLR, T_max=-1), optimizer(), 30)["scheduler"]
    assert made.T_max == 30
    assert build_scheduler(partial(CosineAnnealingLR, T_max=7), optimizer(), 30)["scheduler"].T_max == 7


def test_a_schedule_that_gives_all_groups_one_rate_is_refused_where_they_differ() -> None:
    """It would undo LoRA+ without a word."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in (0.1, 1.6)]
    with pytest.raises(UserError, match="sets one learning rate for all parameters"):
        build_scheduler(
            lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=10),
            torch.optim.SGD(groups, lr=0.1),
            10,
        )


@pytest.mark.parametrize("scale", [1.5, 2.0])
def test_an_optimizer_that_chooses_its_own_rate_has_no_scaled_groups(scale: float) -> None:
    def groups(scale: float) -> list[dict]:
        return [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "lr_scale": scale}]

    factory = partial(Adafactor, lr=None, relative_step=True)
    assert build_optimizer(factory, groups(1.0), default_lr=1e-3).param_groups[0]["lr"] is None
    with pytest.raises(
        UserError, match="chooses its own learning rate, so model.adapter.lora_plus_ratio cannot scale it"
    ):
        build_optimizer(factory, groups(scale), default_lr=1e-3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([Constant, WarmupLinear, WarmupCosine, WarmupInverseSqrt]), total=st.integers(1, 30),
    warmup=st.sampled_from([0, 0.06, 0.25, 0.5, 1, 1.9, 3, 12, 40]), floor=st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip
def test_every_schedule_is_its_formula_in_each_step(kind: type, total: int, warmup: float, floor: float) -> None:
    warm = round(warmup * total) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        if kind is WarmupInverseSqrt:
            return max(floor, math.sqrt(max(1, warm) / (max(1, warm) + step - warm)))
        share = min(1.0, (step - warm) / max(1, total - warm))
        falls = {Constant: 1.0, WarmupLinear: 1 - share, WarmupCosine: (1 + math.cos(math.pi * share)) / 2}[kind]
        lowest = 1.0 if kind is Constant else floor
        return lowest + (1 - lowest) * falls

    options = {} if kind is Constant else {"floor": floor}
    schedule = kind(optimizer(2.0), warmup=warmup, total_steps=total, **options)
    assert rates(schedule, 36) == pytest.approx([2 * factor(step) for step in range(36)])


@pytest.mark.parametrize(
    ("kind", "warmup", "floor"), [(Constant, 0.0, 1.0), (WarmupLinear, 0.06, 0.0), (WarmupCosine, 0.06, 0.0)]
)
def test_what_a_schedule_has_if_nothing_is_said(kind: type, warmup: float, floor: float) -> None:
    schedule = kind(optimizer(), total_steps=100)
    assert (schedule.warmup_steps, schedule.floor) == (round(warmup * 100), floor)
    assert not {"warmup_steps", "floor", "total_steps"} & schedule.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"warmup": -0.1}, "warmup must not be negative and floor must be in [0, 1], got warmup -0.1, floor 0.0."),
        ({"floor": 1.1}, "warmup must not be negative and floor must be in [0, 1], got warmup 0.06, floor 1.1."),
        ({"floor": -0.1}, "warmup must not be negative and floor must be in [0, 1], got warmup 0.06, floor -0.1."),
        ({"total_steps": None}, "the run has no end; give model.scheduler.total_steps, or trainer.max_epochs."),
        ({"floor": 1, "warmup": 0}, None), ({"floor": 0}, None),
    ],
)  # fmt: skip
def test_a_schedule_out_of_range_is_refused_in_one_sentence(options: dict, sentence: str | None) -> None:
    if sentence is None:
        WarmupLinear(optimizer(), **{"total_steps": 10} | options)
        return
    with pytest.raises(UserError) as error:
        WarmupLinear(optimizer(), **{"total_steps": 10} | options)
    assert str(error.value) == f"model.scheduler WarmupLinear: {sentence}"


@pytest.mark.parametrize(
    ("mode", "monitor", "metric"),
    [
        ("min", ("val_f1", "max"), "val_loss"), ("max", ("val_f1", "max"), "val_f1"),
        ("max", ("val_rmse", "min"), "val_accuracy"), ("min", ("val_loss", "min"), "val_loss"),
    ],
)  # fmt: skip
def test_reduce_on_plateau_watches_the_metric_of_its_mode_after_each_epoch(
    mode: str, monitor: tuple[str, str], metric: str
) -> None:
    found = build_scheduler(partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode=mode), optimizer(), 10, monitor)
    assert {name: found[name] for name in ("monitor", "interval", "strict")} == {
        "monitor": metric, "interval": "epoch", "strict": True,
    }  # fmt: skip
    assert build_scheduler(None, optimizer(), 10) is None
    assert build_scheduler(partial(WarmupLinear, total_steps=None), optimizer(), 10).keys() == {"scheduler", "interval"}


def test_the_settings_of_each_group_are_plain_values() -> None:
    weight, bias = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(3))
    made = build_optimizer(None, [{"params": [weight], "lr_scale": 4.0}, {"params": [bias], "weight_decay": 0.0}], 0.5)
    first, second = optimizer_settings(made)
    assert (first["params"], first["lr"], first["weight_decay"], first["fused"]) == (6, 2.0, 0.01, True)
    assert (second["params"], second["lr"], second["weight_decay"], second["betas"]) == (3, 0.5, 0.0, (0.9, 0.999))
    assert "lr_scale" not in first


def test_a_schedule_moves_to_where_a_longer_one_is() -> None:
    old, new = optimizer(2.0), optimizer(2.0)
    run, long = WarmupLinear(old, warmup=0, total_steps=8), WarmupLinear(new, warmup=0, total_steps=8)
    old.param_groups[0] |= {"lr": 0.123, "state of the optimizer": 7}  # as a checkpoint of a shorter schedule has it
    fast_forward(run, old, (new, long), 3)
    assert old.param_groups[0]["state of the optimizer"] == 7
    assert rates(run, 3) == pytest.approx([2 * (1 - step / 8) for step in (3, 4, 5)])

    class Ends(torch.optim.lr_scheduler.LambdaLR):
        def step(self, epoch: int | None = None) -> None:
            if self.last_epoch >= 1:
                raise ValueError("it has ended")
            super().step(epoch)

    ended = Ends(optimizer(), lambda step: 1.0)
    with pytest.raises(UserError, match=r"^model\.scheduler cannot continue after step 3: it has ended\.$"):
        fast_forward(run, old, (optimizer(), ended), 3)

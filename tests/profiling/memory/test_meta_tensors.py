"""Models without data: facts about the batch answer what a model asks about values, and shared tensors stay shared."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils

from litpeft.profiling.memory.meta_tensors import MetaValues, materialise, meta_execution

NUMBERS = torch.empty(6, 4, device="meta")


@pytest.mark.parametrize("answer", [True, False])
def test_a_boolean_is_answered_and_a_number_is_one(answer: bool) -> None:
    with meta_execution(MetaValues(answer=answer)):
        assert bool((NUMBERS > 0).all()) is answer
        assert NUMBERS.sum().item() == 1
        assert torch.ones((), dtype=torch.int64, device="meta").item() == 1
        assert torch.tensor(7).item() == 7  # has data
        assert bool(torch.tensor(not answer)) is not answer


def test_by_default_a_batch_has_no_padding_and_one_label() -> None:
    with meta_execution(MetaValues()):
        assert bool((NUMBERS > 0).all())
        assert NUMBERS[NUMBERS[:, 0] > 0].shape == (1, 4)


def test_a_mask_selects_as_many_places_as_are_said() -> None:
    rows, places = (torch.empty(shape, dtype=torch.bool, device="meta") for shape in ((6,), (6, 4)))
    index = torch.empty(3, dtype=torch.int64, device="meta")
    with meta_execution(MetaValues(selected=5)):
        assert NUMBERS[rows].shape == (5, 4)
        assert NUMBERS[places].shape == (5,)
        assert NUMBERS[:, rows[:4]].shape == (6, 5)
        assert NUMBERS[index].shape == (3, 4)
        changed = torch.empty(6, 4, device="meta")
        changed[places] = 0.0
        changed[rows] = torch.empty(5, 4, device="meta")
        assert changed.shape == (6, 4)
        assert torch.arange(4)[torch.tensor([True, False, True, True])].tolist() == [0, 2, 3]  # has data


def test_random_numbers_are_answered_so_that_a_layer_is_kept() -> None:
    """Layer drop leaves a layer out where a draw is below its rate; the estimate is of a step with all layers."""
    with meta_execution(MetaValues(answer=False)):
        draw = torch.rand(1, device="meta")
        assert bool(draw > 0.1)
        assert bool(draw > torch.empty(1, device="meta"))
    with meta_execution(MetaValues(answer=True)):
        draw = torch.rand(1, device="meta")
        assert not bool(draw < 0.1)
        assert not bool(draw < torch.empty(1, device="meta"))
        assert bool(NUMBERS[0, 0] < 0.1)  # no draw


def test_masks_are_made_as_in_a_run() -> None:
    before = masking_utils.is_tracing(NUMBERS)
    with meta_execution(MetaValues()):
        assert not masking_utils.is_tracing(NUMBERS)
    assert masking_utils.is_tracing(NUMBERS) == before


def test_a_model_gets_fake_tensors_and_shared_ones_stay_shared() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4), nn.BatchNorm1d(4))
        model[1].weight = nn.Parameter(torch.empty(6, 4).t(), requires_grad=False)
        model.tied, model.plain = nn.Linear(4, 6, bias=False), torch.empty(3)
    model.tied.weight = model[0].weight
    kept = model[2].bias = nn.Parameter(torch.ones(4))  # has data
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    materialise(model, fake)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), "plain": model.plain}
    assert {name for name, tensor in tensors.items() if not hasattr(tensor, "fake_mode")} == {"2.bias"}
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
    assert model.tied.weight is model[0].weight
    assert model[2].bias is kept
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True]
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
    assert not isinstance(model[2].running_mean, nn.Parameter)
    assert (model[1].weight.shape, model[1].weight.stride()) == ((4, 6), (1, 4))
    assert model[2].num_batches_tracked.dtype == torch.int64
    with meta_execution(MetaValues(), fake):
        assert model(fake.from_tensor(torch.empty(2, 4))).device.type == "cpu"

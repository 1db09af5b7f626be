"""Modules trained in full inside of a frozen base: which they are, and what their inputs and outputs are cast to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from litpeft.adapters.bases import FourBit
from litpeft.adapters.trained_in_full import (
    base_dtype,
    find_modules_to_save,
    outermost,
    train_in_full,
    train_without_children,
)
from litpeft.errors import UserError


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        (["a.b", "a", "c"], [], ["a", "c"]),
        (["a.b", "a.bc", "a.b", "a.b.c"], [], ["a.b", "a.bc"]),
        (["a.b", "c"], ["a"], ["c"]),
        (["a"], ["a"], []),
        (["ab.c"], ["a"], ["ab.c"]),
        ([], ["a"], []),
    ],
)
def test_a_module_inside_of_another_one_is_left_out(names: list[str], others: list[str], expected: list[str]) -> None:
    assert outermost(names, others) == expected


def test_the_dtype_of_a_base_is_that_of_its_first_number_outside_of_the_head() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2, dtype=torch.float64)
            self.codes = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
            self.header = nn.Linear(2, 2, dtype=torch.bfloat16)
            self.last = nn.Linear(2, 2, dtype=torch.float16)

    assert base_dtype(Model(), ["head"]) == torch.bfloat16  # `header` is not inside of `head`
    assert base_dtype(Model(), []) == torch.float64
    assert base_dtype(Model(), ["head", "header"]) == torch.float16
    assert base_dtype(Model(), ["head", "header", "last"]) == torch.float32
    assert base_dtype(nn.ReLU(), []) == torch.float32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.items = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.subdense, self.embedding, self.out = nn.Linear(2, 2), nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
        self.out.weight = self.embedding.weight


def test_modules_to_save_are_found_by_the_end_of_their_names() -> None:
    model = Tied()
    assert find_modules_to_save(["dense"], model) == ["blocks.0.dense", "blocks.1.dense"]
    assert find_modules_to_save(["1.dense", "subdense"], model) == ["blocks.1.dense", "subdense"]
    assert find_modules_to_save(["0.items"], model) == ["blocks.0.items.0", "blocks.0.items.1"]
    assert find_modules_to_save([], model) == []
    with pytest.raises(UserError) as unknown:
        find_modules_to_save(["dens"], model)
    assert str(unknown.value) == (
        "model.adapter.modules_to_save: 'dens' is no module of this model; it has: 0, 1, blocks, dense, embedding, "
        "items, out, subdense."
    )
    with pytest.raises(UserError) as tied:
        find_modules_to_save(["out"], model)
    assert str(tied.value) == (
        "model.adapter.modules_to_save: out shares its weight with embedding.weight; put it into "
        "model.adapter.targets instead."
    )


class Told(nn.Module):
    """Passes on what it gets, with the dtypes that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.ones(2)), nn.Linear(2, 2)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, pair: tuple, *, mask: Tensor, flag: str = "") -> tuple:
        self.seen = [x.dtype, pair[0].dtype, pair[1][0].dtype, mask.dtype]
        return x * self.weight, (pair[0], flag), mask, None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("back", [False, True])
def test_inputs_are_cast_to_fp32_at_every_depth_and_outputs_back_where_layers_follow(
    dtype: torch.dtype, back: bool
) -> None:
    module = Told().to(dtype).requires_grad_(False)
    train_in_full(module, dtype, cast_output=back)
    x, ids = torch.ones(2, dtype=dtype), torch.ones(2, dtype=torch.int64)
    out, (first, flag), mask, nothing = module(x, (x, (ids,)), mask=x, flag="kept")
    assert module.seen == [torch.float32, torch.float32, torch.int64, torch.float32]
    assert {out.dtype, first.dtype, mask.dtype} == {dtype if back else torch.float32}
    assert (flag, nothing) == ("kept", None)
    assert {(p.dtype, p.requires_grad) for p in module.parameters()} == {(torch.float32, True)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_of_a_module_with_children_only_its_own_parameters_are_trained(dtype: torch.dtype) -> None:
    outer = Told().to(dtype).requires_grad_(False)
    train_without_children(outer, dtype)
    x = torch.ones(2, dtype=dtype)
    out, *_ = outer(x, (x, (x,)), mask=x)
    assert outer.seen == [dtype] * 4  # the children take the dtype of the base
    assert out.dtype == dtype
    assert {name: (p.dtype, p.requires_grad) for name, p in outer.named_parameters()} == {
        "weight": (torch.float32, True), "inner.weight": (dtype, False), "inner.bias": (dtype, False),
    }  # fmt: skip
    alone = nn.Linear(2, 2, dtype=dtype).requires_grad_(False)
    train_without_children(alone, dtype)
    assert alone(x).dtype == dtype
    assert {(p.dtype, p.requires_grad) for p in alone.parameters()} == {(torch.float32, True)}


def test_a_quantised_module_cannot_be_trained_in_full() -> None:
    head = nn.Sequential(FourBit().quantised(torch.randn(64, 64), False))
    with pytest.raises(UserError, match=r"^model\.base: Sequential is to be trained in full but quantised; name it am"):
        train_in_full(head, torch.float32)

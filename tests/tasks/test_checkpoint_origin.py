"""A checkpoint is refused beside other base weights, another adapter or another base; the message names the difference."""

from __future__ import annotations

import json
from typing import Any

import pytest

from litpeft.adapters import LoRA
from litpeft.adapters.base_options import read_base
from litpeft.errors import UserError
from litpeft.tasks.checkpoint_origin import check_origin, origin


def saved(adapter: Any = None, base: Any = None) -> dict[str, Any]:
    """Return the origin of a checkpoint, as it is read back."""
    return json.loads(json.dumps(origin("abc", adapter or LoRA(rank=4), base)))


def test_the_same_origin_is_accepted() -> None:
    check_origin(saved(), "abc", LoRA(rank=4), "a/model")
    check_origin(saved(base=read_base("nf4")), "abc", LoRA(rank=4), "a/model", read_base("nf4"))
    old = saved()
    del old["quantisation"]  # of litpeft 0.1.0
    check_origin(old, "abc", LoRA(rank=4), "a/model")


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            {},
            {"fingerprint": "xyz"},
            r"model.model_name a/model: these are not the base weights .*\(fingerprint xyz, not",
        ),
        ({"base": "nf4"}, {}, r"^model.base is null, but the checkpoint was trained with .*nf4"),
        ({}, {"base": "nf4"}, r"^model.base is .*nf4.*, but the checkpoint was trained with null; give the value of"),
        ({"base": "fp4"}, {"base": "nf4"}, r"^model.base is .*nf4.*, but the checkpoint was trained with .*fp4"),
        (
            {},
            {"adapter": LoRA(rank=2)},
            "^model.adapter.rank is 2, but the checkpoint was trained with 4; give the value",
        ),
    ],
)
def test_another_origin_is_named(before: dict[str, Any], now: dict[str, Any], message: str) -> None:
    given = saved(before.get("adapter"), read_base(before["base"]) if "base" in before else None)
    base = read_base(now["base"]) if "base" in now else None
    with pytest.raises(UserError, match=message):
        check_origin(given, now.get("fingerprint", "abc"), now.get("adapter", LoRA(rank=4)), "a/model", base)

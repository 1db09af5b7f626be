"""Calls of ours that a torch function mode sees as it sees torch's own, and not as the operations within."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def overridable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Offer each call to the modes that are on (torch.overrides); without one it costs a microsecond."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        tensors = tuple(arg for arg in args if isinstance(arg, Tensor))
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **options)
        return function(*args, **options)

    return call

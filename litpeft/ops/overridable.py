"""Make a function visible to torch function modes as one call, like a function of torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def overridable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function so that active modes (torch.overrides) get each call; costs a microsecond without one."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        tensors = tuple(arg for arg in args if isinstance(arg, Tensor))
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **options)
        return function(*args, **options)

    return call

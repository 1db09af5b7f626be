"""Count the kernels that a GPU would launch, on any machine: meta tensors take the code path of a GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operations without a kernel: views, allocations, and the read of one number, which is a copy
FREE = {
    *("view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "expand", "slice", "select", "narrow"),
    *("split", "split_with_sizes", "unbind", "unsqueeze", "squeeze", "alias", "detach", "as_strided", "unfold"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "lift_fresh"),
    "_local_scalar_dense",
}


class Launches(TorchDispatchMode):
    """Count the operations on meta tensors inside the with block that are kernels on a GPU, in `names`.

    A foreach operation counts once; a GPU launches one kernel for each few dozen of its tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name not in FREE and any(isinstance(t, Tensor) and t.is_meta for t in tree_leaves((args, kwargs, result))):
            self.names[name] += 1
        return result

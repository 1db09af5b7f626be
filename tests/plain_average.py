"""A small schedule-free optimizer, for tests without the package schedulefree."""

from __future__ import annotations

from collections.abc import Callable

import torch


class PlainAverage(torch.optim.Optimizer):
    """Schedule-free SGD with equal weights (https://arxiv.org/abs/2405.15682, equations 1 to 3): z, x and y.

    The parameters are y = (1 - beta) z + beta x in training mode and x in evaluation mode. x is the mean of all z.
    """

    def __init__(self, params: object, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "training": False, "steps": 0})

    @torch.no_grad()
    def _move(self, training: bool) -> None:
        for group in self.param_groups:
            for p in group["params"] if group["training"] != training else ():
                if "z" in self.state[p]:
                    weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
                    p.lerp_(self.state[p]["z"], weight)
            group["training"] = training

    def train(self) -> None:
        self._move(training=True)

    def eval(self) -> None:
        self._move(training=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> object:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            assert group["training"], "step in evaluation mode"
            group["steps"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                x = torch.lerp(p, z, 1 - 1 / group["beta"])
                z.sub_(p.grad, alpha=group["lr"])
                x.lerp_(z, 1 / group["steps"])
                p.copy_(torch.lerp(x, z, 1 - group["beta"]))
        return loss

"""AdaLoRA: its penalty, its reallocation of ranks after each step, and the state of both (PEFT's implementation).

AdaLoRA (Zhang et al. 2023, https://arxiv.org/abs/2303.10512) trains P Λ Q with a diagonal Λ, and sets the least
important numbers of Λ to zero during training, until `target_r` per layer are left on average.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from litpeft.errors import UserError

AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # PEFT's smoothed importance of each weight, and its uncertainty
STATE = "adalora."  # prefix of the names in checkpoints
UNKNOWN_STEPS = 10**9  # PEFT wants a number when the layers are created; `reallocate` sets the run's number


def check_ranks(config: Any) -> None:
    """Raise a UserError if there is no rank to take away."""
    if config.target_r >= config.init_r:
        raise UserError(
            f"model.adapter.options.target_r {config.target_r} must be smaller than init_r {config.init_r}, because "
            "ADALORA takes ranks away during training; give a larger init_r."
        )


def add_penalty_gradients(tuner: nn.Module) -> None:
    """Add the gradients of the orthogonality penalty (equation 4) to the gradients of the loss.

    PEFT adds the penalty to the loss in the model's forward if that gets labels. The gradients are the same; the
    recorded loss is without the penalty, so that it is comparable with the losses of other methods.
    """
    weight = tuner.peft_config["default"].orth_reg_weight
    matrices = [(n, p) for n, p in tuner.model.named_parameters() if ".lora_A.default" in n or ".lora_B.default" in n]
    with torch.enable_grad():
        penalty = 0.0
        for name, matrix in matrices:
            product = matrix @ matrix.T if ".lora_A." in name else matrix.T @ matrix
            identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
            penalty = penalty + torch.norm(product - identity, p="fro")
        gradients = torch.autograd.grad(weight * penalty / len(matrices), [matrix for _, matrix in matrices])
    for (_, matrix), gradient in zip(matrices, gradients, strict=True):
        matrix.grad = gradient if matrix.grad is None else matrix.grad.add_(gradient)


def reallocate(tuner: nn.Module, step: int, total_steps: int | None) -> None:
    """Update the importance of the ranks and set the least important ones to zero, after optimizer step `step`.

    Args:
        tuner: PEFT's AdaLoRA model.
        step: number of optimizer steps so far.
        total_steps: number of optimizer steps of the run.

    Raises:
        UserError: the run has no end, or its warm-up and final phase leave no step.
    """
    config = tuner.peft_config["default"]
    if next(tuner.model.parameters()).is_meta or (total_steps is None and hasattr(_first(tuner), "fake_mode")):
        tuner.rankallocator.update_ipt(tuner.model)  # a memory estimate: which ranks are zero changes no bytes
        return
    if total_steps is None:
        raise UserError("model.adapter.method ADALORA needs the length of the run; give --trainer.max_steps.")
    if config.tinit + config.tfinal >= total_steps:
        raise UserError(
            f"model.adapter.options.tinit {config.tinit} and tfinal {config.tfinal} leave no step of the run's "
            f"{total_steps} for reallocation; give smaller numbers."
        )
    config.total_step = total_steps
    allocator, skipped = tuner.rankallocator, _is_skipped(tuner)
    if skipped and allocator.exp_avg_ipt:
        allocator.update_ipt = lambda _: None  # instead of the method
    if step == total_steps - config.tfinal and not allocator.exp_avg_ipt:
        allocator.update_ipt(tuner.model)  # a run of one step: PEFT would have no importance to compare
    tuner.update_and_allocate(step)
    vars(allocator).pop("update_ipt", None)


def _is_skipped(tuner: nn.Module) -> bool:
    """Return whether the step was skipped because fp16 overflowed; set its gradients to 0, which have no importance."""
    if all(parameter.dtype != torch.float16 for parameter in tuner.model.parameters()):
        return False  # without waiting for a GPU
    gradients = [p.grad for p in tuner.model.parameters() if p.requires_grad and p.grad is not None]
    if all(bool(gradient.isfinite().all()) for gradient in gradients):
        return False
    torch._foreach_zero_(gradients)
    return True


def allocator_state(tuner: nn.Module) -> dict[str, Tensor]:
    """Return what a resumed run needs besides the weights: the averages, and which ranks are kept."""
    allocator, pattern = tuner.rankallocator, tuner.peft_config["default"].rank_pattern
    tensors = {f"{STATE}{kind}.{name}": t for kind in AVERAGES for name, t in getattr(allocator, kind).items()}
    kept = {f"{STATE}rank_pattern.{name}": torch.tensor(ranks) for name, ranks in (pattern or {}).items()}
    return tensors | kept


def load_allocator_state(tuner: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the result of `allocator_state`."""
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*AVERAGES, "rank_pattern")}
    for key, tensor in state.items():
        kind, _, name = key.removeprefix(STATE).partition(".")
        parts[kind][name] = tensor
    device = _first(tuner).device
    allocator = tuner.rankallocator
    for kind in AVERAGES:
        setattr(allocator, kind, {name: tensor.to(device).clone() for name, tensor in parts[kind].items()})
    allocator.ipt = {name: torch.zeros_like(tensor) for name, tensor in allocator.exp_avg_ipt.items()}
    tuner.peft_config["default"].rank_pattern = {n: t.tolist() for n, t in parts["rank_pattern"].items()}


def _first(tuner: nn.Module) -> Tensor:
    return next(p for name, p in tuner.model.named_parameters() if ".lora_A.default" in name)

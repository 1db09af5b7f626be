"""Lightning strategies for several processes, as `--trainer.strategy ddp` and `--trainer.strategy fsdp2` name them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from litpeft.training.meeting import wait_for_all
from litpeft.training.sharding import full_tensors, shard, shard_like

TIMEOUT = timedelta(days=1)  # the other processes wait while one evaluates benchmarks or tokenises


class DDP(DDPStrategy):
    """Each process holds the full model; gradients are averaged.

    Args:
        unused: whether to search for parameters that a batch does not use, such as experts that received no token.
    """

    def __init__(self, unused: bool = False) -> None:
        # four-bit weights are buffers: they would be broadcast at each step
        super().__init__(timeout=TIMEOUT, find_unused_parameters=unused, broadcast_buffers=False)

    def setup_environment(self) -> None:
        wait_for_all()
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return super().load_checkpoint(self.broadcast(checkpoint_path), weights_only)


class FSDP2(ModelParallelStrategy):
    """Each process holds a shard of every parameter. Checkpoints do not depend on the number of processes."""

    restore_checkpoint_after_setup = True
    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=TIMEOUT)

    def setup_environment(self) -> None:
        wait_for_all()
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, model: Any) -> None:
        """Shard the model and move the shards to their device. Call this before the optimizer is built."""
        shard(model, self.device_mesh["data_parallel"], self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return full_tensors(optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states = {
                i: {k: shard_like(v, parameters[i]) if isinstance(v, Tensor) else v for k, v in state.items()}
                for i, state in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": states})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path), weights_only=weights_only)


STRATEGIES = {  # the first two names are Lightning's
    "ddp": DDP,
    "ddp_find_unused_parameters_true": partial(DDP, unused=True),
    "fsdp2": FSDP2,
}


def parallel_strategy_name(strategy: Strategy) -> str:
    """Return the strategy's name for the run record."""
    return "ddp" if isinstance(strategy, DDP) else "fsdp2" if isinstance(strategy, FSDP2) else "one_device"

"""How processes train together: Lightning's strategies as `--trainer.strategy ddp` and `fsdp2` name them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from litpeft.training.sharding import shard, share_of, whole

PATIENCE = timedelta(days=1)  # that the others wait while one evaluates benchmarks, or tokenises


class DDP(DDPStrategy):
    """Each process holds the whole model; gradients are averaged.

    Args:
        unused: whether to look which parameters a batch does not reach, such as experts that no token went to.
    """

    def __init__(self, unused: bool = False) -> None:
        # four-bit weights are buffers: they would be sent at each step
        super().__init__(timeout=PATIENCE, find_unused_parameters=unused, broadcast_buffers=False)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return super().load_checkpoint(self.broadcast(checkpoint_path), weights_only)


class FSDP2(ModelParallelStrategy):
    """Each process holds a share of every parameter; checkpoints are those of one process, and resumed by one too."""

    restore_checkpoint_after_setup = True
    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=PATIENCE)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, model: Any) -> None:
        """Called when the model is built, before there is an optimizer."""
        shard(model.to(self.root_device), self.device_mesh["data_parallel"])

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, told in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states = {
                place: {name: _share(value, parameters[place]) for name, value in state.items()}
                for place, state in told["state"].items()
            }
            optimizer.load_state_dict({**told, "state": states})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path), weights_only=weights_only)


def _share(value: Any, parameter: Tensor) -> Any:
    return share_of(value, parameter) if isinstance(value, Tensor) else value


STRATEGIES = {  # the names are Lightning's, but for the last, which has none there
    "ddp": DDP,
    "ddp_find_unused_parameters_true": partial(DDP, unused=True),
    "fsdp2": FSDP2,
}


def name_of(strategy: Strategy) -> str:
    """For the record."""
    return "ddp" if isinstance(strategy, DDP) else "fsdp2" if isinstance(strategy, FSDP2) else "one_device"

"""A training step on a GPU reads nothing from it: a read waits until the GPU has done all its work."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from litpeft.adapters import Adapter, DoRA, Full, LoRA, QLoRA
from litpeft.profiling.memory.cuda import cuda_choices
from litpeft.profiling.memory.meta_tensors import MetaValues, meta_execution
from litpeft.tasks import CausalLM
from tests.profiling.memory.test_packed import packed

STRATEGIES: dict[str, Adapter] = {"full": Full(), "lora": LoRA(dropout=0.1), "dora": DoRA(), "qlora": QLoRA()}
READS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal"}
aten = torch.ops.aten


class Reads(TorchDispatchMode):
    """Count operations on meta tensors, which take a GPU's path, that wait for a value or for a size."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_meta]
        by_mask = name.startswith(("index", "_index_put")) and any(t.dtype == torch.bool for t in tensors)
        to_host = name == "_to_copy" and tensors and torch.device(kwargs.get("device") or "meta").type == "cpu"
        if (tensors and name in READS) or by_mask or to_host:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_reads_nothing_from_the_gpu(byte_llama: str, strategy: str, packing: bool) -> None:
    task = CausalLM(byte_llama, STRATEGIES[strategy])
    data = packed([60, 40])
    data.packing, batch = packing, data.batch if packing else task.example(2, 64)
    task.trainer = SimpleNamespace(accumulate_grad_batches=1, fit_loop=SimpleNamespace(total_batch_idx=0))
    task.log = lambda *_, **__: None
    values = MetaValues()
    with meta_execution(values):
        task.build(data, torch.device("cuda"), weights=False)
    optimizer = torch.optim.AdamW(task.adapter.param_groups(task.backbone), lr=1e-3, fused=True)
    batch = {name: tensor.to("meta") for name, tensor in task.on_before_batch_transfer(batch, 0).items()}
    for warm in (True, False):  # the first step creates the optimizer's state
        reads = Reads()
        with cuda_choices(), values, reads:
            task.training_step(batch, 0).backward()
            task.scale_gradients()
            torch.nn.utils.clip_grad_norm_(task.backbone.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert warm or not reads.names


def test_positions_found_before_the_transfer_select_what_a_mask_selects(byte_llama: str) -> None:
    task = CausalLM(byte_llama, LoRA())
    labels = torch.tensor([[5, -100, 7, 8], [-100, -100, -100, 9], [3, 2, -100, -100]])
    hidden = torch.randn(3, 4, 2)
    positions = task.on_before_batch_transfer({"labels": labels}, 0)["loss_positions"]
    states, targets = task.at_labels(hidden, labels)
    assert torch.equal(hidden.flatten(0, 1)[positions], states)
    assert torch.equal(labels.flatten()[positions + task.label_shift], targets)


def test_the_data_keeps_its_own_hook(byte_llama: str) -> None:
    class Data(LightningDataModule):
        def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
            return batch | {"labels": batch["labels"].masked_fill(batch["labels"] == 7, -100)}

    task = CausalLM(byte_llama, LoRA())
    task.trainer = SimpleNamespace(datamodule=Data())
    batch = task.on_before_batch_transfer({"labels": torch.tensor([[5, 6, 7, 8]])}, 0)
    assert batch["loss_positions"].tolist() == [0, 2]

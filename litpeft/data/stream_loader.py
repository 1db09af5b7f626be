"""Batches of a stream: shuffled within blocks, always whole, and resumable at each batch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from litpeft.data.sampler import LengthGroupedBatches, ignore_ctrl_c, report_dead_worker_once
from litpeft.data.stream_blocks import Block, Blocks, reading_copy, table_of
from litpeft.errors import UserError


class StreamLoader:
    """Data loader of a stream, whose position Lightning saves in checkpoints.

    The rows of a block are shuffled with a generator seeded by (seed, pass, block), and rows of similar length make a
    batch; the longest batch of a block comes first. Rows that are left after the last whole batch of a block belong to
    the first batches of the next block, also across passes. As in `LengthGroupedBatches`, two processes with batch
    size 8 see the batches of one with 16.

    Args:
        blocks: the blocks of rows.
        batch_size: batch size per device, in rows (with packing: in packed rows).
        batches: number of batches of the run, for Lightning's progress and validation intervals.
        seed: random seed of the shuffle; None to keep the order of the rows.
        rank: rank of this process.
        world_size: number of processes.
        most: number of token ids that the model has embeddings for; None if unknown.
        num_workers: number of processes that read and tokenise blocks.
        pin_memory: whether to pin the memory of the batches, for copies to a GPU.

    Attributes:
        counts: rows read, used and trained on so far by all processes, and rows left out or truncated, by kind.
        on_request: called when a batch is requested, to time the wait for data.
    """

    sampler = batch_sampler = None  # Lightning reads these attributes

    def __init__(
        self,
        blocks: Blocks,
        batch_size: int,
        batches: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        most: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.blocks, self.batches, self.seed = blocks, batches, seed
        self.size, self.rank, self.world_size, self.most = batch_size * world_size, rank, world_size, most
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.on_request: Callable[[], None] = lambda: None
        self._data = reading_copy(blocks.data)  # only makes batches
        self._passed, self._number, self._served = 0, 0, 0  # the open block, and how many of its batches were given
        self._before: Counter[str] = Counter()  # counts before the open block
        self._carried: pa.Table | None = None  # rows left from the blocks before the open one
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = self._from_here()
        while True:
            self.on_request()
            yield next(batches)

    def _from_here(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches that follow the position, without end, and move the position."""
        self.blocks.passed, self.blocks.number = self._passed, self._number
        workers = {"prefetch_factor": 1, "worker_init_fn": _start_worker} if self.num_workers else {}
        # a separate generator: by default a seed is drawn from the global one, which would change dropout
        generator = torch.Generator().manual_seed(0)
        blocks = iter(
            DataLoader(self.blocks, batch_size=None, num_workers=self.num_workers, generator=generator, **workers)
        )
        if self.num_workers:
            report_dead_worker_once()
        used = self._number > 0  # whether this pass has given a row
        for block in blocks:
            if isinstance(block, UserError):
                raise block
            if block.passed > self._passed:
                self.blocks.per_pass = self._number if self.blocks.per_pass is None else self.blocks.per_pass
                if not used:
                    raise UserError("data.streaming: no training row can be used; `litpeft data` shows why.")
                used = False
            used |= block.table is not None
            self._passed, self._number = block.passed, block.number
            self._check_ids(block)
            rows, batches, left = self._batches(block)
            trained = sum(self._rows_in(rows, batch) for batch in batches[: self._served])
            self.counts = self._before + Counter(block.counts) + Counter(rows_trained=trained)
            for batch in batches[self._served :]:
                self._served += 1
                self.counts["rows_trained"] += self._rows_in(rows, batch)
                tensors = rows[batch[self.rank :: self.world_size]]
                yield {name: tensor.pin_memory() for name, tensor in tensors.items()} if self.pin_memory else tensors
            self._before, self._carried = self.counts, left
            self._number, self._served = self._number + 1, 0

    def _batches(self, block: Block) -> tuple[Any, list[list[int]], pa.Table | None]:
        """Return the rows of a block and those left before, the batches of row numbers, and the rows that are left."""
        tables = [table for table in (self._carried, block.table) if table is not None]
        if not tables:
            return None, [], None
        table = pa.concat_tables(tables, promote_options="default")
        rows = table_of(self._data, table)
        order = np.arange(len(rows))
        packed = getattr(rows, "bins", None)
        if self.seed is None:
            if packed is not None:
                packed.sort(key=min)
        else:
            seeds = np.random.SeedSequence([self.seed, block.passed, block.number])
            order = np.random.default_rng(seeds).permutation(len(rows))
            if packed is not None:  # the rows with the most padding are left: they can be packed with others
                order = order[np.argsort(-rows.lengths[order], kind="stable")]
        whole = len(rows) // self.size * self.size
        order, left = order[:whole], order[whole:]
        if packed is not None:
            left = np.concatenate([packed[i] for i in left]) if len(left) else left
        carried = table.take(rows.rows[left]) if len(left) else None
        if self.seed is None or not whole:
            return rows, [order[i : i + self.size].tolist() for i in range(0, whole, self.size)], carried
        grouped = LengthGroupedBatches(rows.lengths[order], self.size, int(seeds.generate_state(1)[0]))
        return rows, [order[batch].tolist() for batch in grouped], carried

    def _rows_in(self, rows: Any, batch: list[int]) -> int:
        """Return the number of rows in a batch of all processes; with packing, those in its packed rows."""
        packed = getattr(rows, "bins", None)
        return len(batch) if packed is None else sum(len(packed[i]) for i in batch)

    def _check_ids(self, block: Block) -> None:
        """Raise a UserError if a row has a token id that the model has no embedding for."""
        if self.most is None or block.table is None:
            return
        ids = next(name for name in ("ids", "input_ids", "prompt") if name in block.table.column_names)
        highest = pc.max(pc.list_flatten(block.table[ids])).as_py() or 0
        if highest >= self.most:
            raise UserError(
                f"data.tokenizer: the data has token ids up to {highest}, but the model has only {self.most} "
                "embeddings; give the tokenizer of the model, or --model.resize_embeddings true."
            )

    def measured(self) -> dict[str, int]:
        """Return the counts, and the number of whole passes over the rows."""
        return {"passes": self._passed, **self.counts}

    def state_dict(self) -> dict[str, Any]:
        carried = None if self._carried is None else _as_tensor(self._carried)
        place = {"pass": self._passed, "block": self._number, "batches": self._served}
        counts = {"counts": dict(self.counts), "counts_before": dict(self._before)}
        return place | counts | {"per_pass": self.blocks.per_pass, "carried": carried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._passed, self._number, self._served = state["pass"], state["block"], state["batches"]
        self.counts, self._before = Counter(state["counts"]), Counter(state["counts_before"])
        self.blocks.per_pass = state["per_pass"]
        self._carried = None if state["carried"] is None else _as_table(state["carried"])


def _as_tensor(table: pa.Table) -> Tensor:
    """Return a table as bytes, which a checkpoint can hold."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)


def _as_table(tensor: Tensor) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(tensor.cpu().numpy().tobytes())).read_all()


def _start_worker(worker: int) -> None:
    """Prepare a worker process; the tokenizer's threads do not survive its fork, and a call would wait for them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ignore_ctrl_c(worker)

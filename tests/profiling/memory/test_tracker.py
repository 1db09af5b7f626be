"""Tracked peak memory and its categories, compared with torch's allocator and checked with added tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from litpeft.adapters import Adapter, DoRA, Full, LoRA, QLoRA
from litpeft.ops.attention import use_lean_attention
from litpeft.ops.dropout import use_lean_dropout
from litpeft.ops.row_chunks import CHUNK
from litpeft.profiling.memory import CATEGORIES, MemoryTracker, Peak
from litpeft.profiling.memory.devices import Devices, first_of
from litpeft.profiling.memory.streams import Streams
from litpeft.profiling.memory.trace import PhasePeak, Trace
from tests.peers.live_bytes import StepPeak, alive_bytes

WIDTH = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
ADDED = 12_345_600  # bytes; no other tensor here has a similar size


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(vocab_size=1000, **WIDTH))


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(vocab_size=1000, **WIDTH))


def states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


class Run:
    """A model trained step by step, as by a task."""

    def __init__(
        self, make: Callable[[], nn.Module], adapter: Adapter, checkpointing: bool = False, tokens: int = 48
    ) -> None:
        torch.manual_seed(0)
        self.model, self.adapter = make(), adapter
        if not adapter.trains_base:
            self.model.bfloat16()
        adapter.apply(self.model, ["classifier"] if make is bert else [], [])
        use_lean_attention(self.model)
        use_lean_dropout(self.model)
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, 1e-3)
        self.ids = torch.randint(0, 1000, (16, tokens))
        self.labels = torch.randint(0, 2, (16,)) if make is bert else self.ids

    def step(self) -> None:
        loss = self.model(input_ids=self.ids, labels=self.labels).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def follow(self) -> MemoryTracker:
        tracker = MemoryTracker(torch.device("cpu"))
        tracker.follow(self.model, self.adapter.roles(self.model))
        tracker.label(states(self.optimizer), "optimizer_state")
        return tracker

    def tracked(self) -> MemoryTracker:
        with self.follow() as tracker:
            self.step()
        tracker.label(states(self.optimizer), "optimizer_state")
        return tracker


ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "full": Full,
    "lora": lambda: LoRA(rank=4, targets="all-linear", dropout=0.1),
    "dora": lambda: DoRA(rank=4, targets="all-linear"),
    "qlora": lambda: QLoRA(rank=4, targets="all-linear"),
}


@pytest.mark.parametrize(("make", "checkpointing"), [(bert, False), (llama, True)])
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_peak_equals_that_of_the_allocator(make: Callable[[], nn.Module], name: str, checkpointing: bool) -> None:
    elsewhere = alive_bytes()  # tensors left by other tests
    run = Run(make, ADAPTERS[name](), checkpointing)
    run.step()
    found = run.tracked().peak()
    allocator = StepPeak()
    allocator.start()
    run.step()
    allocator.stop()
    # not tracked: rows of DoRA's magnitude cast in a kernel; random states saved by checkpointing, 5 KiB per block
    unseen = (8 * CHUNK if name == "dora" else 0) + (3 * 8000 if checkpointing else 0)
    assert found.bytes == pytest.approx(allocator.bytes - elsewhere, rel=0.0005, abs=unseen)
    assert sum(found.split.values()) == found.bytes
    assert set(found.split) == set(CATEGORIES)
    split = found.split
    assert split["base_weights"] + split["adapter_weights"] + split["quantisation_constants"] >= sum(
        tensor.nbytes for tensor in [*run.model.parameters(), *run.model.buffers()]
    )
    assert (split["adapter_weights"] == 0) == (name == "full")
    assert (split["quantisation_constants"] == 0) == (name != "qlora")


def add_tensor(run: Run, category: str) -> None:
    """Add a tensor of known size to the run in this category."""
    extra = torch.zeros(ADDED // 4)
    model = run.model
    if category == "base_weights":
        model.register_buffer("added", extra)
    elif category == "adapter_weights":
        model.added = nn.Parameter(extra)
    elif category == "quantisation_constants":
        layer = next(module for module in model.modules() if hasattr(module, "absmax"))
        layer.absmax = torch.cat([layer.absmax, torch.zeros(ADDED // layer.absmax.itemsize)])
    elif category == "optimizer_state":
        run.optimizer.state[run.trained[0]]["added"] = extra
    elif category == "gradients":
        model.added = nn.Parameter(torch.zeros(ADDED // 4))
        model.added.grad = extra


@pytest.mark.parametrize(
    "category", ["base_weights", "adapter_weights", "quantisation_constants", "optimizer_state", "gradients"]
)
def test_an_added_tensor_is_counted_in_its_category(category: str) -> None:
    adapter = QLoRA(rank=4, targets="all-linear", double_quant=False)
    run = Run(bert, adapter)
    run.step()
    plain = run.tracked().peak()
    add_tensor(run, category)
    found = run.tracked().peak()
    extra = {name: found.split[name] - plain.split[name] for name in CATEGORIES}
    expected = dict.fromkeys(CATEGORIES, 0) | {category: ADDED}
    if category == "gradients":
        expected["adapter_weights"] = ADDED
    assert extra == expected
    assert found.bytes - plain.bytes == sum(expected.values())


def test_activations_temporaries_and_earlier_tensors_are_distinguished() -> None:
    weight, batch = torch.ones(1000, requires_grad=True), torch.ones(1000)
    tracker = MemoryTracker(torch.device("cpu"))
    tracker.label([weight], "base_weights")
    with tracker:
        activation = (weight * batch).sigmoid()  # sigmoid saves its output, so the product is freed
        scratch = torch.zeros(5000)
        del scratch
        activation.sum().backward()
    expected = dict.fromkeys(CATEGORIES, 0)
    expected |= {"base_weights": 4000, "other": 4000, "activations": 4000, "temporaries": 20000}
    assert tracker.peak().split == expected
    assert tracker.peak().bytes == 32000
    assert weight.grad is not None


def test_optimizer_states_and_gradients_created_in_the_first_step_are_recognised() -> None:
    run = Run(bert, Full(), tokens=2)  # few activations, so that the peak is in the optimizer step
    peak = run.tracked().peak()
    size = sum(p.nbytes for p in run.trained)
    assert peak.split["optimizer_state"] == pytest.approx(2 * size, rel=1e-3)
    assert peak.split["gradients"] == size
    assert peak.split["base_weights"] == pytest.approx(size, rel=1e-2)


def test_views_and_in_place_operations_need_no_memory() -> None:
    tracker = MemoryTracker(torch.device("cpu"))
    with tracker:
        x = torch.zeros(100)
        x.view(10, 10)[2:].mul_(3)
    assert tracker.peak().bytes == 400


def test_tracking_does_not_change_the_weights() -> None:
    found = []
    for tracked in (False, True):
        run = Run(llama, LoRA(rank=4, targets="all-linear", dropout=0.1))
        for _ in range(3):
            if tracked:
                run.tracked()
            else:
                run.step()
        found.append([p.detach().clone() for p in run.trained])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_peak_without_any_tensor_is_zero() -> None:
    peak = MemoryTracker(torch.device("cpu")).peak()
    assert (peak.bytes, set(peak.split.values())) == (0, {0})


@pytest.mark.parametrize("before", [0, 1])
def test_an_emptied_block_counts_until_it_is_emptied_and_again_when_it_is_filled(before: int) -> None:
    """FSDP2 empties gathered blocks and fills them again; the tensors stay."""
    block = torch.zeros(ADDED, dtype=torch.uint8)
    tracker = MemoryTracker(torch.device("cpu"))
    with tracker:
        for _ in range(before):
            torch.zeros(1)
        block.add_(1)
        tracker.label([block], "communication")
        first = tracker.operations
        block.untyped_storage().resize_(0)
        other = torch.zeros(ADDED, dtype=torch.uint8)
        alone = tracker.peak(first + 1, tracker.operations)
        block.untyped_storage().resize_(ADDED)
        both = tracker.peak(tracker.operations, tracker.operations)
    assert other.nbytes == ADDED
    assert alone.bytes == pytest.approx(ADDED, rel=0.01)
    assert alone.split["communication"] == 0
    assert both.bytes == pytest.approx(2 * ADDED, rel=0.01)
    assert both.split["communication"] == ADDED


def test_what_lives_and_when_follows_from_the_operations() -> None:
    """Three tensors of 400, 800 and 1200 bytes, of which the second is freed before the third is made."""
    tracker = MemoryTracker(torch.device("cpu"))
    with tracker:
        first = torch.zeros(100)  # operation 1
        second = torch.zeros(200)  # 2
        tracker.label([second], "activations")
        del second
        third = torch.zeros(300)  # 3
        third.add_(1)  # 4
    assert tracker.operations == 4
    assert list(tracker.events()) == [(1, 0, 400), (2, 1, 800), (2, 1, 800), (3, 2, 1200)]
    assert [tracker.peak(at, at).bytes for at in range(5)] == [0, 400, 1200, 1600, 1600]
    assert tracker.peak(1, 2).split["activations"] == 800
    assert tracker.peak(0, 1).bytes == 400
    assert tracker.peak(2).bytes == tracker.peak().bytes == 1600
    assert (tracker.peak().split["temporaries"], tracker.peak().split["activations"]) == (1600, 0)
    assert [reference() is not None for reference in tracker.alive("temporaries")] == [True, True]
    assert tracker.alive("activations") == []  # freed
    del first, third
    assert tracker.alive("temporaries") == []


def test_a_tracker_adopts_what_another_one_has_seen_and_still_exists() -> None:
    before, after = MemoryTracker(torch.device("cpu")), MemoryTracker(torch.device("cpu"))
    kept, gone = torch.zeros(100), torch.zeros(200)
    before.label([kept, gone], "communication")
    storages = before.alive("communication")
    assert len(storages) == 2
    assert before.alive("gradients") == []
    del gone
    after.adopt(storages, "communication")
    with after:
        kept.add_(1)
    assert after.peak().split["communication"] == after.peak().bytes == 400


def test_bytes_that_are_sent_count_from_the_first_to_the_last_operation() -> None:
    tracker = MemoryTracker(torch.device("cpu"))
    tracker.sent = [(1, 10.0), (2, 20.4), (2, 30.2), (5, 40.0)]
    assert tracker.sent_between(0, 9) == 101
    assert tracker.sent_between(2, 2) == 51
    assert tracker.sent_between(3, 4) == 0
    assert tracker.sent_between(2, 5) == 91


def test_tensors_of_other_devices_are_not_counted_and_hooks_end_with_the_block() -> None:
    layer = nn.Linear(10, 10, bias=False)
    frozen = nn.Linear(10, 10, bias=False).requires_grad_(False)
    tracker = MemoryTracker(torch.device("meta"))
    tracker.follow(layer, {"base_weights": layer.parameters()})
    with tracker:
        here = torch.ones(4, device="meta")
        torch.ones(1000)
    assert (tracker.peak().bytes, here.nbytes) == (16, 16)
    tracker = MemoryTracker(torch.device("cpu"))
    tracker.follow(nn.Sequential(frozen, layer), {"base_weights": [frozen.weight], "adapter_weights": [layer.weight]})
    with tracker:
        layer(frozen(torch.ones(2, 10))).sum().backward()
    split = tracker.peak().split
    assert (split["base_weights"], split["adapter_weights"], split["gradients"]) == (400, 400, 400)
    seen = tracker.operations
    layer(torch.ones(2, 10)).sum().backward()
    assert tracker.operations == seen
    assert len(layer.weight._post_accumulate_grad_hooks or ()) == 0


@pytest.mark.parametrize(("device", "size"), [("cpu", 4), ("meta", 20)])
def test_a_tensor_is_seen_beside_one_of_another_device(device: str, size: int) -> None:
    here, there = torch.ones(()), torch.empty(5, device="meta")
    for pair in ((here, there), (there, here)):
        with MemoryTracker(torch.device(device)) as tracker:
            torch.add(*pair)
        assert tracker.peak().split["other"] == size


def test_a_gradient_that_exists_before_tracking_is_known_as_one() -> None:
    layer = nn.Linear(10, 10, bias=False)
    layer(torch.ones(2, 10)).sum().backward()
    tracker = MemoryTracker(torch.device("cpu"))
    tracker.follow(layer, {"adapter_weights": layer.parameters()})
    with tracker:
        layer.weight.grad.zero_()
    assert tracker.peak().split["gradients"] == 400


def test_a_buffer_that_a_collective_fills_is_communication_from_the_start() -> None:
    """DDP makes its buckets before they are first seen; what they send is that of a ring of two."""
    tracker, bucket = MemoryTracker(torch.device("cpu")), torch.zeros(100)
    with first_of(Devices(2, "ddp"), Streams()), tracker:
        kept = torch.zeros(5)
        torch.distributed.all_reduce(bucket)
        kept.add_(1)
    assert tracker.peak().split["communication"] == 400
    assert tracker.peak(0, 0).split["communication"] == 400  # existed before the first operation
    assert tracker.peak().split["temporaries"] == kept.nbytes
    assert tracker.sent_between(0, tracker.operations) == 400
    assert [reference() is not None for reference in tracker.alive("communication")] == [True]


def test_what_is_unknown_of_a_phase_is_empty() -> None:
    found = PhasePeak(Peak())
    assert (found.allocated_bytes, found.reserved_bytes, found.sent_bytes, found.tensors.bytes) == (None, None, 0, 0)
    whole = Trace({"trainable_params": 1}, {"train": found})
    assert (whole.positions, whole.has_experts, whole.phases["train"]) == (None, False, PhasePeak(Peak()))


def test_a_storage_that_was_emptied_before_tracking_counts_once_it_is_filled_again() -> None:
    emptied, elsewhere = (torch.empty(64, device=device).untyped_storage() for device in ("cpu", "meta"))
    for held in (emptied, elsewhere):
        held.resize_(0)
    with MemoryTracker(torch.device("cpu")) as tracker:
        before = tracker.peak().bytes
        elsewhere.resize_(1 << 20)
        assert tracker.peak().bytes == before
        emptied.resize_(4096)
        assert tracker.peak().bytes == before + 4096
        emptied.resize_(1024)
        emptied.resize_(2048)
    assert tracker.peak().bytes == before + 4096
    assert tracker.peak().split["temporaries"] == 4096


def test_a_tensor_that_ends_before_the_first_operation_counts_there() -> None:
    tracker, early = MemoryTracker(torch.device("cpu")), torch.zeros(1000)
    tracker.label([early], "base_weights")
    del early
    with tracker:
        late = torch.zeros(100)
    assert tracker.peak().bytes == tracker.peak().split["base_weights"] == 4000
    assert tracker.peak(1).bytes == late.nbytes


def test_what_an_operation_reads_is_freed_after_its_result_has_been_made() -> None:
    with MemoryTracker(torch.device("cpu")) as tracker:
        first = torch.zeros(100)
        second = first + 1
        del first
    assert list(tracker.events()) == [(1, 0, 400), (2, 1, second.nbytes), (2, 0, 400)]


def test_a_buffer_that_is_made_in_a_step_does_not_exist_before_it() -> None:
    tracker, earlier = MemoryTracker(torch.device("cpu")), torch.zeros(50)
    with first_of(Devices(2, "ddp"), Streams()), tracker:
        bucket = torch.zeros(100)
        for _ in range(2):
            torch.distributed.all_reduce(bucket)
        assert tracker.peak(0, 0).bytes == 0
        torch.distributed.all_reduce(earlier)
    assert tracker.peak(0, 0).bytes == earlier.nbytes
    assert tracker.peak().bytes == sum(tracker.peak().split.values()) == 600
    assert tracker.peak().split["communication"] == 600


def test_finding_the_shape_of_a_sharded_result_needs_no_memory() -> None:
    """DTensor runs an operation on tensors of whole size that hold nothing, the first time it meets these shapes."""
    rows, width = 2 * 331, 97
    with first_of(Devices(2, "fsdp2"), Streams()) as mesh:
        shard = DTensor.from_local(torch.zeros(rows // 2, width), mesh, [Shard(0)], run_check=False)
        with MemoryTracker(torch.device("cpu")) as tracker:
            result = shard.exp()
            after = torch.zeros(10)
    assert result.shape == (rows, width)
    assert tracker.peak().bytes == 2 * 4 * (rows // 2) * width + after.nbytes  # the shards, and what was made then

"""`make bench-adapters`: time and memory of one adapted layer, for litpeft's and PEFT's adapters in one process.

A step is forward and backward of one layer whose input needs a gradient. The *tax* is the time of a step divided by that
of a step with the frozen layer alone (plain or 4-bit): the median over rounds that time each variant in turn. *peak MiB*
is the peak of PyTorch's CPU allocator during a step, without parameters and input.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Callable

import peft
import torch
from torch import nn

from litpeft.adapters import DoRA, LoRA
from litpeft.adapters.linear4bit import Linear4bit, bitsandbytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RANK = 8


class OneLayer(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def models(width: int, dtype: torch.dtype, quantised: bool, dropout: float) -> dict[str, nn.Module]:
    """Return the frozen layer, and the layer with each adapter of litpeft and PEFT."""
    torch.manual_seed(0)
    base = nn.Linear(width, width, dtype=dtype)

    def frozen() -> nn.Module:
        layer = nn.Linear(width, width, dtype=dtype)
        layer.load_state_dict(base.state_dict())
        return Linear4bit.from_linear(layer) if quantised else layer.requires_grad_(False)

    def peft_model(dora: bool) -> nn.Module:
        config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["layer"], use_dora=dora, lora_dropout=dropout)
        layer = nn.Linear(width, width, dtype=dtype)
        layer.load_state_dict(base.state_dict())
        model = OneLayer(layer)
        if quantised:
            bnb = bitsandbytes()
            model.layer = bnb.nn.Linear4bit(width, width, compute_dtype=dtype, quant_type="nf4")
            model.layer.load_state_dict(base.state_dict())
            model.layer.to("cpu")
            model.is_loaded_in_4bit = True
        return peft.get_peft_model(model, config)

    def litpeft_model(adapter: LoRA) -> nn.Module:
        model = OneLayer(frozen())
        adapter.apply(model)
        return model

    options = {"rank": RANK, "alpha": 16, "targets": ["layer"], "dropout": dropout}
    return {
        "frozen": OneLayer(frozen()),
        "lora": litpeft_model(LoRA(**options)),
        "lora peft": peft_model(dora=False),
        "dora": litpeft_model(DoRA(**options)),
        "dora peft": peft_model(dora=True),
    }


def step_of(model: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> Callable[[], None]:
    """Return a function that runs a step; an optimizer step follows, so that DoRA computes its norm again."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    optimizer = torch.optim.SGD(trained, lr=0.0) if trained else None

    def step() -> None:
        model(x).backward(upstream)
        x.grad = None
        for p in trained:
            p.grad = None
        if optimizer:
            optimizer.step()

    return step


def peak_bytes(step: Callable[[], None]) -> int:
    """Return the peak of allocated bytes during a step, from the events of the allocator."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def bench(width: int, dtype: str, quantised: bool, tokens: int, rounds: int, dropout: float) -> str:
    variants = models(width, DTYPES[dtype], quantised, dropout)
    x = torch.randn(tokens, width, dtype=DTYPES[dtype], requires_grad=True)
    upstream = torch.randn(tokens, width, dtype=DTYPES[dtype])
    steps = {name: step_of(model, x, upstream) for name, model in variants.items()}
    for step in steps.values():
        step()
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    taxes = {
        name: statistics.median(t / f for t, f in zip(times[name], times["frozen"], strict=True)) for name in steps
    }
    cells = [
        f"{width:5} {tokens:6} {dtype:5} {'nf4' if quantised else 'linear':7}",
        f"{statistics.median(times['frozen']) * 1e3:9.2f} ms",
    ]
    for name in ("lora", "dora"):
        names = (name, f"{name} peft")
        cells.append(" ".join([*(f"{taxes[n]:6.2f}" for n in names), *(f"{peaks[n] / 2**20:8.1f}" for n in names)]))
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768, 2048, 4096])
    parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--layers", choices=["linear", "nf4"], nargs="+", default=["linear", "nf4"])
    parser.add_argument("--tokens", type=int, default=2048, help="number of tokens; at most 512 for width 4096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    print(
        f"rank {RANK}, dropout {options.dropout:g}, {options.threads} thread(s); tax: time of a step / time with the frozen layer alone"
    )
    print(
        "width tokens dtype layer   |     frozen   |  LoRA tax: litpeft, PEFT; peak MiB | DoRA tax: litpeft, PEFT; peak MiB"
    )
    for width in options.widths:
        for dtype in options.dtypes:
            for layer in options.layers:
                tokens = min(options.tokens, 512) if width >= 4096 else options.tokens
                print(bench(width, dtype, layer == "nf4", tokens, options.rounds, options.dropout), flush=True)


if __name__ == "__main__":
    main()
